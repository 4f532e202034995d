#include "bench/myths.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "core/check.h"
#include "core/statistics.h"
#include "core/text.h"

namespace moe {
namespace {

/// Parts of a difference that are smaller than this, compared with the largest, are not named.
constexpr double kWorthNaming = 0.05;
constexpr std::size_t kMostNamed = 4;

bool same(const LevelLaunch& a, const LevelLaunch& b) {
  return a.level == b.level && a.launch == b.launch;
}

/// The library has a kernel for every range of rows; what matters is that it is a GEMM.
std::string group_of(const std::string& kernel) {
  for (const char* mark : {"nvjet", "xmma", "cutlass", "cublas", "gemm", "splitK"}) {
    if (kernel.find(mark) != std::string::npos) return "the GEMMs";
  }
  return fmt::format("`{}`", kernel.substr(0, kernel.find('<')));
}

std::string signed_time(double microseconds) {
  return fmt::format("{}{}", microseconds < 0 ? "-" : "+",
                     format_microseconds(std::abs(microseconds)));
}

/// The row of a series, where it was asked for as such.
const BenchRow* find_row(const BenchResult& result, const LevelLaunch& series,
                         std::int64_t tokens) {
  const BenchRow* any = nullptr;
  for (const BenchRow& row : result.rows) {
    if (row.level.name != series.level || row.problem.shape.tokens != tokens) continue;
    if (series.launch == Launch::kAuto || row.launch == series.launch) return &row;
    any = &row;
  }
  // A row without samples says what was asked for, or what it could not do.
  return any != nullptr && any->samples == 0 ? any : nullptr;
}

std::string why_without_time(const BenchRow* row, const LevelLaunch& series) {
  if (row == nullptr) return fmt::format("{} was not run", series.level);
  return fmt::format("{}: {}", row->level.name,
                     row->reason.empty() ? std::string(name_of(row->status)) : row->reason);
}

MythResult judge(const Myth& myth, std::int64_t tokens, const BenchResult& result) {
  MythResult judged;
  judged.myth = myth;
  judged.tokens = tokens;
  const BenchRow* baseline = find_row(result, myth.baseline, tokens);
  const BenchRow* changed = find_row(result, myth.changed, tokens);
  for (const auto& [row, series] :
       {std::pair{baseline, &myth.baseline}, std::pair{changed, &myth.changed}}) {
    if (row != nullptr && row->status == RowStatus::kOk && !row->sample_us.empty()) continue;
    judged.reason = why_without_time(row, *series);
    return judged;
  }
  for (const NoiseFloor& noise : result.noise) {
    if (noise.tokens == tokens) judged.noise = noise.relative;
  }
  const MedianRatio gain = median_ratio(baseline->sample_us, changed->sample_us);
  judged.baseline_us = baseline->median_us;
  judged.changed_us = changed->median_us;
  judged.gain = gain.ratio;
  judged.gain_low = gain.low;
  judged.gain_high = gain.high;
  judged.distinguishable = distinguishable(gain, judged.noise);
  const bool faster = judged.distinguishable && gain.ratio > 1;
  judged.verdict = faster == myth.claims_gain ? MythVerdict::kHolds : MythVerdict::kDoesNotHold;
  if (baseline->kernels && changed->kernels) {
    judged.cause = explain_difference(*baseline->kernels, *changed->kernels);
  }
  return judged;
}

}  // namespace

const std::vector<Myth>& list_myths() {
  static const std::vector<Myth> myths = {
      {"fp8_converted",
       "FP8 does not help when the weights are converted on the fly",
       false,
       {"grouped", Launch::kEager},
       {"grouped_fp8_converted", Launch::kEager},
       0},
      {"fp8_stored",
       "FP8 helps when the weights are stored in it",
       true,
       {"grouped", Launch::kEager},
       {"grouped_fp8_stored", Launch::kEager},
       0},
      {"fp8_storing",
       "storing the FP8 weights helps against converting them on the fly",
       true,
       {"grouped_fp8_converted", Launch::kEager},
       {"grouped_fp8_stored", Launch::kEager},
       0},
      {"streams",
       "running the experts in several streams does not help",
       false,
       {"grouped", Launch::kEager},
       {"grouped_streams", Launch::kEager},
       0},
      {"swiglu",
       "fusing SwiGLU alone does not help",
       false,
       {"grouped_unfused", Launch::kEager},
       {"grouped", Launch::kEager},
       0},
      {"specialised",
       "compiling the kernels around the loop over experts does not help",
       false,
       {"grouped", Launch::kEager},
       {"grouped_specialised", Launch::kEager},
       0},
      {"graphs",
       "a CUDA graph does not help at 8192 tokens",
       false,
       {"graphs", Launch::kEager},
       {"graphs", Launch::kGraph},
       8192},
  };
  return myths;
}

const Myth& find_myth(std::string_view name) {
  std::vector<std::string> names;
  for (const Myth& myth : list_myths()) {
    if (myth.name == name) return myth;
    names.push_back(myth.name);
  }
  fail(ErrorCode::kInvalidArgument, "unknown myth '{}'; did you mean '{}'?", name,
       nearest_match(std::string(name), names));
}

std::vector<LevelLaunch> series_of(const std::vector<Myth>& myths) {
  std::vector<LevelLaunch> series;
  for (const Myth& myth : myths) {
    for (const LevelLaunch& side : {myth.baseline, myth.changed}) {
      const bool known = std::any_of(series.begin(), series.end(),
                                     [&](const LevelLaunch& other) { return same(other, side); });
      if (!known) series.push_back(side);
    }
  }
  return series;
}

std::string_view name_of(MythVerdict verdict) {
  constexpr std::array<std::string_view, 3> kNames = {"holds", "does not hold", "not measured"};
  return kNames[static_cast<std::size_t>(verdict)];
}

std::vector<MythResult> judge_myths(const std::vector<Myth>& myths, const BenchResult& result) {
  std::vector<std::int64_t> counts;
  for (const BenchRow& row : result.rows) {
    const std::int64_t tokens = row.problem.shape.tokens;
    if (std::find(counts.begin(), counts.end(), tokens) == counts.end()) counts.push_back(tokens);
  }
  std::vector<MythResult> judged;
  for (const Myth& myth : myths) {
    const bool at_its_own = std::find(counts.begin(), counts.end(), myth.tokens) != counts.end();
    for (const std::int64_t tokens : counts) {
      if (!at_its_own || tokens == myth.tokens) judged.push_back(judge(myth, tokens, result));
    }
  }
  return judged;
}

std::string explain_difference(const KernelProfile& baseline, const KernelProfile& changed) {
  std::map<std::string, double> parts;
  for (const KernelTime& kernel : changed.kernels)
    parts[group_of(kernel.name)] += kernel.microseconds;
  for (const KernelTime& kernel : baseline.kernels)
    parts[group_of(kernel.name)] -= kernel.microseconds;
  // span = kernels - what of them overlaps + gaps
  parts["gaps"] += changed.gap_us - baseline.gap_us;
  parts["overlap"] -= changed.overlap_us - baseline.overlap_us;
  std::vector<std::pair<std::string, double>> sorted(parts.begin(), parts.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return std::abs(a.second) > std::abs(b.second);
  });
  std::string text =
      fmt::format("on the device {}", signed_time(changed.span_us - baseline.span_us));
  std::size_t named = 0;
  for (const auto& [name, microseconds] : sorted) {
    if (named == kMostNamed || microseconds == 0 ||
        std::abs(microseconds) < kWorthNaming * std::abs(sorted.front().second)) {
      break;
    }
    text += fmt::format("{} {} in {}", named == 0 ? ":" : ",", signed_time(microseconds), name);
    ++named;
  }
  return text +
         fmt::format("; {:.4g} launches instead of {:.4g}", changed.launches, baseline.launches);
}

}  // namespace moe
