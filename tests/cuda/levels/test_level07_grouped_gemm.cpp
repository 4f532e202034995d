// Level 7: no allocation in forward; and as a second oracle, on shapes on which the one on the host
// takes minutes.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/scalar.h"
#include "cuda/levels/level_test.h"
#include "moe/error.h"
#include "moe/verify.h"

namespace moe::cuda {
namespace {

class CudaGroupedGemmLevel : public CudaLevelTest {
 protected:
  void SetUp() override {
    CudaLevelTest::SetUp();
    if (IsSkipped()) return;
    try {
      static_cast<void>(Layer::predict({.level = "grouped_gemm",
                                        .backend = Backend::kCuda,
                                        .problem = {{1, 8, 8, 1, 1}, DType::kBF16}}));
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnsupported) throw;
      GTEST_SKIP() << error.what();
    }
  }
};

TEST_F(CudaGroupedGemmLevel, ForwardAllocatesNothing) {
  const Problem problem{{256, 256, 128, 8, 2}, DType::kBF16};
  const Weights weights = place(make_weights(problem, 7));
  Layer layer = Layer::create(
      {.level = "grouped_gemm", .backend = Backend::kCuda, .problem = problem}, weights);
  const TensorView x = place(make_input(problem, 7, 0).view());
  const TensorView y = place(make_input(problem, 7, 1).view());
  layer.forward(x, y);
  const std::uint64_t settled = device().available_memory();
  for (int i = 0; i < 20; ++i) layer.forward(x, y);
  EXPECT_EQ(device().available_memory(), settled);
}

/// How far two right answers lie apart, as a share of what they may. Levels round gate, up, act and the
/// rows that are combined to bf16, or keep them in fp32, and round y: up to 2^-8 of the number each time,
/// so 2^-8 / sqrt(3) of the root mean square (rms), and all five together less than 2^-7 of it.
struct Distance {
  double rms = 0;      // of all differences over 2^-7 of y's
  double largest = 0;  // of |a - b| over 2^-5 of the row's rms (the largest of some million) and
                       // 2^-6 of |y| (y itself, rounded by both)
};
Distance distance(const Tensor& a, const Tensor& b) {
  const std::int64_t rows = a.view().dim(0);
  const std::int64_t columns = a.view().dim(1);
  Distance result;
  double squares = 0;
  double difference_squares = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    const BFloat16* const x = a.as<BFloat16>() + row * columns;
    const BFloat16* const y = b.as<BFloat16>() + row * columns;
    double row_squares = 0;
    for (std::int64_t i = 0; i < columns; ++i) row_squares += to_float(x[i]) * to_float(x[i]);
    const double row_rms = std::sqrt(row_squares / static_cast<double>(columns));
    for (std::int64_t i = 0; i < columns; ++i) {
      const double difference = std::abs(to_float(x[i]) - to_float(y[i]));
      const double share = difference / (0x1p-5 * row_rms + 0x1p-6 * std::abs(to_float(x[i])));
      result.largest = std::max(result.largest, share);
      difference_squares += difference * difference;  // keeps a NaN
    }
    squares += row_squares;
  }
  result.rms = std::sqrt(difference_squares / squares) / 0x1p-7;
  return result;
}

TEST_F(CudaGroupedGemmLevel, AgreesWithTheOtherLevelsOnLargeShapes) {
  const struct {
    Shape shape;
    const char* skew;
  } cases[] = {{{2048, 1024, 2048, 8, 2}, "uniform"},
               {{1500, 2048, 768, 64, 8}, "zipf:1"},
               {{700, 2880, 1408, 8, 2}, "one-expert"}};
  for (const auto& [shape, skew_name] : cases) {
    const Problem problem{shape, DType::kBF16};
    const Skew skew = Skew::parse(skew_name);
    const Weights weights = place(make_weights(problem, 3, skew));
    const TensorView x = place(make_input(problem, 3, 0, skew).view());
    const TensorView y = place(make_input(problem, 3, 1).view());
    const auto options = [&](const std::string& level) {
      return LayerOptions{.level = level,
                          .backend = Backend::kCuda,
                          .problem = problem,
                          .tune_seconds = 0,
                          .tune_cache = "off"};
    };
    // Some levels are for few tokens only, or for one architecture.
    const auto refused = [&](const std::string& level) {
      try {
        static_cast<void>(Layer::predict(options(level)));
      } catch (const Error& error) {
        if (error.code() != ErrorCode::kUnsupported) throw;
        return true;
      }
      return false;
    };
    const auto forward = [&](const std::string& level) {
      Layer layer = Layer::create(options(level), weights);
      MOE_CUDA_CHECK(cudaMemset(y.data, 0xff, y.bytes()));
      layer.forward(x, y);
      return download(y);
    };
    const Tensor mine = forward("grouped_gemm");
    int compared = 0;
    for (const LevelInfo& level : list_levels()) {
      if (!level.on_cuda || level.number < 3 || level.name == "grouped_gemm") continue;
      if (refused(level.name)) continue;
      SCOPED_TRACE(testing::Message() << level.name << " " << to_string(shape) << " " << skew_name);
      const Distance apart = distance(mine, forward(level.name));
      EXPECT_LE(apart.rms, 1);
      EXPECT_LE(apart.largest, 1);
      ++compared;
    }
    EXPECT_GE(compared, 5);  // memefficient to compiled, and persistent
    release();
  }
}

}  // namespace
}  // namespace moe::cuda
