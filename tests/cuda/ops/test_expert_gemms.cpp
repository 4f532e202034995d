// Experts as library GEMMs in every schedule: the values of one expert after the other, whatever the
// number of streams.
#include "cuda/ops/expert_gemms.h"

#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "core/scalar.h"
#include "cuda/device_test.h"
#include "cuda/ops/expert_choices.h"
#include "cuda/ops/expert_tuner.h"

namespace moe::cuda {
namespace {

std::vector<ExpertSchedule> every_schedule() {
  std::vector<ExpertSchedule> schedules;
  for (int streams = 1; streams <= ExpertGemms::kMostStreams; ++streams) {
    for (const Pipeline pipeline : {Pipeline::kPhases, Pipeline::kChains}) {
      for (const ExpertOrder order : {ExpertOrder::kByIndex, ExpertOrder::kLargestFirst}) {
        for (const int launchers : {1, 2, 3, ExpertGemms::kMostLaunchers}) {
          if (launchers <= streams) schedules.push_back({streams, launchers, pipeline, order});
        }
      }
    }
  }
  return schedules;
}

class CudaExpertGemms : public CudaTest {
 protected:
  void prepare(const Problem& problem) {
    problem_ = problem;
    const Shape& shape = problem.shape;
    gate_up_ = normal(shape.experts * 2 * shape.intermediate * shape.hidden, 1,
                      1 / std::sqrt(static_cast<double>(shape.hidden)));
    down_ = normal(shape.experts * shape.hidden * shape.intermediate, 2,
                   1 / std::sqrt(static_cast<double>(shape.intermediate)));
    on_gate_up_.emplace(device(), gate_up_);
    on_down_.emplace(device(), down_);
    library_.emplace();
    kernels_ = make_precompiled_kernels(problem, device().facts());
    gemms_.emplace(*library_, problem, ExpertGemms::Matrices{on_gate_up_->data(), on_down_->data()},
                   ExpertGemms::kMostStreams, ExpertGemms::kMostLaunchers);
  }
  static std::vector<BFloat16> normal(std::int64_t count, std::uint64_t stream, double scale) {
    std::vector<BFloat16> values(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = from_float<BFloat16>(static_cast<float>(scale * random_normal(9, stream, i)));
    }
    return values;
  }

  /// rows after the experts, with the rows of each given.
  std::vector<BFloat16> run(const ExpertSchedule& schedule, const std::vector<std::int32_t>& counts,
                            const std::vector<BFloat16>& rows) {
    std::vector<std::int32_t> offsets = {0};
    for (const std::int32_t count : counts) offsets.push_back(offsets.back() + count);
    const DeviceArray<BFloat16> on_rows(device(), rows);
    const DeviceArray<BFloat16> inner(device(), offsets.back() * 2 * problem_.shape.intermediate);
    RoutedBuffers b;
    b.rows = reinterpret_cast<std::byte*>(on_rows.data());
    b.gate_up = reinterpret_cast<std::byte*>(inner.data());
    gemms_->fork(schedule, stream());
    gemms_->run(schedule, offsets.data(), b, *kernels_, stream(), nullptr);
    device().synchronise();
    EXPECT_TRUE(on_rows.intact() && inner.intact()) << describe(schedule);
    return on_rows.download();
  }

  void expect_values(const std::vector<BFloat16>& got, const std::vector<std::int32_t>& counts,
                     const std::vector<BFloat16>& rows) {
    const auto hidden = static_cast<std::size_t>(problem_.shape.hidden);
    const auto intermediate = static_cast<std::size_t>(problem_.shape.intermediate);
    const auto product = [&](const std::vector<BFloat16>& w, std::size_t row, const double* x,
                             std::size_t k) {
      double sum = 0;
      for (std::size_t i = 0; i < k; ++i) sum += to_float(w[row * k + i]) * x[i];
      return sum;
    };
    std::size_t row = 0;
    for (std::size_t expert = 0; expert < counts.size(); ++expert) {
      for (std::int32_t i = 0; i < counts[expert]; ++i, ++row) {
        if (i > 1 && i + 1 < counts[expert]) continue;  // first two and last of each expert
        std::vector<double> x(hidden);
        for (std::size_t h = 0; h < hidden; ++h) x[h] = to_float(rows[row * hidden + h]);
        std::vector<double> act(intermediate);
        for (std::size_t j = 0; j < intermediate; ++j) {
          const std::size_t at = expert * 2 * intermediate + j;
          const double gate = product(gate_up_, at, x.data(), hidden);
          const double up = product(gate_up_, at + intermediate, x.data(), hidden);
          act[j] = gate / (1 + std::exp(-gate)) * up;
        }
        for (std::size_t h = 0; h < hidden; ++h) {
          const double want = product(down_, expert * hidden + h, act.data(), intermediate);
          const double is = to_float(got[row * hidden + h]);
          ASSERT_TRUE(std::abs(is - want) <= 0.02 + 0.02 * std::abs(want))
              << "expert " << expert << " row " << row << " column " << h << " is " << is
              << ", want " << want;
        }
      }
    }
  }

  Problem problem_;
  std::vector<BFloat16> gate_up_, down_;
  std::optional<DeviceArray<BFloat16>> on_gate_up_, on_down_;
  std::optional<CublasLt> library_;
  std::unique_ptr<LayerKernels> kernels_;
  std::optional<ExpertGemms> gemms_;
};

TEST_F(CudaExpertGemms, EveryScheduleGivesTheSameBits) {
  prepare({{200, 128, 96, 9, 3}, DType::kBF16});
  for (const std::vector<std::int32_t>& counts :
       {std::vector<std::int32_t>{64, 0, 1, 200, 17, 100, 0, 128, 90},
        std::vector<std::int32_t>{0, 0, 0, 0, 200, 0, 0, 0, 0},
        std::vector<std::int32_t>{1, 0, 0, 0, 0, 0, 0, 0, 1},
        std::vector<std::int32_t>{66, 67, 66, 67, 66, 67, 67, 67, 67}}) {
    const std::int32_t routed = std::accumulate(counts.begin(), counts.end(), 0);
    const std::vector<BFloat16> rows = normal(routed * problem_.shape.hidden, 3, 1);
    const std::vector<BFloat16> first = run({}, counts, rows);
    expect_values(first, counts, rows);
    if (HasFatalFailure()) return;
    for (const ExpertSchedule& schedule : every_schedule()) {
      const std::vector<BFloat16> got = run(schedule, counts, rows);
      ASSERT_EQ(std::memcmp(got.data(), first.data(), first.size() * sizeof(BFloat16)), 0)
          << describe(schedule);
    }
  }
}

TEST_F(CudaExpertGemms, TunedChoicesGiveTheValuesToo) {
  prepare({{512, 256, 192, 8, 2}, DType::kBF16});
  std::vector<ExpertChoice> choices = default_choices(problem_.shape);
  const TensorView down(
      const_cast<BFloat16*>(on_down_->data()), DType::kBF16,
      {problem_.shape.experts, problem_.shape.hidden, problem_.shape.intermediate});
  Weights weights;
  weights.down = down;
  EXPECT_TRUE(tune_experts({.gemms = &*gemms_,
                            .kernels = kernels_.get(),
                            .problem = problem_,
                            .weights = weights,
                            .stream = stream()},
                           60, choices));
  EXPECT_EQ(apply_choices(choices, *gemms_), "");
  for (const ExpertChoice& choice : choices) {
    EXPECT_TRUE(choice.timed);
    EXPECT_TRUE(choice.microseconds > 0 && choice.microseconds <= choice.default_microseconds);
    const auto mean = static_cast<std::int32_t>(choice.load.tokens * problem_.shape.top_k /
                                                problem_.shape.experts);
    std::vector<std::int32_t> counts(8, mean);
    counts[2] = 0;
    counts[5] = 2 * mean;
    const std::vector<BFloat16> rows = normal(8 * mean * problem_.shape.hidden, 4, 1);
    const std::vector<BFloat16> got = run(choice.schedule, counts, rows);
    expect_values(got, counts, rows);
    if (HasFatalFailure()) return;
    ASSERT_EQ(run(choice.schedule, counts, rows), got) << "other bits in a second run";
  }
}

TEST_F(CudaExpertGemms, WithoutTimeNothingIsTimedAndNothingIsComplete) {
  prepare({{64, 64, 64, 4, 2}, DType::kBF16});
  std::vector<ExpertChoice> choices = default_choices(problem_.shape);
  Weights weights;
  EXPECT_FALSE(tune_experts({.gemms = &*gemms_,
                             .kernels = kernels_.get(),
                             .problem = problem_,
                             .weights = weights,
                             .stream = stream()},
                            0, choices));
  EXPECT_EQ(choices, default_choices(problem_.shape));
}

TEST_F(CudaExpertGemms, AForeignAlgorithmIsRefusedInWords) {
  prepare({{64, 64, 64, 4, 2}, DType::kBF16});
  std::vector<ExpertChoice> choices = default_choices(problem_.shape);
  choices[0].down = MatmulAlgorithm{{~0ULL, ~0ULL, ~0ULL, ~0ULL, ~0ULL, ~0ULL, ~0ULL, ~0ULL}};
  EXPECT_NE(apply_choices(choices, *gemms_).find("the library refuses"), std::string::npos);
}

}  // namespace
}  // namespace moe::cuda
