// What is known of one problem of a run while it is measured, and the rows that follow from it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/instrument.h"
#include "moe/bench.h"

namespace moe {

/// One row and what it is made of.
struct RowState {
  BenchRow row;
  bool decided = false;  // result() shows it
  std::vector<double> microseconds;
  std::vector<SensorReading> readings;
};

/// One level with one kind of launch on one problem: one layer, and a row per state of the caches.
struct LevelState {
  LayerOptions options;
  std::vector<RowState> rows;
  double spent_seconds = 0;
  [[nodiscard]] const std::string& name() const { return rows.front().row.level.name; }
};

/// Two series of one row: A/A.
struct SameSeries {
  NoiseFloor of;  // all but `relative`, which follows from the samples
  std::vector<double> first, second;
};

/// One problem and its levels.
struct Point {
  Problem problem;
  std::vector<LevelState> levels;
  ProbeSamples probes;
  std::array<std::vector<double>, 3> twin_us;  // of the dense twin, by Cache
  SameSeries same;
  std::int64_t active_experts = 0;
  double max_over_mean = 0;
  std::vector<std::int64_t> expert_load;
};

/// Appends the decided rows of a problem, with what follows from their samples, from each other and
/// from the ceilings.
void append_rows(const Point& point, const Ceilings& ceilings, BenchResult& result);

}  // namespace moe
