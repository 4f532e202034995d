// GitHub tables, one per problem, and the same lines under them as under the terminal's table.
#include <fmt/core.h>

#include "core/text.h"
#include "report/cells.h"

namespace moe::report {
namespace {

std::string row_line(const BenchRow& row, const std::vector<ReportRow>& rows) {
  const std::string level = fmt::format("{} {}", row.level.number, row.level.name);
  if (row.status != RowStatus::kOk) {
    return fmt::format("| {} | | | | | | | {} |\n", level, status_text(row));
  }
  return fmt::format("| {} | {} | {} | {} | {} | {} | {:.1e} ({}) | {} |\n", level,
                     format_microseconds(row.median_us), speedup_cell(row), change_cell(row),
                     share_cell(row, have_twin(rows)), memory_cell(row), row.error,
                     tolerance_cell(row), technique_text(row, rows));
}

}  // namespace

std::string render_markdown(const Report& report) {
  std::string text;
  const bool decode = report.suite == "moe_decode" && !report.rows.empty();
  if (decode) {
    const Problem& problem = report.rows.front().bench.problem;
    text = fmt::format("**{}** {}{} {}, H={} I={} E={} K={}, skew {}, seed {}\n\n", report.suite,
                       source_text(report), name_of(report.backend), name_of(problem.dtype),
                       problem.shape.hidden, problem.shape.intermediate, problem.shape.experts,
                       problem.shape.top_k, report.skew, report.seed) +
           markdown_decode(report);
    text += fmt::format("- floor: {}\n", stream_floor_text(report));
    if (const std::string choices = choices_text(report); !choices.empty()) {
      text += fmt::format("- auto: {}\n", choices);
    }
  }
  for (const std::vector<ReportRow>& rows :
       by_problem(decode ? std::vector<ReportRow>{} : report.rows)) {
    text += fmt::format("**{}** {}\n\n", report.suite,
                        problem_text(report, rows.front().bench.problem));
    text += fmt::format(
        "| level | median | speedup | change | {} | memory | error (of tolerance) | what it "
        "does |\n|---|---:|---:|---:|---:|---:|---:|---|\n",
        share_title(have_twin(rows)));
    for (const ReportRow& row : rows) text += row_line(row.bench, rows);
    text += "\n";
    if (const std::string kernels = render_kernels(rows); !kernels.empty()) {
      text += "```text\n" + kernels + "```\n\n";
    }
  }
  if (!report.myths.empty()) text += markdown_myths(report.myths) + "\n";
  const auto groups = by_problem(report.rows);
  const std::vector<ReportRow> last = groups.empty() ? std::vector<ReportRow>{} : groups.back();
  for (const Footer& footer : footers(report, last)) {
    const char* mark = footer.name == "repro" ? "`" : "";
    text += fmt::format("- {}: {}{}{}\n", footer.name, mark, footer.text, mark);
  }
  return text;
}

}  // namespace moe::report
