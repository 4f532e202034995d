// The same rows in several results, over time.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "report/compare.h"

namespace moe::report {

/// A row in one of the results.
struct HistoryPoint {
  const ResultFile* file = nullptr;
  ResultRow row;
  /// Against the point before; absent for the first.
  std::optional<Judgement> change;
};

/// One row on one kind of device, oldest first.
struct History {
  std::string device;
  std::vector<HistoryPoint> points;
};

/// Of every row that is measured and verified in at least one file, in the order in which they appear.
/// `files` outlive the result. Throws kInvalidArgument when there is none.
[[nodiscard]] std::vector<History> history_of(const std::vector<ResultFile>& files,
                                              const CompareLimits& limits);

/// The value of "schema" in the JSON form; schema/history.schema.json describes it.
inline constexpr std::string_view kHistorySchema = "moe-history-1";

/// kCsv is refused. `color` is for the table only.
[[nodiscard]] std::string render(const std::vector<History>& histories, Format format, bool color);

}  // namespace moe::report
