// Chooses level 8's plan for each bucket of tokens by timing all candidates against each other.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cuda/ops/persistent_choices.h"
#include "moe/layer.h"

namespace moe::cuda {

struct PersistentContest {
  Problem problem;
  DeviceFacts facts;
  std::string routing;  ///< that `prepare` gives the rows; part of the choice
  /// Called before the samples of a bucket: its first `tokens` tokens are those that count now.
  std::function<void(std::int64_t tokens)> prepare;
  /// Microseconds of everything behind the routing under a plan.
  std::function<double(const PersistentPlan& plan, std::int64_t tokens)> sample;
};

struct TunedBucket {
  PersistentChoice choice = {};
  std::vector<TimedCandidate> timings = {};  ///< the heuristic first
  std::vector<std::string> pruned = {};
};

/// `buckets` in the order given, within about `seconds`: each may use half of the time that is left, the
/// last one all of it. Those that time does not reach get the heuristic, not complete.
[[nodiscard]] std::vector<TunedBucket> tune_persistent(const PersistentContest& contest,
                                                       const std::vector<std::int64_t>& buckets,
                                                       double seconds);

}  // namespace moe::cuda
