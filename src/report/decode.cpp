// -t moe_decode: time, rate and share of the stream floor by tokens and level, as text and as Markdown.
#include <fmt/core.h>

#include <algorithm>
#include <array>

#include "core/text.h"
#include "report/cells.h"

namespace moe::report {
namespace {

constexpr std::size_t kTokensWidth = 7;
constexpr std::size_t kActiveWidth = 8;
constexpr std::size_t kFloorWidth = 10;
constexpr std::size_t kMostLevelWidth = 14;

/// Rows of one state of the caches, in order.
std::vector<std::vector<ReportRow>> by_cache(const std::vector<ReportRow>& rows) {
  std::vector<std::vector<ReportRow>> groups;
  for (const Cache cache : {Cache::kCold, Cache::kDirty, Cache::kHot}) {
    std::vector<ReportRow> group;
    std::copy_if(rows.begin(), rows.end(), std::back_inserter(group),
                 [&](const ReportRow& row) { return row.bench.cache == cache; });
    if (!group.empty()) groups.push_back(std::move(group));
  }
  return groups;
}

const BenchRow* row_of(const std::vector<ReportRow>& rows, const std::string& level) {
  const auto found = std::find_if(rows.begin(), rows.end(), [&](const ReportRow& row) {
    return row.bench.level.name == level;
  });
  return found == rows.end() ? nullptr : &found->bench;
}

/// Any row of a problem that was measured: they share the experts and the floor.
const BenchRow* measured_row(const std::vector<ReportRow>& rows) {
  const auto found = std::find_if(rows.begin(), rows.end(), [](const ReportRow& row) {
    return row.bench.stream_floor_us.has_value();
  });
  return found == rows.end() ? nullptr : &found->bench;
}

bool in_terabytes(const std::vector<ReportRow>& rows) {
  return std::any_of(rows.begin(), rows.end(),
                     [](const ReportRow& row) { return row.bench.weight_gbs.value_or(0) >= 1e3; });
}

std::string unmeasured(const BenchRow& row) {
  std::string words(name_of(row.status));
  std::replace(words.begin(), words.end(), '_', ' ');
  return words;
}

std::string rate_text(double gbs, bool terabytes) {
  return terabytes ? fmt::format("{:.2f}", gbs / 1e3) : fmt::format("{:.1f}", gbs);
}

std::string share_text(double fraction) {
  return fmt::format("{:.0f} %", 100 * fraction);
}

/// What of a measured row a block shows.
enum class Shown : std::uint8_t { kTime, kRate, kShare };

std::string cell(const BenchRow* row, Shown shown, bool terabytes) {
  if (row == nullptr) return "-";
  if (row->status != RowStatus::kOk) return shown == Shown::kTime ? unmeasured(*row) : "-";
  if (shown == Shown::kTime) return format_microseconds(row->median_us);
  if (!row->weight_gbs || !row->stream_fraction) return "-";
  return shown == Shown::kRate ? rate_text(*row->weight_gbs, terabytes)
                               : share_text(*row->stream_fraction);
}

/// One line per token count, one column per level.
std::string block(const std::string& title, const std::vector<ReportRow>& rows,
                  const std::vector<LevelInfo>& levels, Shown shown, std::size_t width) {
  const std::size_t before = kTokensWidth + kActiveWidth + kFloorWidth;
  const std::size_t column =
      std::min(kMostLevelWidth, (width - before) / std::max<std::size_t>(1, levels.size()));
  std::string text = title + "\n";
  text += fmt::format("{:>{}}{:>{}}{:>{}}", "tokens", kTokensWidth, "active", kActiveWidth, "floor",
                      kFloorWidth);
  for (const LevelInfo& level : levels) text += fmt::format("{:>{}}", level.name, column);
  text += "\n";
  const bool terabytes = in_terabytes(rows);
  for (const std::vector<ReportRow>& problem : by_problem(rows)) {
    const BenchRow* const any = measured_row(problem);
    text +=
        fmt::format("{:>{}}{:>{}}{:>{}}", problem.front().bench.problem.shape.tokens, kTokensWidth,
                    any == nullptr ? "-" : std::to_string(any->active_experts), kActiveWidth,
                    any == nullptr ? "-" : format_microseconds(*any->stream_floor_us), kFloorWidth);
    for (const LevelInfo& level : levels) {
      text += fmt::format("{:>{}}", cell(row_of(problem, level.name), shown, terabytes), column);
    }
    text += "\n";
  }
  return text + "\n";
}

}  // namespace

std::string render_decode(const Report& report, std::size_t width) {
  const std::vector<LevelInfo> levels = levels_of(report);
  std::string text;
  for (const std::vector<ReportRow>& rows : by_cache(report.rows)) {
    const std::string conditions = conditions_text(rows);
    text += block(
        fmt::format("median time of a forward{}{}", conditions.empty() ? "" : ", ", conditions),
        rows, levels, Shown::kTime, width);
    text +=
        block(fmt::format("{} of weights of active experts", in_terabytes(rows) ? "TB/s" : "GB/s"),
              rows, levels, Shown::kRate, width);
    text += block("share of the stream floor", rows, levels, Shown::kShare, width);
  }
  return text;
}

std::string markdown_decode(const Report& report) {
  const std::vector<LevelInfo> levels = levels_of(report);
  std::string text;
  for (const std::vector<ReportRow>& rows : by_cache(report.rows)) {
    const bool terabytes = in_terabytes(rows);
    const std::string conditions = conditions_text(rows);
    if (!conditions.empty()) text += conditions + "\n\n";
    text += "| tokens | active experts | floor |";
    for (const LevelInfo& level : levels) text += fmt::format(" {} |", level.name);
    text += "\n|---:|---:|---:|";
    for (std::size_t i = 0; i < levels.size(); ++i) text += "---:|";
    text += "\n";
    for (const std::vector<ReportRow>& problem : by_problem(rows)) {
      const BenchRow* const any = measured_row(problem);
      text += fmt::format("| {} | {} | {} |", problem.front().bench.problem.shape.tokens,
                          any == nullptr ? "-" : std::to_string(any->active_experts),
                          any == nullptr ? "-" : format_microseconds(*any->stream_floor_us));
      for (const LevelInfo& level : levels) {
        const BenchRow* const row = row_of(problem, level.name);
        text += " " + cell(row, Shown::kTime, terabytes);
        if (row != nullptr && row->stream_fraction) {
          text += fmt::format(", {} {}, {}", cell(row, Shown::kRate, terabytes),
                              terabytes ? "TB/s" : "GB/s", cell(row, Shown::kShare, terabytes));
        }
        text += " |";
      }
      text += "\n";
    }
    text += "\n";
  }
  return text;
}

std::string stream_floor_text(const Report& report) {
  if (report.ceilings.samples == 0) return {};
  std::string text = fmt::format("active experts' weights at the read rate ({:.1f} GB/s over all)",
                                 report.ceilings.read_gbs);
  if (report.ceilings.empty_us) {
    text += fmt::format(", and {:.1f} us of an empty kernel", *report.ceilings.empty_us);
  }
  return text;
}

std::string choices_text(const Report& report) {
  std::string text;
  std::string last;
  for (const ReportRow& row : report.rows) {
    if (row.bench.level.name != kAutoLevel || row.bench.status != RowStatus::kOk) continue;
    if (row.bench.level.technique == last) continue;
    last = row.bench.level.technique;
    text += fmt::format("{}{} from T={}", text.empty() ? "" : ", ", last,
                        row.bench.problem.shape.tokens);
  }
  return text;
}

}  // namespace moe::report
