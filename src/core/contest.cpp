#include "core/contest.h"

#include <algorithm>
#include <limits>

#include "core/check.h"
#include "core/statistics.h"

namespace moe {
namespace {

/// After so many rounds a candidate whose median is behind the best by more than `limit` leaves.
struct Cut {
  int rounds;
  double limit;
};
constexpr Cut kCuts[] = {{1, 0.20}, {2, 0.08}, {4, 0.04}, {6, 0.02}};
constexpr int kRounds = 9;
constexpr int kConfirmingRounds = 15;

}  // namespace

ContestResult hold_contest(const ContestOptions& options) {
  MOE_INTERNAL_CHECK(options.candidates >= 1, "a contest of {} candidates", options.candidates);
  std::vector<std::vector<double>> times(options.candidates);
  std::vector<bool> in(options.candidates, true);
  ContestResult result;
  result.medians.resize(options.candidates);
  const auto fastest = [&] {
    std::size_t best = 0;
    for (std::size_t i = 1; i < times.size(); ++i) {
      if (in[i] && !times[i].empty() && median(times[i]) < median(times[best])) best = i;
    }
    return best;
  };

  bool stopped = false;
  for (int round = 0; round < kRounds && !stopped; ++round) {
    for (std::size_t i = 0; i < times.size() && !stopped; ++i) {
      if (!in[i]) continue;
      // The first sample is taken in any case: a result has a time of the standard.
      stopped = !(round == 0 && i == 0) && options.out_of_time();
      if (!stopped) times[i].push_back(options.sample(i));
    }
    if (stopped) break;
    const double best = median(times[fastest()]);
    for (const Cut& cut : kCuts) {
      if (round + 1 != cut.rounds) continue;
      for (std::size_t i = 1; i < times.size(); ++i) {
        if (in[i] && !(median(times[i]) <= best * (1 + cut.limit))) in[i] = false;
      }
    }
    if (std::count(in.begin(), in.end(), true) == 1) break;
  }
  result.fastest = fastest();
  for (std::size_t i = 0; i < times.size(); ++i) {
    result.medians[i] = times[i].empty() ? 0 : median(times[i]);
    result.rounds.push_back(static_cast<int>(times[i].size()));
  }
  if (stopped) return result;
  if (result.fastest == 0) {
    result.complete = true;
    return result;
  }

  std::vector<double> standard;
  std::vector<double> confirmed;
  std::vector<double> again;
  for (int round = 0; round < kConfirmingRounds; ++round) {
    if (options.out_of_time()) return result;
    standard.push_back(options.sample(0));
    confirmed.push_back(options.sample(result.fastest));
    again.push_back(options.sample(0));
  }
  const MedianRatio gain = median_ratio(standard, confirmed);
  result.standard = median(standard);
  result.confirmed = median(confirmed);
  result.gain = gain.ratio;
  result.noise = noise_floor(median_ratio(standard, again));
  result.complete = true;
  if (gain.ratio > 1 + options.least_gain && distinguishable(gain, result.noise)) {
    result.winner = result.fastest;
  }
  return result;
}

}  // namespace moe
