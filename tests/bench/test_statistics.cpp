#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "bench/statistics.h"
#include "core/rng.h"
#include "moe/error.h"

namespace moe {
namespace {

TEST(Statistics, QuantilesOfKnownSamples) {
  EXPECT_DOUBLE_EQ(median({7}), 7);
  EXPECT_DOUBLE_EQ(median({3, 1, 2}), 2);
  EXPECT_DOUBLE_EQ(median({4, 1, 3, 2}), 2.5);
  EXPECT_DOUBLE_EQ(quantile({1, 2, 3, 4, 5}, 0.25), 2);
  EXPECT_DOUBLE_EQ(quantile({10, 20}, 0.95), 19.5);
  EXPECT_DOUBLE_EQ(quantile({5, 1, 9}, 0), 1);
  EXPECT_DOUBLE_EQ(quantile({5, 1, 9}, 1), 9);
  EXPECT_DOUBLE_EQ(interquartile_range({1, 2, 3, 4, 5}), 2);
  EXPECT_THROW((void)median({}), Error);
}

/// `count` normal samples around `mean`.
std::vector<double> noisy(double mean, double deviation, int count, std::uint64_t stream) {
  std::vector<double> samples;
  for (int i = 0; i < count; ++i) {
    samples.push_back(mean + deviation * random_normal(7, stream, static_cast<std::uint64_t>(i)));
  }
  return samples;
}

TEST(Statistics, IntervalOfTheRatioHoldsTheTruth) {
  // 95 % intervals: of 200 pairs with a true ratio of 1.05, about 190 must hold it.
  int held = 0;
  for (std::uint64_t pair = 0; pair < 200; ++pair) {
    const MedianRatio ratio =
        median_ratio(noisy(105, 3, 40, 2 * pair), noisy(100, 3, 40, 2 * pair + 1));
    EXPECT_LE(ratio.low, ratio.high);
    if (ratio.low <= 1.05 && 1.05 <= ratio.high) ++held;
  }
  EXPECT_GE(held, 176);
  EXPECT_LE(held, 200);
}

TEST(Statistics, SameDistributionIsNotDistinguishable) {
  int called_different = 0;
  for (std::uint64_t trial = 0; trial < 100; ++trial) {
    const double noise =
        noise_floor(median_ratio(noisy(100, 5, 40, 4 * trial), noisy(100, 5, 40, 4 * trial + 1)));
    const MedianRatio change =
        median_ratio(noisy(100, 5, 40, 4 * trial + 2), noisy(100, 5, 40, 4 * trial + 3));
    if (distinguishable(change, noise)) ++called_different;
  }
  EXPECT_LE(called_different, 6);
}

TEST(Statistics, AChangeBeyondTheNoiseIsDistinguishable) {
  const double noise = noise_floor(median_ratio(noisy(100, 2, 40, 1), noisy(100, 2, 40, 2)));
  EXPECT_LT(noise, 0.04);
  EXPECT_TRUE(distinguishable(median_ratio(noisy(110, 2, 40, 3), noisy(100, 2, 40, 4)), noise));
  EXPECT_TRUE(distinguishable(median_ratio(noisy(100, 2, 40, 3), noisy(110, 2, 40, 4)), noise));
  // The same change under an A/A floor of 20 % is none.
  EXPECT_FALSE(distinguishable(median_ratio(noisy(110, 2, 40, 3), noisy(100, 2, 40, 4)), 0.2));
}

TEST(Statistics, NoiseFloorSeesTheDifferenceOfTheTwoSeries) {
  // Two series without any spread that still differ: the difference itself is the floor.
  const MedianRatio same =
      median_ratio(std::vector<double>(9, 108.0), std::vector<double>(9, 100.0));
  EXPECT_NEAR(noise_floor(same), 0.08, 1e-12);
}

}  // namespace
}  // namespace moe
