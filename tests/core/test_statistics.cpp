#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "core/statistics.h"
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

TEST(Statistics, MedianIntervalByRanksIsTheTabulatedOne) {
  // Ranks of the sign test's 95 % interval: 1 and 6 of 6, 2 and 9 of 10, 10 and 21 of 30 (0.9572).
  const auto ranks = [](int count) {
    std::vector<double> samples(static_cast<std::size_t>(count));
    std::iota(samples.rbegin(), samples.rend(), 1.0);
    const MedianInterval interval = median_interval(samples);
    return std::pair(interval.low, interval.high);
  };
  EXPECT_EQ(ranks(6), std::pair(1.0, 6.0));
  EXPECT_EQ(ranks(10), std::pair(2.0, 9.0));
  EXPECT_EQ(ranks(30), std::pair(10.0, 21.0));
}

TEST(Statistics, MedianIntervalOfFewSamplesIsWide) {
  EXPECT_EQ(median_interval({5}).low, 0);
  EXPECT_TRUE(std::isinf(median_interval({5}).high));
  const MedianInterval three = median_interval({99, 100, 101});
  EXPECT_NEAR(three.high, 100 + 4.303 / std::sqrt(3.0), 1e-9);
  EXPECT_NEAR(three.low, 100 - 4.303 / std::sqrt(3.0), 1e-9);
  const MedianInterval five = median_interval({100, 100, 100, 100, 200});
  EXPECT_NEAR(five.low, 120 - 2.776 * 20, 1e-9);
  EXPECT_EQ(five.high, 200) << "never narrower than the range";
  EXPECT_THROW((void)median_interval(std::vector<double>{}), Error);
}

TEST(Statistics, MedianIntervalHoldsTheTruth) {
  for (const int count : {3, 7, 20, 60}) {
    int held = 0;
    int held_by_summary = 0;
    for (std::uint64_t trial = 0; trial < 300; ++trial) {
      const std::vector<double> samples = noisy(100, 4, count, 9000 + trial);
      const MedianInterval interval = median_interval(samples);
      const MedianInterval summary =
          median_interval(median(samples), interquartile_range(samples), count);
      if (interval.low <= 100 && 100 <= interval.high) ++held;
      if (summary.low <= 100 && 100 <= summary.high) ++held_by_summary;
    }
    EXPECT_GE(held, 278) << count;
    EXPECT_GE(held_by_summary, 258) << count;
    EXPECT_LT(held_by_summary, 300) << count;
  }
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
