// The harness on forwards that are right, noisy or cheating.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <map>
#include <thread>

#include "bench/series.h"
#include "bench/statistics.h"

namespace moe {
namespace {

class Series : public ::testing::Test {
 protected:
  Series()
      : problem_{.shape =
                     {.tokens = 8, .hidden = 64, .intermediate = 32, .experts = 4, .top_k = 2}},
        weights_(make_weights(problem_, 1)),
        layer_(Layer::create({.level = "memefficient", .problem = problem_, .threads = 1},
                             weights_.view())),
        instrument_(make_instrument({})),
        inputs_(problem_, weights_.view(), 1, Skew{}, *instrument_) {}

  Forward right() {
    return [this](const TensorView& x, const TensorView& y) { layer_.forward(x, y); };
  }
  /// Verifies and samples; true when the harness accepted everything.
  bool accepted(const Forward& forward, int samples = 7) {
    TimedSeries series("fake", forward, inputs_);
    bool good = series.verify();
    for (int i = 0; i < samples && good; ++i) good = series.sample();
    failure_ = series.failure();
    EXPECT_EQ(good, failure_.empty());
    return good;
  }

  Problem problem_;
  OwnedWeights weights_;
  Layer layer_;
  std::unique_ptr<Instrument> instrument_;
  BenchInputs inputs_;
  std::string failure_;
};

void busy_wait(std::chrono::microseconds time) {
  const auto end = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < end) {
  }
}

TEST_F(Series, AcceptsARightForward) {
  EXPECT_TRUE(accepted(right())) << failure_;
}

TEST_F(Series, TimesAKnownDuration) {
  // 20 ms of work, and the checks outside of the timed region take longer: a third more.
  TimedSeries series(
      "known",
      [this](const TensorView& x, const TensorView& y) {
        layer_.forward(x, y);
        busy_wait(std::chrono::milliseconds(20));
      },
      inputs_);
  ASSERT_TRUE(series.verify());
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(series.sample());
  ASSERT_EQ(series.microseconds().size(), 5U);
  for (const double microseconds : series.microseconds()) EXPECT_GE(microseconds, 20e3);
  EXPECT_LT(*std::min_element(series.microseconds().begin(), series.microseconds().end()), 26e3);
  EXPECT_GE(series.expected_seconds(), 0.020);
}

TEST_F(Series, SeesNoiseOfKnownSize) {
  // Alternates between 5 and 25 ms: the quartiles lie at the two values.
  int call = 0;
  TimedSeries series(
      "noisy",
      [&](const TensorView& x, const TensorView& y) {
        layer_.forward(x, y);
        // Every timed forward follows an untimed one: of both kinds, every second one is long.
        busy_wait(std::chrono::milliseconds(call++ / 2 % 2 == 0 ? 5 : 25));
      },
      inputs_);
  ASSERT_TRUE(series.verify());
  for (int i = 0; i < 12; ++i) ASSERT_TRUE(series.sample());
  EXPECT_GT(interquartile_range(series.microseconds()), 10e3);
}

TEST_F(Series, RejectsZeros) {
  EXPECT_FALSE(
      accepted([](const TensorView&, const TensorView& y) { std::memset(y.data, 0, y.bytes()); }));
}

TEST_F(Series, RejectsAnUnwrittenOutput) {
  EXPECT_FALSE(accepted([](const TensorView&, const TensorView&) {}));
}

TEST_F(Series, RejectsTheOutputOfTheFirstInput) {
  Tensor cached(problem_.dtype, {8, 64});
  bool have = false;
  EXPECT_FALSE(accepted([&](const TensorView& x, const TensorView& y) {
    if (!have) layer_.forward(x, cached.view());
    have = true;
    std::memcpy(y.data, cached.view().data, y.bytes());
  }));
}

TEST_F(Series, RejectsOutputsCachedByAddress) {
  std::map<const void*, Tensor> cache;
  EXPECT_FALSE(accepted([&](const TensorView& x, const TensorView& y) {
    Tensor& cached = cache[x.data];
    if (cached.view().data == nullptr) {
      cached = Tensor(problem_.dtype, {8, 64});
      layer_.forward(x, cached.view());
    }
    std::memcpy(y.data, cached.view().data, y.bytes());
  }));
}

TEST_F(Series, RejectsTheOutputOfTheForwardBefore) {
  // Right during verification, then one input late.
  Tensor late(problem_.dtype, {8, 64});
  int calls = 0;
  EXPECT_FALSE(accepted([&](const TensorView& x, const TensorView& y) {
    if (calls++ < BenchInputs::kInputs) {
      layer_.forward(x, y);
    } else {
      std::memcpy(y.data, late.view().data, y.bytes());
    }
    layer_.forward(x, late.view());
  }));
  EXPECT_NE(failure_.find("timed forward"), std::string::npos) << failure_;
}

TEST_F(Series, RejectsAReturnBeforeTheWorkIsDone) {
  std::thread worker;
  const auto join = [&] {
    if (worker.joinable()) worker.join();
  };
  EXPECT_FALSE(accepted([&](const TensorView& x, const TensorView& y) {
    join();
    worker = std::thread([this, x, y] {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      layer_.forward(x, y);
    });
  }));
  join();
}

TEST_F(Series, RejectsADroppedTokenWhileTiming) {
  int calls = 0;
  EXPECT_FALSE(accepted([&](const TensorView& x, const TensorView& y) {
    layer_.forward(x, y);
    if (++calls > BenchInputs::kInputs) std::memset(y.first_rows(1).data, 0, 64 * sizeof(float));
  }));
}

TEST_F(Series, AcceptsRoundingThatDiffersFromRunToRun) {
  int calls = 0;
  EXPECT_TRUE(accepted([&](const TensorView& x, const TensorView& y) {
    layer_.forward(x, y);
    y.as<float>()[0] *= 1.0F + 1e-7F * static_cast<float>(++calls % 3);
  })) << failure_;
}

TEST_F(Series, AFailedSampleIsNotKept) {
  int calls = 0;
  TimedSeries series(
      "fake",
      [&](const TensorView& x, const TensorView& y) {
        layer_.forward(x, y);
        if (++calls > BenchInputs::kInputs + 2) std::memset(y.data, 0, y.bytes());
      },
      inputs_);
  ASSERT_TRUE(series.verify());
  for (int i = 0; i < 10 && series.sample(); ++i) {
  }
  EXPECT_EQ(series.microseconds().size(), 1U);  // one untimed forward before each timed one
  EXPECT_FALSE(series.worst().passed);
}

TEST_F(Series, FingerprintChangesWithAnyByte) {
  Tensor tensor(DType::kBF16, {3, 37});
  const std::uint64_t zero = fingerprint(tensor.view());
  auto* bytes = static_cast<unsigned char*>(tensor.view().data);
  for (std::size_t i = 0; i < tensor.view().bytes(); ++i) {
    bytes[i] ^= 1;
    EXPECT_NE(fingerprint(tensor.view()), zero) << i;
    bytes[i] ^= 1;
  }
  EXPECT_EQ(fingerprint(tensor.view()), zero);
}

TEST(Plan, SamplesFitTheBudget) {
  EXPECT_EQ(planned_samples(0.1, 2.5, 3), 25);
  EXPECT_EQ(planned_samples(2.0, 2.5, 3), 3);
  EXPECT_EQ(planned_samples(1e-6, 2.5, 3), kMostSamples);
  EXPECT_EQ(planned_samples(1e-6, 2.5, 200), 200);
}

TEST(Plan, RoundsAreSpreadEvenly) {
  for (const int wanted : {1, 3, 7, 59, 60}) {
    int taken = 0;
    int longest_gap = 0;
    int gap = 0;
    for (int round = 0; round < 60; ++round) {
      ++gap;
      if (!takes_part(round, 60, wanted)) continue;
      ++taken;
      longest_gap = std::max(longest_gap, gap);
      gap = 0;
    }
    EXPECT_EQ(taken, wanted);
    EXPECT_LE(longest_gap, (60 + wanted - 1) / wanted);
  }
}

}  // namespace
}  // namespace moe
