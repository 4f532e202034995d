// What is known of one problem of a run while it is measured, and the rows that follow from it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/probes.h"
#include "moe/bench.h"

namespace moe {

/// One level on one problem.
struct LevelState {
  BenchRow row;
  LayerOptions options;
  bool decided = false;  // result() shows it
  double spent_seconds = 0;
  std::vector<double> microseconds;
};

/// One problem and its levels.
struct Point {
  Problem problem;
  std::vector<LevelState> levels;
  ProbeSamples probes;
  std::vector<double> same_first, same_second;  // A/A: two series of one level
  std::string same_level;
  std::int64_t active_experts = 0;
  double max_over_mean = 0;
};

/// Appends the decided rows of a problem, with what follows from their samples, from each other and
/// from the ceilings.
void append_rows(const Point& point, const Ceilings& ceilings, BenchResult& result);

}  // namespace moe
