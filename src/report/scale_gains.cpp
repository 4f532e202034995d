// "Scale reveals truth": what each level gains over the one before at few and at many tokens, side by
// side, from the rows of one run.
#include <fmt/core.h>

#include <algorithm>
#include <set>

#include "report/cells.h"

namespace moe::report {
namespace {

// The lab tells its story at 2K tokens and shows what is left of it at 8K.
constexpr std::int64_t kFewTokens = 2048;
constexpr std::int64_t kManyTokens = 8192;
constexpr std::size_t kLevelWidth = 16;
constexpr std::size_t kGainWidth = 26;

std::string gain_text(const ReportRow* row) {
  if (row == nullptr || row->bench.status != RowStatus::kOk) {
    return row == nullptr ? "-" : std::string(name_of(row->bench.status));
  }
  if (!row->bench.gain_vs_previous) return "-";
  return fmt::format("{} over {}", change_cell(row->bench), row->bench.previous);
}

const ReportRow* find_row(const Report& report, const std::string& level, std::int64_t tokens) {
  for (const ReportRow& row : report.rows) {
    if (row.bench.level.name == level && row.bench.problem.shape.tokens == tokens) return &row;
  }
  return nullptr;
}

}  // namespace

std::pair<std::int64_t, std::int64_t> compared_tokens(const Report& report) {
  std::set<std::int64_t> tokens;
  for (const ReportRow& row : report.rows) tokens.insert(row.bench.problem.shape.tokens);
  if (tokens.empty()) return {0, 0};
  if (tokens.contains(kFewTokens) && tokens.contains(kManyTokens)) {
    return {kFewTokens, kManyTokens};
  }
  return {*tokens.begin(), *tokens.rbegin()};
}

std::string render_scale_gains(const Report& report, std::size_t width) {
  const auto [few, many] = compared_tokens(report);
  if (few == many) return {};
  std::string text =
      fmt::format("{:<{}}{:<{}}{:<{}}{}\n", "level", kLevelWidth, fmt::format("at T={}", few),
                  kGainWidth, fmt::format("at T={}", many), kGainWidth, "why");
  for (const LevelInfo& level : levels_of(report)) {
    const std::string head =
        fmt::format("{:<{}}{:<{}}{:<{}}", fmt::format("{} {}", level.number, level.name),
                    kLevelWidth, gain_text(find_row(report, level.name, few)), kGainWidth,
                    gain_text(find_row(report, level.name, many)), kGainWidth);
    const auto reason = report.scale_reasons.find(level.name);
    const std::vector<std::string> words =
        wrap(reason == report.scale_reasons.end() ? "" : reason->second, width - head.size());
    for (std::size_t i = 0; i < words.size(); ++i) {
      std::string line = (i == 0 ? head : std::string(head.size(), ' ')) + words[i];
      line.erase(line.find_last_not_of(' ') + 1);
      text += line + "\n";
    }
  }
  return text;
}

}  // namespace moe::report
