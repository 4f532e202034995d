// Contests between candidates of known times and noise.
#include "core/contest.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "core/rng.h"

namespace moe {
namespace {

/// Times with uniform noise, the same for every run of a seed.
class Clockwork {
 public:
  Clockwork(std::vector<double> times, double noise, std::uint64_t seed)
      : times_(std::move(times)), noise_(noise), seed_(seed) {}
  [[nodiscard]] ContestOptions options(int most_samples = 1 << 30) {
    return {.candidates = times_.size(),
            .sample =
                [this](std::size_t i) {
                  ++samples_[i];
                  const double unit =
                      static_cast<double>(random_bits(seed_, 0, count_++) >> 11) * 0x1p-53;
                  return times_[i] * (1 + noise_ * (2 * unit - 1));
                },
            .out_of_time = [this, most_samples] { return count_ >= most_samples; }};
  }
  std::map<std::size_t, int> samples_;
  int count_ = 0;

 private:
  std::vector<double> times_;
  double noise_;
  std::uint64_t seed_;
};

TEST(Contest, KeepsAFasterCandidateAndReportsItsGain) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    Clockwork clockwork({100, 130, 90, 95, 100}, 0.01, seed);
    const ContestResult result = hold_contest(clockwork.options());
    EXPECT_EQ(result.winner, 2U) << seed;
    EXPECT_TRUE(result.complete);
    EXPECT_NEAR(result.gain, 100.0 / 90, 0.02);
    EXPECT_NEAR(result.standard, 100, 1);
    EXPECT_NEAR(result.confirmed, 90, 1);
    EXPECT_LE(result.noise, 0.02);
  }
}

TEST(Contest, TheStandardStaysWhereGainsAreNoise) {
  // 24 candidates, none better than the standard by more than least_gain: with 4 % of noise some look it.
  int faster_in_the_rounds = 0;
  int kept = 0;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    std::vector<double> times(25, 100);
    times[3] = 99.6;
    Clockwork clockwork(times, 0.04, seed);
    const ContestResult result = hold_contest(clockwork.options());
    kept += result.winner != 0 ? 1 : 0;
    EXPECT_TRUE(result.complete);
    faster_in_the_rounds += result.fastest != 0 ? 1 : 0;
  }
  EXPECT_LE(kept, 2) << "of an interval of 95 %, one side of which is a gain";
  EXPECT_GE(faster_in_the_rounds, 40) << "the rounds alone would have chosen by noise";
}

TEST(Contest, ThoseBehindLeaveEarlyAndTheStandardNever) {
  Clockwork clockwork({200, 100, 150, 107, 100.5}, 0, 1);
  const ContestResult result = hold_contest(clockwork.options());
  EXPECT_EQ(result.winner, 1U);
  EXPECT_EQ(result.rounds[2], 1);
  EXPECT_EQ(result.rounds[3], 4);
  EXPECT_EQ(result.rounds[4], 9);
  EXPECT_EQ(result.rounds[0], 9);
  EXPECT_EQ(result.medians, (std::vector<double>{200, 100, 150, 107, 100.5}));
}

TEST(Contest, TimesThatAreNoNumbersDoNotWin) {
  Clockwork clockwork({100, std::nan(""), 90}, 0, 1);
  EXPECT_EQ(hold_contest(clockwork.options()).winner, 2U);
}

TEST(Contest, OutOfTimeTheStandardStays) {
  // After 0: still one sample of the standard. After 7: in the second round. After 38: while confirming.
  for (const int samples : {0, 7, 38}) {
    Clockwork clockwork({100, 50, 51, 52}, 0, 1);
    const ContestResult result = hold_contest(clockwork.options(samples));
    EXPECT_EQ(result.winner, 0U) << samples;
    EXPECT_FALSE(result.complete) << samples;
    EXPECT_GT(result.medians[0], 0) << samples;
    EXPECT_LE(clockwork.count_, samples + 3) << samples;
  }
}

TEST(Contest, OfOneIsItsOwn) {
  Clockwork clockwork({100}, 0, 1);
  const ContestResult result = hold_contest(clockwork.options());
  EXPECT_EQ(result.winner, 0U);
  EXPECT_TRUE(result.complete);
  EXPECT_EQ(result.medians, std::vector<double>{100});
}

}  // namespace
}  // namespace moe
