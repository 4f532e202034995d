// The table that a person reads: aligned, at most kWidth columns.
#include <fmt/core.h>

#include <algorithm>
#include <set>

#include "core/text.h"
#include "report/cells.h"

namespace moe::report {
namespace {

constexpr std::size_t kWidth = 110;
constexpr std::size_t kGap = 2;

struct Column {
  const char* title;
  std::size_t width;
  bool left = false;
};

enum : std::size_t { kLevel, kMedian, kSpeedup, kChange, kCeiling, kMemory, kError, kTolerance };
constexpr Column kColumns[] = {{"level", 14, true}, {"median", 9},  {"speedup", 7}, {"change", 7},
                               {"ceiling", 7},      {"memory", 10}, {"error", 7},   {"tol.", 5}};

constexpr std::size_t words_column() {
  std::size_t at = 0;
  for (const Column& column : kColumns) at += column.width + kGap;
  return at;
}
constexpr std::size_t kWordsWidth = kWidth - words_column();
static_assert(kWordsWidth >= 24, "room for what a level does");

std::string pad(const std::string& text, std::size_t width, bool left) {
  const std::string spaces(width > text.size() ? width - text.size() : 0, ' ');
  return left ? text + spaces : spaces + text;
}

class Paint {
 public:
  explicit Paint(bool color) : color_(color) {}
  [[nodiscard]] std::string bold(const std::string& text) const { return code("1", text); }
  [[nodiscard]] std::string dim(const std::string& text) const { return code("2", text); }
  [[nodiscard]] std::string red(const std::string& text) const { return code("31", text); }
  [[nodiscard]] std::string green(const std::string& text) const { return code("32", text); }

 private:
  [[nodiscard]] std::string code(const char* number, const std::string& text) const {
    return color_ ? fmt::format("\x1b[{}m{}\x1b[0m", number, text) : text;
  }
  bool color_;
};

std::string title_line(bool of_twin) {
  std::string line;
  for (std::size_t i = 0; i < std::size(kColumns); ++i) {
    const Column& column = kColumns[i];
    const char* title = i == kCeiling ? share_title(of_twin) : column.title;
    line += pad(title, column.width, column.left) + std::string(kGap, ' ');
  }
  return line + "what it does";
}

std::string level_cell(const BenchRow& row) {
  return fmt::format("{} {}", row.level.number, row.level.name);
}

std::string row_lines(const BenchRow& row, const std::vector<ReportRow>& rows, const Paint& paint) {
  // A name that is too long for its column has a line of its own.
  const bool fits = level_cell(row).size() <= kColumns[kLevel].width;
  const std::string above = fits ? "" : level_cell(row) + "\n";
  const std::string level = pad(fits ? level_cell(row) : "", kColumns[kLevel].width, true);
  const std::string indent(kGap, ' ');
  if (row.status != RowStatus::kOk) {
    const std::size_t at = kColumns[kLevel].width + kGap;
    std::string text;
    for (const std::string& line : wrap(status_text(row), kWidth - at)) {
      const std::string painted =
          row.status == RowStatus::kFailed ? paint.red(line) : paint.dim(line);
      text += text.empty() ? fmt::format("{}{}{}", above, level, indent) : std::string(at, ' ');
      text += painted;
      text += '\n';
    }
    return text;
  }
  const std::string cells[] = {level,
                               format_microseconds(row.median_us),
                               speedup_cell(row),
                               change_cell(row),
                               share_cell(row, have_twin(rows)),
                               memory_cell(row),
                               fmt::format("{:.1e}", row.error),
                               tolerance_cell(row)};
  std::string text = above;
  for (std::size_t i = 0; i < std::size(kColumns); ++i) {
    std::string cell = pad(cells[i], kColumns[i].width, kColumns[i].left);
    if (i == kMedian) cell = paint.bold(cell);
    if (i == kChange && row.distinguishable) {
      cell = *row.gain_vs_previous > 1 ? paint.green(cell) : paint.red(cell);
    }
    text += cell + indent;
  }
  const std::vector<std::string> words = wrap(technique_text(row, rows), kWordsWidth);
  for (std::size_t i = 0; i < words.size(); ++i) {
    text += (i == 0 ? "" : std::string(words_column(), ' ')) + words[i] + "\n";
  }
  return text;
}

std::string footer_lines(const std::vector<Footer>& list, const Paint& paint) {
  constexpr std::size_t kNameWidth = 10;
  std::string text;
  for (const Footer& footer : list) {
    // A command that goes on in the next line must say so to the shell.
    const bool command = footer.name == "repro";
    const std::vector<std::string> lines = wrap(footer.text, kWidth - kNameWidth - 2);
    for (std::size_t i = 0; i < lines.size(); ++i) {
      const std::string name = pad(i == 0 ? footer.name : "", kNameWidth, true);
      text += (i == 0 ? paint.dim(name) : name) + lines[i];
      text += command && i + 1 < lines.size() ? " \\\n" : "\n";
    }
  }
  return text;
}

std::string journey_tables(const Report& report, const Paint& paint) {
  std::string text;
  for (const std::vector<ReportRow>& rows : by_problem(report.rows)) {
    text += paint.bold(report.suite) + "  " + problem_text(report, rows.front().bench.problem) +
            "\n\n" + paint.bold(title_line(have_twin(rows))) + "\n";
    for (const ReportRow& row : rows) text += row_lines(row.bench, rows, paint);
    text += "\n";
    text += render_kernels(rows);
    if (rows.back().bench.problem == report.rows.back().bench.problem) {
      text += footer_lines(footers(report, rows), paint);
    }
  }
  return text;
}

// --- the scale table: one line per token count, one column per level -----------------------------

std::string scale_cell(const BenchRow& row) {
  switch (row.status) {
    case RowStatus::kOk:
      return format_microseconds(row.median_us);
    case RowStatus::kSkipped:
      return "skipped";
    case RowStatus::kOutOfMemory: {
      const double gib = static_cast<double>(row.bytes_needed) / (1 << 30);
      return gib < 1 ? "OOM <1G" : fmt::format("OOM {:.0f}G", gib);
    }
    case RowStatus::kFailed:
      return "FAILED";
    case RowStatus::kTimeout:
      return "timeout";
  }
  return {};
}

std::string scale_block(const Report& report, const std::vector<LevelInfo>& levels,
                        std::string (*cell_of)(const BenchRow&), const Paint& paint) {
  constexpr std::size_t kTokensWidth = 8;
  const std::size_t width =
      std::min<std::size_t>(13, (kWidth - kTokensWidth) / std::max<std::size_t>(1, levels.size()));
  std::string text = pad("tokens", kTokensWidth, false);
  for (const LevelInfo& level : levels) text += pad(level.name, width, false);
  text = paint.bold(text) + "\n";
  for (const std::vector<ReportRow>& rows : by_problem(report.rows)) {
    text += pad(fmt::format("{}", rows.front().bench.problem.shape.tokens), kTokensWidth, false);
    for (const LevelInfo& level : levels) {
      const auto row = std::find_if(rows.begin(), rows.end(), [&](const ReportRow& candidate) {
        return candidate.bench.level.name == level.name;
      });
      text += pad(row == rows.end() ? "-" : cell_of(row->bench), width, false);
    }
    text += "\n";
  }
  return text;
}

/// One line per level and status: the smallest problem that it fails on.
std::vector<Footer> failures(const Report& report) {
  std::vector<Footer> notes;
  std::set<std::string> said;
  for (const ReportRow& row : report.rows) {
    if (row.bench.status == RowStatus::kOk) continue;
    const std::string key = fmt::format("{} {}", row.bench.level.name, name_of(row.bench.status));
    if (!said.insert(key).second) continue;
    notes.push_back({"note", fmt::format("{} from T={}: {}", row.bench.level.name,
                                         row.bench.problem.shape.tokens, status_text(row.bench))});
  }
  return notes;
}

std::string scale_tables(const Report& report, const Paint& paint) {
  const std::vector<LevelInfo> levels = levels_of(report);
  std::vector<Footer> notes = failures(report);
  const Problem& problem = report.rows.front().bench.problem;
  std::string text = fmt::format(
      "{}  {}{} {}  H={} I={} E={} K={}{}  skew {}  seed {}\n\n", paint.bold(report.suite),
      source_text(report), name_of(report.backend), name_of(problem.dtype), problem.shape.hidden,
      problem.shape.intermediate, problem.shape.experts, problem.shape.top_k, block_text(problem),
      report.skew, report.seed);
  text += paint.dim("median time of a forward") + "\n";
  text += scale_block(report, levels, scale_cell, paint) + "\n";
  const bool of_twin = have_twin(report.rows);
  text += paint.dim(fmt::format("share of the {}", share_title(of_twin))) + "\n";
  const auto share = of_twin ? [](const BenchRow& row) { return share_cell(row, true); }
                             : [](const BenchRow& row) { return share_cell(row, false); };
  text += scale_block(report, levels, share, paint) + "\n";
  if (const std::string gains = render_scale_gains(report, kWidth); !gains.empty()) {
    text += paint.dim("gain over the level before; ~ is not distinguishable from noise") + "\n" +
            gains + "\n";
  }
  for (const Footer& footer : footers(report, {})) notes.push_back(footer);
  return text + footer_lines(notes, paint);
}

std::string decode_tables(const Report& report, const Paint& paint) {
  const Problem& problem = report.rows.front().bench.problem;
  std::string text =
      fmt::format("{}  {}{} {}  H={} I={} E={} K={}  skew {}  seed {}\n\n",
                  paint.bold(report.suite), source_text(report), name_of(report.backend),
                  name_of(problem.dtype), problem.shape.hidden, problem.shape.intermediate,
                  problem.shape.experts, problem.shape.top_k, report.skew, report.seed);
  text += render_decode(report, kWidth);
  std::vector<Footer> notes = failures(report);
  if (const std::string floor = stream_floor_text(report); !floor.empty()) {
    notes.push_back({"floor", floor});
  }
  if (const std::string choices = choices_text(report); !choices.empty()) {
    notes.push_back({"auto", choices});
  }
  for (const Footer& footer : footers(report, {})) notes.push_back(footer);
  return text + footer_lines(notes, paint);
}

std::string myth_tables(const Report& report, const Paint& paint) {
  const Problem& problem = report.rows.front().bench.problem;
  std::string text =
      fmt::format("{}  {} {}  H={} I={} E={} K={}{}  skew {}  seed {}\n\n",
                  paint.bold(report.suite), name_of(report.backend), name_of(problem.dtype),
                  problem.shape.hidden, problem.shape.intermediate, problem.shape.experts,
                  problem.shape.top_k, block_text(problem), report.skew, report.seed);
  text += render_myths(report.myths, kWidth) + "\n";
  return text + footer_lines(footers(report, {}), paint);
}

}  // namespace

std::string render_table(const Report& report, bool color) {
  const Paint paint(color);
  if (report.rows.empty()) return footer_lines(footers(report, {}), paint);
  if (report.suite == "moe_myths") return myth_tables(report, paint);
  if (report.suite == "moe_decode") return decode_tables(report, paint);
  return report.suite == "moe_scale" ? scale_tables(report, paint) : journey_tables(report, paint);
}

}  // namespace moe::report
