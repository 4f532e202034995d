// A contest of candidates by time: all of them meet in every round, so that a change of clocks meets all;
// those that are behind leave; what wins meets the standard choice again in fresh samples.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

namespace moe {

struct ContestOptions {
  std::size_t candidates = 0;  ///< at least 1; number 0 is the standard choice and never leaves
  /// Runs a candidate once and returns its time, in any unit.
  std::function<double(std::size_t candidate)> sample;
  /// Asked before each sample; once it says true no more are taken.
  std::function<bool()> out_of_time;
  /// Gains below this are not kept: a choice that other noise would have turned round is worth nothing.
  double least_gain = 0.01;
};

struct ContestResult {
  std::size_t winner = 0;       ///< what to use; 0 unless a gain was confirmed
  std::size_t fastest = 0;      ///< of the rounds, before it was confirmed or not
  bool complete = false;        ///< every candidate was timed, and the fastest confirmed or refused
  std::vector<double> medians;  ///< of the rounds, by candidate; 0: not timed
  std::vector<int> rounds;      ///< in which a candidate was timed
  // Fresh samples of the standard and the fastest, in turns; 0 where they are the same or time ended.
  double standard = 0;   ///< median
  double confirmed = 0;  ///< median of `fastest`
  double gain = 1;       ///< standard / confirmed
  /// What two series of the standard differ by in the same rounds; a gain has to exceed it, and its 95 %
  /// interval has to leave out 1.
  double noise = 0;
};

[[nodiscard]] ContestResult hold_contest(const ContestOptions& options);

}  // namespace moe
