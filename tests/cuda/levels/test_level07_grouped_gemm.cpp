// Level 7: recorded by a caller, replayed under changing routings; and as a second oracle, on shapes on
// which the one on the host takes minutes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <list>

#include "core/scalar.h"
#include "core/workload.h"
#include "cuda/device_test.h"
#include "cuda/graph.h"
#include "moe/error.h"
#include "moe/verify.h"

namespace moe::cuda {
namespace {

class CudaGroupedGemmLevel : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
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

  TensorView place(const TensorView& host) {
    buffers_.emplace_back(host.bytes());
    TensorView view = host;
    view.data = buffers_.back().data();
    device().copy_from_host(view.data, host.data, host.bytes());
    return view;
  }
  Weights place(const OwnedWeights& host) {
    return {place(host.router.view()), place(host.gate.view()), place(host.up.view()),
            place(host.down.view())};
  }
  Tensor download(const TensorView& y) {
    Tensor got(y.dtype, {y.dim(0), y.dim(1)});
    device().copy_to_host(got.view().data, y.data, y.bytes());
    return got;
  }
  void release() { buffers_.clear(); }

 private:
  std::list<DeviceBuffer> buffers_;
};

TEST_F(CudaGroupedGemmLevel, RecordedForwardFollowsTheRouting) {
  // 96 and 160 are read as they are, 90 and 155 are padded.
  for (const Shape& shape : {Shape{300, 96, 160, 16, 4}, Shape{300, 90, 155, 16, 4}}) {
    const Problem problem{shape, DType::kBF16};
    const OwnedWeights host = make_weights(problem, 8);
    const Weights weights = place(host);
    const Stream stream(unsigned{cudaStreamNonBlocking});
    Layer layer = Layer::create({.level = "grouped_gemm",
                                 .backend = Backend::kCuda,
                                 .problem = problem,
                                 .stream = stream.get()},
                                weights);
    const TensorView x = place(make_input(problem, 8, 0).view());
    const TensorView y = place(make_input(problem, 8, 1).view());
    const TensorView y_eager = place(make_input(problem, 8, 1).view());
    const GraphExec graph(stream.get(), [&] { layer.forward(x, y); });
    for (std::uint64_t i = 2; i < 8; ++i) {
      const Skew skew = Skew::parse(i % 2 == 0 ? "one-expert" : "uniform");
      const Tensor input = make_input(problem, 8, i, skew);
      device().copy_from_host(x.data, input.view().data, x.bytes());
      MOE_CUDA_CHECK(cudaMemset(y.data, 0xff, y.bytes()));
      graph.launch(stream.get());
      MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
      const Tensor got = download(y);
      const Comparison comparison = Oracle(problem, host.view(), input.view()).compare(got.view());
      ASSERT_TRUE(comparison.passed) << "input " << i << ": " << comparison.describe();
      layer.forward(x, y_eager);
      MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
      ASSERT_EQ(std::memcmp(got.view().data, download(y_eager).view().data, y.bytes()), 0)
          << "input " << i << ": replayed and eager differ";
    }
    release();
  }
}

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
    const auto forward = [&](const std::string& level) {
      Layer layer = Layer::create({.level = level,
                                   .backend = Backend::kCuda,
                                   .problem = problem,
                                   .tune_seconds = 0,
                                   .tune_cache = "off"},
                                  weights);
      MOE_CUDA_CHECK(cudaMemset(y.data, 0xff, y.bytes()));
      layer.forward(x, y);
      return download(y);
    };
    const Tensor mine = forward("grouped_gemm");
    for (const LevelInfo& level : list_levels()) {
      if (!level.on_cuda || level.number < 3 || level.name == "grouped_gemm") continue;
      SCOPED_TRACE(testing::Message() << level.name << " " << to_string(shape) << " " << skew_name);
      const Distance apart = distance(mine, forward(level.name));
      EXPECT_LE(apart.rms, 1);
      EXPECT_LE(apart.largest, 1);
    }
    release();
  }
}

}  // namespace
}  // namespace moe::cuda
