#include "bench/verdict.h"

#include <gtest/gtest.h>

#include <chrono>
#include <limits>

#include "bench/series.h"
#include "core/rng.h"
#include "moe/levels.h"

namespace moe {
namespace {

RowTimes times_of(const std::vector<double>& samples) {
  return {.median_us = median(samples),
          .interval = median_interval(samples),
          .fastest_us = quantile(samples, 0)};
}

/// `count` samples around `mean` that scatter by `deviation`.
RowTimes noisy(double mean, double deviation, int count, std::uint64_t stream) {
  std::vector<double> samples;
  for (int i = 0; i < count; ++i) {
    samples.push_back(mean + deviation * random_normal(11, stream, static_cast<std::uint64_t>(i)));
  }
  return times_of(samples);
}

Verdict verdict(const RowTimes& first, const RowTimes& second, const CompareLimits& limits = {}) {
  return judge(first, second, limits).verdict;
}

TEST(Judge, SaysWhatChanged) {
  const RowTimes base = noisy(100, 1, 40, 1);
  EXPECT_EQ(verdict(base, noisy(110, 1, 40, 2)), Verdict::kSlower);
  EXPECT_EQ(verdict(noisy(110, 1, 40, 2), base), Verdict::kFaster);
  EXPECT_EQ(verdict(base, noisy(100, 1, 40, 3)), Verdict::kSame);
  const Judgement judgement = judge(base, noisy(110, 1, 40, 2), {});
  EXPECT_NEAR(judgement.ratio, 1.10, 0.01);
  EXPECT_LT(judgement.low, judgement.ratio);
  EXPECT_LT(judgement.ratio, judgement.high);
  EXPECT_EQ(judgement.reason, "");
}

TEST(Judge, AChangeBelowTheSmallestEffectIsNone) {
  const RowTimes base = noisy(100, 0.1, 40, 1);
  const RowTimes later = noisy(101.5, 0.1, 40, 2);
  EXPECT_EQ(verdict(base, later), Verdict::kSame);
  EXPECT_EQ(verdict(base, later, {.effect = 0.01}), Verdict::kSlower);
  EXPECT_EQ(verdict(base, later, {.effect = 0.01, .effect_us = 3}), Verdict::kSame);
}

TEST(Judge, WhatCannotBeToldIsNoisy) {
  const RowTimes wide = noisy(100, 30, 12, 4);
  const Judgement open = judge(wide, noisy(104, 30, 12, 5), {});
  EXPECT_EQ(open.verdict, Verdict::kNoisy);
  EXPECT_NE(open.reason.find("is possible"), std::string::npos) << open.reason;
  RowTimes one = noisy(300, 0, 1, 6);
  EXPECT_EQ(verdict(noisy(100, 1, 40, 1), one), Verdict::kNoisy) << "one sample has no interval";
  RowTimes unknown = noisy(100, 1, 40, 2);
  unknown.median_us = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(verdict(noisy(100, 1, 40, 1), unknown), Verdict::kNoisy);
}

TEST(Judge, AMachineThatGotSlowerIsNoRegression) {
  RowTimes base = noisy(100, 1, 40, 1);
  RowTimes later = noisy(112, 1, 40, 2);
  base.machine_rate = 230;
  later.machine_rate = 200;  // 15 % less: the same work takes 15 % longer
  const Judgement judgement = judge(base, later, {});
  EXPECT_EQ(judgement.verdict, Verdict::kNoisy);
  EXPECT_NE(judgement.reason.find("machine"), std::string::npos) << judgement.reason;
  later.machine_rate = 229;
  EXPECT_EQ(verdict(base, later), Verdict::kSlower);
  EXPECT_EQ(verdict(later, base), Verdict::kFaster);
}

TEST(Judge, WhatAProbeLostAForwardMayLoseFourTimes) {
  // Seen of one program: 60 and 109 us, arithmetic in fp32 as fast, in bf16 a fifth slower.
  RowTimes base = noisy(60, 1, 40, 1);
  RowTimes later = noisy(109, 1, 40, 2);
  base.machine_rate = later.machine_rate = 175;
  base.probe_rates = {175, 2296, 16.4};
  later.probe_rates = {175, 1808, 16.2};
  const Judgement judgement = judge(base, later, {});
  EXPECT_EQ(judgement.verdict, Verdict::kNoisy);
  EXPECT_NE(judgement.reason.find("+27.0 % by one of the probes"), std::string::npos)
      << judgement.reason;
  const Judgement back = judge(later, base, {});
  EXPECT_EQ(back.verdict, Verdict::kNoisy);
  EXPECT_NE(back.reason.find("-21.3 % by one of the probes"), std::string::npos) << back.reason;
  // More than that the machine does not explain, nor anything where its probes are steady or unknown.
  EXPECT_EQ(verdict(base, noisy(160, 1, 40, 2)), Verdict::kSlower) << "no probes";
  RowTimes far = noisy(160, 1, 40, 2);
  far.probe_rates = later.probe_rates;
  EXPECT_EQ(verdict(base, far), Verdict::kSlower);
  later.probe_rates = {170, 2200, 15.7};
  EXPECT_EQ(verdict(base, later), Verdict::kSlower);
  later.probe_rates = {175, 0, 16.2};
  EXPECT_EQ(verdict(base, later), Verdict::kSlower);
}

TEST(Judge, NoiseOfEitherRunCounts) {
  const RowTimes base = noisy(100, 1, 40, 1);
  RowTimes later = noisy(112, 1, 40, 2);
  later.noise = 0.2;
  EXPECT_EQ(verdict(base, later), Verdict::kNoisy);
  EXPECT_EQ(verdict(later, base), Verdict::kNoisy);
}

TEST(Judge, AChangeWithinWhatOneRunShowsIsNone) {
  const RowTimes base = noisy(100, 1, 40, 1);
  RowTimes later = noisy(112, 1, 40, 2);
  later.disturbance = 0.45;
  const Judgement judgement = judge(base, later, {});
  EXPECT_EQ(judgement.verdict, Verdict::kNoisy);
  EXPECT_NE(judgement.reason.find("45.0 % longer than the fastest"), std::string::npos)
      << judgement.reason;
  EXPECT_EQ(verdict(later, base), Verdict::kNoisy);
  EXPECT_EQ(verdict(base, noisy(160, 1, 40, 2)), Verdict::kSlower);
}

TEST(Judge, AChangeIsNoLargerThanWhatOtherProgramsTook) {
  // On cores that are threads of one, a program beside the run delays every forward alike.
  const RowTimes base = noisy(100, 1, 40, 1);
  RowTimes later = noisy(112, 1, 40, 2);
  EXPECT_EQ(verdict(base, later), Verdict::kSlower);
  later.others = 0.3;
  const Judgement judgement = judge(base, later, {});
  EXPECT_EQ(judgement.verdict, Verdict::kNoisy);
  EXPECT_NE(judgement.reason.find("other programs took 30.0 %"), std::string::npos)
      << judgement.reason;
  EXPECT_EQ(verdict(later, base), Verdict::kNoisy);
  later.others = 0.02;
  EXPECT_EQ(verdict(base, later), Verdict::kSlower);
}

TEST(Judge, AShortForwardChangesByMicrosecondsToo) {
  const RowTimes base = noisy(60, 0.5, 40, 1);
  const RowTimes later = noisy(70, 0.5, 40, 2);
  EXPECT_EQ(verdict(base, later, {.effect = 0.05}), Verdict::kSlower);
  EXPECT_EQ(verdict(base, later, {.effect = 0.05, .effect_us = 25}), Verdict::kNoisy);
  EXPECT_EQ(verdict(later, base, {.effect = 0.05, .effect_us = 25}), Verdict::kNoisy);
  EXPECT_EQ(verdict(base, noisy(100, 0.5, 40, 3), {.effect = 0.05, .effect_us = 25}),
            Verdict::kSlower);
  EXPECT_EQ(
      verdict(noisy(1000, 5, 40, 4), noisy(1100, 5, 40, 5), {.effect = 0.05, .effect_us = 25}),
      Verdict::kSlower);
}

TEST(Judge, AMedianThatOtherProgramsDelayedIsNoRegression) {
  // Two thirds of the samples are delayed, the others as fast as ever.
  std::vector<double> samples;
  for (int i = 0; i < 60; ++i) samples.push_back(i % 3 == 0 ? 100 + i / 100.0 : 130 + i / 10.0);
  const Judgement judgement = judge(noisy(100, 0.2, 60, 1), times_of(samples), {});
  EXPECT_GT(judgement.low, 1.05);
  EXPECT_EQ(judgement.verdict, Verdict::kNoisy);
  EXPECT_NE(judgement.reason.find("fastest"), std::string::npos) << judgement.reason;
}

TEST(Judge, HardlyEverCallsEqualSeriesDifferent) {
  int called = 0;
  for (std::uint64_t pair = 0; pair < 500; ++pair) {
    const Verdict same =
        verdict(noisy(100, 3, 40, 100 + 2 * pair), noisy(100, 3, 40, 101 + 2 * pair));
    if (same == Verdict::kSlower || same == Verdict::kFaster) ++called;
  }
  EXPECT_LE(called, 3);
}

/// Forwards of a real level, one thread, with `delay` of its time spent on top.
class SlowedSeries : public ::testing::Test {
 protected:
  void run(int samples) {
    const Forward plain = [this](const TensorView& x, const TensorView& y) {
      layer_.forward(x, y);
    };
    const Forward slowed = [this](const TensorView& x, const TensorView& y) {
      const auto start = std::chrono::steady_clock::now();
      layer_.forward(x, y);
      const auto end = start + (std::chrono::steady_clock::now() - start) * 13 / 10;
      while (std::chrono::steady_clock::now() < end) {
      }
    };
    series_ = {{"plain", plain, inputs_}, {"again", plain, inputs_}, {"slowed", slowed, inputs_}};
    for (TimedSeries& series : series_) ASSERT_TRUE(series.verify()) << series.failure();
    for (int i = 0; i < samples; ++i) {
      for (TimedSeries& series : series_) ASSERT_TRUE(series.sample()) << series.failure();
    }
  }

  Problem problem_{.shape = {16, 64, 64, 4, 2}, .dtype = DType::kF32};
  LayerOptions options_{.level = "memefficient", .problem = problem_, .threads = 1};
  OwnedWeights weights_ = make_weights(problem_, 1);
  std::unique_ptr<Instrument> instrument_ = make_instrument(options_);
  BenchInputs inputs_{problem_, weights_.view(), 1, Skew{}, *instrument_};
  Layer layer_ = Layer::create(options_, weights_.view());
  std::vector<TimedSeries> series_;
};

TEST_F(SlowedSeries, IsSlowerAndTheSameForwardNever) {
  int slower = 0;
  for (int attempt = 0; attempt < 20; ++attempt) {
    run(40);
    const auto times = [this](std::size_t i) { return times_of(series_[i].microseconds()); };
    EXPECT_NE(verdict(times(0), times(1)), Verdict::kSlower) << attempt;
    EXPECT_NE(verdict(times(1), times(0)), Verdict::kSlower) << attempt;
    EXPECT_NE(verdict(times(2), times(0)), Verdict::kSlower) << attempt;
    if (verdict(times(0), times(2)) == Verdict::kSlower) ++slower;
  }
  // On a busy machine a set of samples may be useless, but not most of them.
  EXPECT_GE(slower, 12);
}

}  // namespace
}  // namespace moe
