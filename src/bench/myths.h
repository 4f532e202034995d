// What does not help: claims of the lab that this project follows, each a comparison of two levels of
// one run.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "moe/bench.h"

namespace moe {

struct Myth {
  std::string name;      // of the target: moe_myths:NAME
  std::string claim;     // a sentence
  bool claims_gain;      // what it says of `changed`: faster than `baseline`, or not
  LevelLaunch baseline;  // without what the claim is about
  LevelLaunch changed;   // with it
  std::int64_t tokens;   // the claim's; 0: of any number
};
[[nodiscard]] const std::vector<Myth>& list_myths();
/// Throws kInvalidArgument.
[[nodiscard]] const Myth& find_myth(std::string_view name);

/// What a run must time for `myths`.
[[nodiscard]] std::vector<LevelLaunch> series_of(const std::vector<Myth>& myths);

enum class MythVerdict : std::uint8_t { kHolds, kDoesNotHold, kNotMeasured };
[[nodiscard]] std::string_view name_of(
    MythVerdict verdict);  ///< "holds" | "does not hold" | "not measured"

struct MythResult {
  Myth myth;
  std::int64_t tokens = 0;
  MythVerdict verdict = MythVerdict::kNotMeasured;
  std::string reason;      ///< why it was not measured
  double baseline_us = 0;  ///< medians of interleaved forwards
  double changed_us = 0;
  double gain = 1;      ///< baseline over changed
  double gain_low = 1;  ///< 95 % bootstrap interval
  double gain_high = 1;
  double noise = 0;  ///< relative, of the same run at the same tokens (A/A)
  bool distinguishable = false;
  std::string cause;  ///< where the difference is, from the kernels of both; "" without them
};

/// By myth, then tokens. A claim about a certain number of tokens is judged there when the run has it,
/// else at every number of tokens. Rows must have samples of hot or cold caches, not of both.
[[nodiscard]] std::vector<MythResult> judge_myths(const std::vector<Myth>& myths,
                                                  const BenchResult& result);

/// One sentence: what of the time between two profiles changed, kernel by kernel.
[[nodiscard]] std::string explain_difference(const KernelProfile& baseline,
                                             const KernelProfile& changed);

}  // namespace moe
