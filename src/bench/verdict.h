// Whether one row of two results changed: what `moe bench compare` says. docs/benchmarking.md gives the
// reasons for the rules.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/statistics.h"

namespace moe {

/// The times of a row in one result, in microseconds, and what they were measured beside.
struct RowTimes {
  double median_us = 0;
  MedianInterval interval;  ///< of the median
  double fastest_us = 0;
  double noise = 0;  ///< relative, A/A of the same problem; 0 where there was none
  /// How much longer the median took than the fastest forward, relative: what other programs on the
  /// same cores can do to a run. 0 on a GPU.
  double disturbance = 0;
  /// Of the processors' time during that run, taken by other programs: they share caches, and cores that are
  /// threads of one. 0 on a GPU.
  double others = 0;
  /// What the probes of that run found of the machine: the rate that bounds the row (arithmetic or
  /// reading), in any unit; 0 unknown.
  double machine_rate = 0;
  /// All that they found of a CPU, kind by kind in one order: a short forward runs from caches that no probe
  /// measures, and loses more than any of them where a neighbour has a part of these. Empty on a GPU.
  std::vector<double> probe_rates = {};
};

struct CompareLimits {
  double limit = 0.05;   ///< relative change that matters
  double effect = 0.02;  ///< smallest relative change that is called one
  double effect_us = 0;  ///< and smallest absolute one
};

enum class Verdict : std::uint8_t { kSame, kFaster, kSlower, kNoisy };
[[nodiscard]] std::string_view name_of(Verdict verdict);  ///< "SAME", ...

struct Judgement {
  Verdict verdict = Verdict::kNoisy;
  double ratio = 1;    ///< median of the second over that of the first
  double low = 1;      ///< the same of the ends of the intervals that lie closest,
  double high = 1;     ///< and of those that lie farthest apart
  std::string reason;  ///< why it is NOISY; "" otherwise
};

/// SLOWER: the intervals do not touch, and both the median and the fastest forward changed by more
/// than the smallest effect, A/A noise, disturbance and other programs of either run, and what the machine
/// itself lost. FASTER likewise. SAME: a change by limits.limit is excluded. NOISY: all else. NaN anywhere makes it NOISY.
[[nodiscard]] Judgement judge(const RowTimes& first, const RowTimes& second,
                              const CompareLimits& limits);

}  // namespace moe
