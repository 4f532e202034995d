// The verdicts of -t moe_myths, below one another: claim, times at each number of tokens, cause.
#include <fmt/core.h>

#include <algorithm>

#include "core/text.h"
#include "report/cells.h"

namespace moe::report {
namespace {

std::string side_text(const LevelLaunch& side, const LevelLaunch& other) {
  return side.level == other.level ? fmt::format("{} ({})", side.level, name_of(side.launch))
                                   : side.level;
}

std::string gain_text(const MythResult& result) {
  return fmt::format("{}{:.2f}x", result.distinguishable ? "" : "~", result.gain);
}

}  // namespace

std::string render_myths(const std::vector<MythResult>& myths, std::size_t width) {
  constexpr std::size_t kIndent = 10;
  std::string text;
  std::string claim;
  for (const MythResult& result : myths) {
    if (result.myth.claim != claim) {
      claim = result.myth.claim;
      text += fmt::format("{}\"{}\"\n  {} -> {}\n{:>8}  {:>10}  {:>10}  {:>8}  {:>6}  {}\n",
                          text.empty() ? "" : "\n", claim,
                          side_text(result.myth.baseline, result.myth.changed),
                          side_text(result.myth.changed, result.myth.baseline), "tokens", "without",
                          "with", "gain", "noise", "the claim");
    }
    std::vector<std::string> words;
    if (result.verdict == MythVerdict::kNotMeasured) {
      text += fmt::format("{:>8}  {}\n", result.tokens, name_of(result.verdict));
      words = wrap(result.reason, width - kIndent);
    } else {
      text += fmt::format("{:>8}  {:>10}  {:>10}  {:>8}  {:>6}  {}\n", result.tokens,
                          format_microseconds(result.baseline_us),
                          format_microseconds(result.changed_us), gain_text(result),
                          fmt::format("{:.1f} %", 100 * result.noise), name_of(result.verdict));
      words = wrap(result.cause, width - kIndent);
    }
    for (const std::string& line : words) text += std::string(kIndent, ' ') + line + "\n";
  }
  return text;
}

std::string markdown_myths(const std::vector<MythResult>& myths) {
  std::string text =
      "| claim | tokens | without | with | gain | noise | the claim | cause |\n"
      "|---|---:|---:|---:|---:|---:|---|---|\n";
  for (const MythResult& result : myths) {
    const std::string claim = fmt::format("{}: {} -> {}", result.myth.claim,
                                          side_text(result.myth.baseline, result.myth.changed),
                                          side_text(result.myth.changed, result.myth.baseline));
    if (result.verdict == MythVerdict::kNotMeasured) {
      text += fmt::format("| {} | {} | | | | | {} | {} |\n", claim, result.tokens,
                          name_of(result.verdict), result.reason);
      continue;
    }
    text +=
        fmt::format("| {} | {} | {} | {} | {} | {:.1f} % | {} | {} |\n", claim, result.tokens,
                    format_microseconds(result.baseline_us), format_microseconds(result.changed_us),
                    gain_text(result), 100 * result.noise, name_of(result.verdict), result.cause);
  }
  return text;
}

}  // namespace moe::report
