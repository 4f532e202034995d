#include "bench/point.h"

#include <algorithm>
#include <array>
#include <utility>

#include "bench/statistics.h"

namespace moe {
namespace {

/// Adds what follows from the samples and the ceilings.
void derive(BenchRow& row, const std::vector<double>& microseconds, const Ceilings& ceilings) {
  row.samples = static_cast<int>(microseconds.size());
  if (microseconds.empty()) return;
  row.median_us = median(microseconds);
  row.iqr_us = interquartile_range(microseconds);
  row.min_us = *std::min_element(microseconds.begin(), microseconds.end());
  row.p95_us = quantile(microseconds, 0.95);
  row.gflops = useful_flops(row.problem.shape) / (row.median_us * 1e3);
  row.tokens_per_s = static_cast<double>(row.problem.shape.tokens) / row.median_us * 1e6;
  if (ceilings.samples == 0) return;
  const Roof roof = roof_of(row.problem, row.active_experts, ceilings);
  row.roof_us = roof.microseconds;
  row.bound = roof.bound;
  row.ceiling_fraction = roof.microseconds / row.median_us;
}

}  // namespace

std::string_view name_of(RowStatus status) {
  constexpr std::array<std::string_view, 5> kNames = {"ok", "skipped", "out_of_memory", "failed",
                                                      "timeout"};
  return kNames[static_cast<std::size_t>(status)];
}

std::string_view name_of(Bound bound) {
  return bound == Bound::kCompute ? "compute" : "memory";
}

void append_rows(const Point& point, const Ceilings& ceilings, BenchResult& result) {
  double noise = 0;
  if (!point.same_first.empty() && !point.same_second.empty()) {
    noise = noise_floor(median_ratio(point.same_first, point.same_second));
    result.noise.push_back({point.same_level, point.problem.shape.tokens, noise});
  }
  const LevelState* previous = nullptr;
  const LevelState* first = nullptr;
  for (const LevelState& state : point.levels) {
    if (!state.decided) continue;
    BenchRow row = state.row;
    row.active_experts = point.active_experts;
    row.max_over_mean = point.max_over_mean;
    derive(row, state.microseconds, ceilings);
    if (row.status == RowStatus::kOk) {
      if (row.level.number == 0) first = &state;
      if (first != nullptr) row.speedup_vs_first = median(first->microseconds) / row.median_us;
      if (previous != nullptr) {
        const MedianRatio gain = median_ratio(previous->microseconds, state.microseconds);
        row.gain_vs_previous = gain.ratio;
        row.distinguishable = distinguishable(gain, noise);
        row.previous = previous->row.level.name;
      }
      previous = &state;
    }
    result.rows.push_back(std::move(row));
  }
}

}  // namespace moe
