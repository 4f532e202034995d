// Tunes a level and shows what that is worth: times of every candidate, whole forwards with and without
// tuning side by side, a second tuning against the first; and the crossover that "auto" goes by.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/crossover.h"
#include "moe/bench.h"
#include "moe/layer.h"

namespace moe {

struct TuneOptions {
  /// Backend, problem, threads, isa, cache; tune_seconds is the budget. `level` "": the highest that chooses
  /// by timing and can run here. `problem.shape.tokens` is the most that a forward brings.
  LayerOptions layer;
  std::vector<std::int64_t>
      tokens;                    ///< where whole forwards are compared, each at most the problem's
  std::string skew = "uniform";  ///< of routing, while tuning and in the forwards that are compared
  std::uint64_t seed = 0;
  bool repeat_check = false;  ///< tunes a second time, into no cache
  std::function<void(const std::string& text)> progress = {};  ///< may be empty
};

/// Whole forwards of one number of tokens, in turns, every output verified.
struct TunedForwards {
  std::int64_t tokens = 0;
  Cache cache = Cache::kHot;
  Launch launch = Launch::kEager;
  int samples = 0;        ///< of each
  double untuned_us = 0;  ///< medians
  double tuned_us = 0;
  std::optional<double> again_us = {};  ///< of the second tuning
  double gain = 1;                      ///< untuned over tuned, and its 95 % interval
  double gain_low = 1;
  double gain_high = 1;
  double error = 0;  ///< the worst of all outputs
  double tolerance_used = 0;
};

struct TuneResult {
  LevelInfo level;
  Problem problem;
  std::optional<DeviceInfo> device = {};
  double budget_seconds = 0;
  // What create() spent in the level without tuning, with it, and with it the second time.
  double untuned_prepare_seconds = 0;
  double prepare_seconds = 0;
  std::optional<double> again_prepare_seconds = {};
  std::string plan = {};
  std::vector<TunedChoice> choices = {};
  std::vector<TunedChoice> again = {};  ///< of the second tuning
  std::vector<TunedForwards> forwards = {};
  std::optional<Crossover> crossover =
      {};  ///< of `few_level` and the tuned one; absent where nothing crosses
  std::string few_level = {};
  std::string crossover_kept = {};  ///< where, or why not
  std::string failure =
      {};  ///< the first output that was wrong, which ends everything; "": none was
};

/// Throws kUnsupported where no level, or not the one asked for, chooses anything by timing.
[[nodiscard]] TuneResult tune(const TuneOptions& options);

}  // namespace moe
