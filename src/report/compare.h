// Two results side by side: which rows changed, and by how much.
#pragma once

#include <string>
#include <vector>

#include "report/report.h"
#include "report/result_file.h"

namespace moe::report {

struct ComparedRow {
  ResultRow first;
  ResultRow second;
  Judgement judgement;
  std::string note;  ///< what else a reader should know; "" nothing
};

/// A row without a partner, and why.
struct UnpairedRow {
  ResultRow row;
  std::string reason;  ///< "not in FILE"; "out of memory in FILE: ..."
};

struct CompareReport {
  std::string first;   ///< a file with its commit and date
  std::string second;  ///< the same, or "this program, measured now"
  std::string device;
  CompareLimits limits;
  std::vector<ComparedRow> rows;
  std::vector<UnpairedRow> only_first;
  std::vector<UnpairedRow> only_second;
  std::vector<std::string> notes;
};

/// The smallest change that is called one unless the user says otherwise: what two processes of one
/// program differ by, on a CPU with its neighbours, caches and pages, is more than on a GPU.
[[nodiscard]] double default_effect(const ResultDevice& device);
/// The same in microseconds: on a CPU a process keeps the pages that it was given, and a short forward is as
/// many microseconds faster or slower in all of its samples.
[[nodiscard]] double default_effect_us(const ResultDevice& device);

/// Pairs the measured rows by key, in the order of `first`, and judges each pair. Throws
/// kInvalidArgument when the results are of different kinds of device or dtypes, when a row of either
/// failed, has times but was not verified, or is there twice, and when no row has a partner.
[[nodiscard]] CompareReport compare(const ResultFile& first, const ResultFile& second,
                                    const CompareLimits& limits);

/// Whether the row is SLOWER by more than the limit.
[[nodiscard]] bool beyond_limit(const ComparedRow& row, const CompareLimits& limits);
[[nodiscard]] bool any_beyond_limit(const CompareReport& report);

/// What tells this row from the others: "4 grouped T=256", with the launch, the cache, sizes and
/// whatever else of the keys differs among `all`.
[[nodiscard]] std::string label_of(const ResultRow& row, const std::vector<RowKey>& all);

/// The value of "schema" in the JSON form; schema/compare.schema.json describes it.
inline constexpr std::string_view kCompareSchema = "moe-compare-1";

/// kCsv is refused. `color` is for the table only.
[[nodiscard]] std::string render(const CompareReport& report, Format format, bool color);

}  // namespace moe::report
