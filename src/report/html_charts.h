// The charts of the HTML report, each an inline SVG, from rows of a result file's document.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "report/result_file.h"

namespace moe::report {

/// A row as the file has it, and as comparisons read it.
struct ChartRow {
  const nlohmann::json* source = nullptr;
  const ResultRow* row = nullptr;
  [[nodiscard]] std::optional<double> number(const char* name) const;  ///< absent when null
  [[nodiscard]] std::string text(const char* name) const;              ///< "" when null
  [[nodiscard]] bool timed() const { return row->samples > 0; }
  [[nodiscard]] std::string color() const;  ///< the class of its level's color
  /// "4 grouped", with "[graph]" and "[cold]" where `all` differ in them.
  [[nodiscard]] std::string name(const std::vector<ChartRow>& all) const;
};

/// Medians of one problem on a log axis, level by level, with the gain over the level before.
[[nodiscard]] std::string ladder_chart(const std::vector<ChartRow>& rows);
/// Medians over tokens, both axes log; crosses where a level did not run. With `stream_floor` also the
/// line of what reading the active experts' weights takes.
[[nodiscard]] std::string sweep_chart(const std::vector<ChartRow>& rows, bool stream_floor);
/// Useful FLOP/s over useful FLOP per byte that must move, under the measured ceilings.
[[nodiscard]] std::string roofline_chart(const std::vector<ChartRow>& rows,
                                         const nlohmann::json& ceilings);
/// Rows per expert over the mean, busiest first; "" where the file does not have them.
[[nodiscard]] std::string load_chart(const ChartRow& row);
/// Share of the tolerance that the worst row of each level used.
[[nodiscard]] std::string tolerance_chart(const std::vector<ChartRow>& rows);

}  // namespace moe::report
