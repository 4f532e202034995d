#include "bench/point.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "core/check.h"
#include "core/statistics.h"
#include "core/text.h"

namespace moe {
namespace {

/// The dense twin of the row's problem, and what nothing can beat: the twin or the traffic.
void derive_floor(BenchRow& row, const std::vector<double>& twin_us, const Ceilings& ceilings) {
  if (twin_us.empty()) return;
  row.twin_us = median(twin_us);
  row.twin_fraction = *row.twin_us / row.median_us;
  if (ceilings.samples == 0) return;
  const double traffic_us =
      minimum_bytes(row.problem, row.active_experts) / (ceilings.read_gbs * 1e3);
  row.floor_us = std::max(*row.twin_us, traffic_us);
  row.floor_fraction = *row.floor_us / row.median_us;
}

/// What a forward of a few tokens is measured against: the bytes of the experts that have any.
void derive_stream(BenchRow& row, const Ceilings& ceilings) {
  if (ceilings.samples == 0 || row.active_experts == 0) return;
  row.weight_gbs = active_weight_bytes(row.problem, row.active_experts) / (row.median_us * 1e3);
  row.stream_floor_us = stream_floor_us(row.problem, row.active_experts, ceilings);
  row.stream_fraction = *row.stream_floor_us / row.median_us;
}

void derive_sensors(BenchRow& row, const std::vector<SensorReading>& readings) {
  if (readings.empty()) return;
  std::vector<double> clocks;
  std::vector<double> powers;
  std::vector<double> temperatures;
  std::set<std::string> reasons;
  for (const SensorReading& reading : readings) {
    clocks.push_back(reading.sm_clock_mhz);
    powers.push_back(reading.power_w);
    temperatures.push_back(reading.temperature_c);
    for (std::size_t at = 0; at < reading.throttle.size();) {
      const std::size_t end = std::min(reading.throttle.find(", ", at), reading.throttle.size());
      reasons.insert(reading.throttle.substr(at, end - at));
      at = end + 2;
    }
  }
  row.sm_clock_mhz = static_cast<int>(median(clocks));
  row.power_w = median(powers);
  row.temperature_c = static_cast<int>(median(temperatures));
  std::string text;
  for (const std::string& reason : reasons) text += (text.empty() ? "" : ", ") + reason;
  row.throttle = text.empty() ? "none" : text;
}

/// A median below this share of what the hardware needs at least is no measurement of the layer. Not closer
/// to 1: another program may have slowed the probes down, and not the level.
constexpr double kLeastPlausible = 0.5;

/// The work of a row in the least time, at the highest rates that were measured. Reading memory counts where
/// the caches were emptied: else the weights may lie in them.
double least_us(const BenchRow& row, const Ceilings& ceilings) {
  const double peak = std::max(
      {ceilings.fp32_gflops, ceilings.bf16_gflops.value_or(0), ceilings.fp8_gflops.value_or(0)});
  const double compute = useful_flops(row.problem) / (peak * 1e3);
  if (row.cache == Cache::kHot) return compute;
  return std::max(compute,
                  minimum_bytes(row.problem, row.active_experts) / (ceilings.read_gbs * 1e3));
}

void check_plausible(BenchRow& row, const Ceilings& ceilings) {
  const double least = least_us(row, ceilings);
  if (row.status != RowStatus::kOk || !(row.median_us < kLeastPlausible * least)) return;
  row.status = RowStatus::kFailed;
  row.verified = false;
  row.reason = fmt::format(
      "a median of {} is below half of the {} that its arithmetic{} takes at the rates measured "
      "beside it: the "
      "clock did not see the work",
      format_microseconds(row.median_us), format_microseconds(least),
      row.cache == Cache::kHot ? "" : " or reading it from memory");
}

/// Adds what follows from the samples and the ceilings.
void derive(BenchRow& row, const RowState& state, const std::vector<double>& twin_us,
            const Ceilings& ceilings) {
  const std::vector<double>& microseconds = state.microseconds;
  row.samples = static_cast<int>(microseconds.size());
  row.sample_us = microseconds;
  if (microseconds.empty()) return;
  row.median_us = median(microseconds);
  row.iqr_us = interquartile_range(microseconds);
  row.min_us = *std::min_element(microseconds.begin(), microseconds.end());
  row.p95_us = quantile(microseconds, 0.95);
  row.gflops = useful_flops(row.problem) / (row.median_us * 1e3);
  row.tokens_per_s = static_cast<double>(row.problem.shape.tokens) / row.median_us * 1e6;
  derive_floor(row, twin_us, ceilings);
  derive_stream(row, ceilings);
  derive_sensors(row, state.readings);
  if (ceilings.samples == 0) return;
  const Roof roof = roof_of(row.problem, row.active_experts, ceilings);
  row.roof_us = roof.microseconds;
  row.bound = roof.bound;
  row.ceiling_fraction = roof.microseconds / row.median_us;
  check_plausible(row, ceilings);
}

/// One row of a level for each combination of cache and launch that was asked for.
struct Measured {
  const RowState* state = nullptr;
  Launch asked = Launch::kAuto;
};

/// The row to compare `row` with: of the highest level below it (of a variant: of its own level) in
/// the same state of the caches, and of those the one that was asked for the same launches, if there
/// is one. Never that of a variant.
const RowState* row_before(const std::vector<Measured>& measured, const BenchRow& row,
                           Launch asked) {
  const Measured* best = nullptr;
  for (const Measured& candidate : measured) {
    const BenchRow& other = candidate.state->row;
    const int highest = row.level.variant ? row.level.number : row.level.number - 1;
    if (other.cache != row.cache || other.level.number > highest || other.level.variant) continue;
    const bool higher = best == nullptr || other.level.number > best->state->row.level.number;
    const bool same_launch = candidate.asked == asked || best == nullptr || best->asked != asked;
    if (higher || (other.level.number == best->state->row.level.number && same_launch)) {
      best = &candidate;
    }
  }
  return best == nullptr ? nullptr : best->state;
}

/// The row of level 0 in the same state of the caches; the row itself when it is one.
const RowState* first_row(const std::vector<Measured>& measured, const RowState& own) {
  if (own.row.level.number == 0 && !own.row.level.variant) return &own;
  for (const Measured& candidate : measured) {
    const BenchRow& other = candidate.state->row;
    if (other.level.number == 0 && !other.level.variant && other.cache == own.row.cache) {
      return candidate.state;
    }
  }
  return nullptr;
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
  if (!point.same.first.empty() && !point.same.second.empty()) {
    noise = noise_floor(median_ratio(point.same.first, point.same.second));
    result.noise.push_back(point.same.of);
    result.noise.back().relative = noise;
  }
  std::vector<Measured> measured;
  for (const LevelState& level : point.levels) {
    for (const RowState& state : level.rows) {
      if (!state.decided) continue;
      BenchRow row = state.row;
      row.active_experts = point.active_experts;
      row.max_over_mean = point.max_over_mean;
      row.expert_load = point.expert_load;
      derive(row, state, point.twin_us[static_cast<std::size_t>(row.cache)], ceilings);
      if (row.status == RowStatus::kOk) {
        if (const RowState* first = first_row(measured, state)) {
          row.speedup_vs_first = median(first->microseconds) / row.median_us;
        }
        if (const RowState* previous = row_before(measured, row, level.options.launch)) {
          const MedianRatio gain = median_ratio(previous->microseconds, state.microseconds);
          row.gain_vs_previous = gain.ratio;
          row.distinguishable = distinguishable(gain, noise);
          row.previous = previous->row.level.name;
        }
        measured.push_back({&state, level.options.launch});
      }
      result.rows.push_back(std::move(row));
    }
  }
}

}  // namespace moe
