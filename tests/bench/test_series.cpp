// The harness on forwards that are right, noisy or cheating.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <map>
#include <thread>

#include "bench/point.h"
#include "bench/series.h"
#include "core/statistics.h"

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

TEST_F(Series, RejectsAStaleGraph) {
  // Recorded on the first input's bytes, and replayed whatever x holds now.
  Tensor recorded(problem_.dtype, {8, 64});
  bool have = false;
  EXPECT_FALSE(accepted([&](const TensorView& x, const TensorView& y) {
    if (!have) std::memcpy(recorded.view().data, x.data, x.bytes());
    have = true;
    layer_.forward(recorded.view(), y);
  }));
  EXPECT_NE(failure_.find("verification, input 1"), std::string::npos) << failure_;
}

TEST_F(Series, RejectsSkippedExperts) {
  // Right for every input's verification; then expert 2 contributes nothing.
  OwnedWeights without = make_weights(problem_, 1);
  std::memset(without.down.as<float>() + 2 * 64 * 32, 0, 64 * 32 * sizeof(float));
  Layer skipping =
      Layer::create({.level = "memefficient", .problem = problem_, .threads = 1}, without.view());
  int calls = 0;
  EXPECT_FALSE(accepted([&](const TensorView& x, const TensorView& y) {
    (calls++ < BenchInputs::kInputs ? layer_ : skipping).forward(x, y);
  }));
  EXPECT_NE(failure_.find("timed forward"), std::string::npos) << failure_;
}

TEST(SeriesOfZeroWeights, OutputsThatDoNotDependOnTheInputShowNothing) {
  // Zeros are the right answer for every input, and a level that reads no x would give it as well.
  const Problem problem{
      .shape = {.tokens = 8, .hidden = 64, .intermediate = 32, .experts = 4, .top_k = 2}};
  const OwnedWeights weights = make_weights(problem, 1);
  std::memset(weights.down.view().data, 0, weights.down.view().bytes());
  const auto instrument = make_instrument({});
  const BenchInputs inputs(problem, weights.view(), 1, Skew{}, *instrument);
  TimedSeries series(
      "zeros", [](const TensorView&, const TensorView& y) { std::memset(y.data, 0, y.bytes()); },
      inputs);
  EXPECT_FALSE(series.verify());
  EXPECT_NE(series.failure().find("inputs 0 and 1 give the same output"), std::string::npos)
      << series.failure();
}

/// The host's instrument with a clock that is wrong in a chosen way.
class WrongClock final : public Instrument {
 public:
  explicit WrongClock(double factor) : factor_(factor), right_(make_instrument({})) {}
  Device& device() override { return right_->device(); }
  std::optional<DeviceInfo> describe() override { return right_->describe(); }
  [[nodiscard]] bool can_be_cold() const override { return right_->can_be_cold(); }
  void copy(const TensorView& to, const TensorView& from) override { right_->copy(to, from); }
  void poison(const TensorView& y) override { right_->poison(y); }
  std::uint64_t fingerprint(const TensorView& tensor) override {
    return right_->fingerprint(tensor);
  }
  std::unique_ptr<Replay> record(const std::function<void()>& work) override {
    return right_->record(work);
  }
  [[nodiscard]] std::uint64_t twin_bytes(const Problem& problem) const override {
    return right_->twin_bytes(problem);
  }
  std::unique_ptr<Replay> make_twin(const Problem& problem) override {
    return right_->make_twin(problem);
  }
  std::unique_ptr<CeilingProbes> make_probes() override { return right_->make_probes(); }
  std::optional<KernelProfile> profile(const std::function<void()>& forward, int forwards,
                                       const TracedForward& traced, std::string& reason) override {
    return right_->profile(forward, forwards, traced, reason);
  }
  std::optional<SensorReading> sense() override { return right_->sense(); }

 private:
  double measure(const std::function<void()>& work, const Timing& timing) override {
    return factor_ * right_->seconds(work, timing);
  }
  double factor_;
  std::unique_ptr<Instrument> right_;
};

TEST_F(Series, RejectsTimesThatTheHostDidNotSeePass) {
  // A forward that works on a stream of its own: the events of the timed stream enclose a tenth of it. And a
  // clock that runs twice as fast.
  const auto forward = [this](const TensorView& x, const TensorView& y) {
    layer_.forward(x, y);
    busy_wait(std::chrono::milliseconds(2));
  };
  for (const double factor : {0.1, 2.0}) {
    WrongClock clock(factor);
    const BenchInputs inputs(problem_, weights_.view(), 1, Skew{}, clock);
    TimedSeries series("elsewhere", forward, inputs);
    ASSERT_TRUE(series.verify());
    int samples = 0;
    while (samples < 7 && series.sample()) ++samples;
    EXPECT_EQ(samples, 2) << factor;
    EXPECT_NE(series.failure().find("passed until the device was idle"), std::string::npos)
        << series.failure();
  }
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

BenchRow row_of(Cache cache, double microseconds) {
  Point point;
  point.problem = {
      .shape = {.tokens = 1000, .hidden = 1000, .intermediate = 1000, .experts = 10, .top_k = 1}};
  point.active_experts = 10;
  RowState row;
  row.decided = true;
  row.row.problem = point.problem;
  row.row.status = RowStatus::kOk;
  row.row.verified = true;
  row.row.cache = cache;
  row.microseconds = {microseconds, microseconds, microseconds};
  point.levels.push_back({.options = {}, .rows = {row}});
  Ceilings ceilings;
  ceilings.samples = 3;
  ceilings.fp32_gflops = 1000;  // 6 GFLOP and a few more for the router: 6000 us
  ceilings.read_gbs = 10;       // 30 million weights of 4 bytes: 12000 us
  BenchResult result;
  append_rows(point, ceilings, result);
  return result.rows.at(0);
}

TEST(Plausible, NoLevelIsFasterThanItsArithmetic) {
  EXPECT_EQ(row_of(Cache::kHot, 6100).status, RowStatus::kOk);
  EXPECT_EQ(row_of(Cache::kHot, 4000).status, RowStatus::kOk)
      << "the probes may have been slowed down";
  const BenchRow row = row_of(Cache::kHot, 2000);
  EXPECT_EQ(row.status, RowStatus::kFailed);
  EXPECT_FALSE(row.verified);
  EXPECT_NE(row.reason.find("below half of the 6.0"), std::string::npos) << row.reason;
}

TEST(Plausible, WeightsKeptInACacheThatWasEmptiedAreNoMeasurement) {
  EXPECT_EQ(row_of(Cache::kHot, 5000).status, RowStatus::kOk);
  const BenchRow row = row_of(Cache::kCold, 5000);
  EXPECT_EQ(row.status, RowStatus::kFailed);
  EXPECT_NE(row.reason.find("reading it from memory"), std::string::npos) << row.reason;
  EXPECT_EQ(row_of(Cache::kCold, 12500).status, RowStatus::kOk);
  EXPECT_EQ(row_of(Cache::kDirty, 5000).status, RowStatus::kFailed);
}

}  // namespace
}  // namespace moe
