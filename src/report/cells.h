// Texts of single values, shared by the table and the Markdown form.
#pragma once

#include <string>
#include <vector>

#include "report/report.h"

namespace moe::report {

[[nodiscard]] std::string speedup_cell(const BenchRow& row);
/// "1.05x"; "~1.01x" when it cannot be told from noise; "-" without a row to compare with.
[[nodiscard]] std::string change_cell(const BenchRow& row);
[[nodiscard]] std::string ceiling_cell(const BenchRow& row);
/// Most memory that one forward took, beside the weights; what was predicted where the system does
/// not tell.
[[nodiscard]] std::string memory_cell(const BenchRow& row);
[[nodiscard]] std::string tolerance_cell(const BenchRow& row);
/// "out of memory: ..." and the like for a row without a time.
[[nodiscard]] std::string status_text(const BenchRow& row);

/// "cpu fp32  T=256 H=1024 ...  skew uniform, seed 0"
[[nodiscard]] std::string problem_text(const Report& report, const Problem& problem);

/// What stands under a table: name and text.
struct Footer {
  std::string name;
  std::string text;
};
[[nodiscard]] std::vector<Footer> footers(const Report& report, const std::vector<ReportRow>& rows);

/// Rows of each problem, in order.
[[nodiscard]] std::vector<std::vector<ReportRow>> by_problem(const std::vector<ReportRow>& rows);

/// Lines of at most `width` columns, broken at spaces.
[[nodiscard]] std::vector<std::string> wrap(const std::string& text, std::size_t width);

}  // namespace moe::report
