// A forward that the caller records into a graph of its own and replays, for every level that allows it.
#include <cstring>

#include "cuda/graph.h"
#include "cuda/levels/level_test.h"
#include "cuda/ops/fingerprint.h"
#include "moe/error.h"
#include "moe/verify.h"

namespace moe::cuda {
namespace {

std::vector<std::string> cuda_levels() {
  std::vector<std::string> names;
  for (const LevelInfo& level : list_levels()) {
    if (level.on(Backend::kCuda)) names.push_back(level.name);
  }
  return names;
}

class CudaRecordedForward : public CudaLevelTest, public testing::WithParamInterface<std::string> {
 protected:
  LayerOptions options(const Problem& problem, void* stream) const {
    return {.level = GetParam(),
            .backend = Backend::kCuda,
            .problem = problem,
            .tune_seconds = 0,
            .tune_cache = "off",
            .stream = stream,
            .launch = Launch::kEager};  // recorded here
  }
  /// Why the level cannot, or "".
  std::string unsupported(const Problem& problem) const {
    try {
      static_cast<void>(Layer::predict(options(problem, nullptr)));
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnsupported) throw;
      return error.what();
    }
    return {};
  }
};
INSTANTIATE_TEST_SUITE_P(Levels, CudaRecordedForward, testing::ValuesIn(cuda_levels()),
                         [](const auto& parameter) { return parameter.param; });

TEST_P(CudaRecordedForward, FollowsTheRoutingThroughHundredReplays) {
  // Routed in one block or by a grid; few rows an expert and many; sizes that levels pad. All tokens
  // change with every replay, and every fifth time one expert takes all of them.
  int recorded = 0;
  std::string reason;
  for (const Shape& shape :
       {Shape{48, 64, 80, 12, 2}, Shape{300, 96, 160, 16, 4}, Shape{250, 90, 155, 16, 4},
        Shape{1500, 64, 128, 4, 2}, Shape{900, 128, 64, 4, 1}}) {
    const Problem problem{shape, DType::kBF16};
    if (std::string why = unsupported(problem); !why.empty()) {
      reason = why;
      continue;
    }
    const OwnedWeights host = make_weights(problem, 8);
    const Weights weights = place(host);
    const Stream stream(unsigned{cudaStreamNonBlocking});
    Layer layer = Layer::create(options(problem, stream.get()), weights);
    if (!layer.capturable()) GTEST_SKIP() << GetParam() << " cannot be recorded";
    const TensorView x = place(make_input(problem, 8, 0).view());
    const TensorView y = place(make_input(problem, 8, 1).view());
    const TensorView y_eager = place(make_input(problem, 8, 1).view());
    layer.forward(x, y);
    const GraphExec graph(stream.get(), [&] { layer.forward(x, y); });
    for (std::uint64_t i = 2; i < 102; ++i) {
      const Skew skew = Skew::parse(i % 5 == 0 ? "one-expert" : "uniform");
      const Tensor input = make_input(problem, 8, i, skew);
      device().copy_from_host(x.data, input.view().data, x.bytes());
      MOE_CUDA_CHECK(cudaMemset(y.data, 0xff, y.bytes()));
      MOE_CUDA_CHECK(cudaMemset(y_eager.data, 0xff, y.bytes()));
      MOE_CUDA_CHECK(cudaDeviceSynchronize());
      graph.launch(stream.get());
      layer.forward(x, y_eager);
      MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
      const Tensor got = download(y);
      ASSERT_EQ(std::memcmp(got.view().data, download(y_eager).view().data, y.bytes()), 0)
          << "replay " << i << " and the eager forward differ, T=" << shape.tokens;
      if (i % 24 == 5) {
        const Comparison comparison =
            Oracle(problem, host.view(), input.view()).compare(got.view());
        ASSERT_TRUE(comparison.passed) << "input " << i << ": " << comparison.describe();
      }
    }
    ++recorded;
    release();
  }
  if (recorded == 0) GTEST_SKIP() << reason;
}

TEST_P(CudaRecordedForward, ManyForwardsGiveTheSameBits) {
  // Races between kernels that overlap, or between blocks, show once in thousands of forwards. One
  // fingerprint each, compared on the host at the end.
  const Problem problem{{2048, 512, 256, 16, 4}, DType::kBF16};
  if (std::string why = unsupported(problem); !why.empty()) GTEST_SKIP() << why;
  const OwnedWeights host = make_weights(problem, 9);
  const Weights weights = place(host);
  const Stream stream(unsigned{cudaStreamNonBlocking});
  Layer layer = Layer::create(options(problem, stream.get()), weights);
  if (!layer.capturable()) GTEST_SKIP() << GetParam() << " cannot be recorded";
  constexpr int kInputs = 2;
  constexpr int kForwards = 4000;
  TensorView inputs[kInputs];
  for (std::uint64_t i = 0; i < kInputs; ++i) inputs[i] = place(make_input(problem, 9, i).view());
  const TensorView y = place(make_input(problem, 9, kInputs).view());
  const DeviceBuffer sums(kForwards * sizeof(std::uint64_t));
  MOE_CUDA_CHECK(cudaDeviceSynchronize());
  for (int i = 0; i < kForwards; ++i) {
    layer.forward(inputs[i % kInputs], y);
    fingerprint(y.data, y.bytes(), sums.as<std::uint64_t>() + i, stream.get());
  }
  std::vector<std::uint64_t> got(kForwards);
  MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  device().copy_to_host(got.data(), sums.data(), sums.size());
  ASSERT_NE(got[0], got[1]) << "the test's own premise";
  for (int i = kInputs; i < kForwards; ++i) {
    ASSERT_EQ(got[static_cast<std::size_t>(i)], got[static_cast<std::size_t>(i % kInputs)])
        << "forward " << i;
  }
}

}  // namespace
}  // namespace moe::cuda
