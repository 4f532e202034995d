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
/// The share of the dense twin where rows have one, else that of the ceiling; and its title.
[[nodiscard]] std::string share_cell(const BenchRow& row, bool of_twin);
[[nodiscard]] const char* share_title(bool of_twin);
[[nodiscard]] bool have_twin(const std::vector<ReportRow>& rows);
/// What a level does, after "[graph]", "[hot]" and the like where the rows differ in them.
[[nodiscard]] std::string technique_text(const BenchRow& row, const std::vector<ReportRow>& rows);
/// Most memory that one forward took, beside the weights; what was predicted where the system does
/// not tell.
[[nodiscard]] std::string memory_cell(const BenchRow& row);
[[nodiscard]] std::string tolerance_cell(const BenchRow& row);
/// "out of memory: ..." and the like for a row without a time.
[[nodiscard]] std::string status_text(const BenchRow& row);

/// The preset or the checkpoint that the layer is of, with two blanks behind it; "" for neither.
[[nodiscard]] std::string source_text(const Report& report);
/// "cpu fp32  T=256 H=1024 ...  skew uniform, seed 0"
[[nodiscard]] std::string problem_text(const Report& report, const Problem& problem);
/// What the problem has beyond sizes and dtype, after two spaces; "" when nothing.
[[nodiscard]] std::string block_text(const Problem& problem);
/// "cold caches, eager launches" of the rows; what differs between them is left out.
[[nodiscard]] std::string conditions_text(const std::vector<ReportRow>& rows);

/// What stands under a table: name and text.
struct Footer {
  std::string name;
  std::string text;
};
[[nodiscard]] std::vector<Footer> footers(const Report& report, const std::vector<ReportRow>& rows);

/// Rows of each problem, in order.
[[nodiscard]] std::vector<std::vector<ReportRow>> by_problem(const std::vector<ReportRow>& rows);

/// Levels that have rows, each once: in ascending order, variants after their level.
[[nodiscard]] std::vector<LevelInfo> levels_of(const Report& report);

/// The two token counts whose gains are compared: 2048 and 8192 where both were measured, else the
/// fewest and the most.
[[nodiscard]] std::pair<std::int64_t, std::int64_t> compared_tokens(const Report& report);
/// A table of each level's gain over the one before at these two; "" when they are one.
[[nodiscard]] std::string render_scale_gains(const Report& report, std::size_t width);

/// The verdicts for a terminal, at most `width` columns, and as a GitHub table.
[[nodiscard]] std::string render_myths(const std::vector<MythResult>& myths, std::size_t width);
[[nodiscard]] std::string markdown_myths(const std::vector<MythResult>& myths);

/// Lines of at most `width` columns, broken at spaces.
[[nodiscard]] std::vector<std::string> wrap(const std::string& text, std::size_t width);

/// The tables of -t moe_decode, a group for each state of the caches: medians, rates at which weights
/// of active experts were read, shares of the stream floor.
[[nodiscard]] std::string render_decode(const Report& report, std::size_t width);
[[nodiscard]] std::string markdown_decode(const Report& report);
/// What the stream floor is made of; "" where nothing was measured.
[[nodiscard]] std::string stream_floor_text(const Report& report);
/// "takes streaming from T=1, takes persistent from T=64": the rows of level "auto"; "" without any.
[[nodiscard]] std::string choices_text(const Report& report);

}  // namespace moe::report
