// Level 9: replays under changing routing against eager launches bit by bit, NaN, and its limits.
#include <cmath>
#include <cstring>
#include <limits>

#include "core/scalar.h"
#include "cuda/graph.h"
#include "cuda/levels/level_test.h"
#include "moe/error.h"
#include "moe/verify.h"

namespace moe::cuda {
namespace {

class CudaStreaming : public CudaLevelTest {
 protected:
  static Layer create(const Problem& problem, const Weights& weights, void* stream = nullptr,
                      const char* level = "streaming") {
    return Layer::create(
        {.level = level, .backend = Backend::kCuda, .problem = problem, .stream = stream}, weights);
  }
};

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.view().bytes() == b.view().bytes() &&
         std::memcmp(a.view().data, b.view().data, a.view().bytes()) == 0;
}

TEST_F(CudaStreaming, ReplaysWithChangingRoutingAreBitwiseEager) {
  // Graphs of one token, of a few that the second product combines, and of many rows an expert.
  // Each replay's input arrives at the same address and brings another routing.
  for (const std::int64_t tokens : {1, 24, 200}) {
    const Problem problem{{tokens, 128, 96, 16, 4}, DType::kBF16};
    const OwnedWeights host = make_weights(problem, 5);
    const Weights weights = place(host);
    const Stream stream(unsigned{cudaStreamNonBlocking});
    Layer recorded = create(problem, weights, stream.get());
    ASSERT_TRUE(recorded.capturable());
    Layer eager = create(problem, weights);
    const TensorView x = place(make_input(problem, 5, 0).view());
    const TensorView y = place(make_input(problem, 5, 1).view());
    const TensorView y_eager = place(make_input(problem, 5, 1).view());
    const GraphExec graph(stream.get(), [&] { recorded.forward(x, y); });
    Tensor first;
    for (int replay = 0; replay < 120; ++replay) {
      const Skew skew = Skew::parse(replay % 5 == 4 ? "one-expert" : "uniform");
      const Tensor input = make_input(problem, 5, static_cast<std::uint64_t>(replay), skew);
      device().copy_from_host(x.data, input.view().data, x.bytes());
      MOE_CUDA_CHECK(cudaMemset(y.data, 0xff, y.bytes()));
      MOE_CUDA_CHECK(cudaDeviceSynchronize());
      graph.launch(stream.get());
      graph.launch(stream.get());  // the second starts while the first drains
      MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
      eager.forward(x, y_eager);
      const Tensor got = download(y);
      ASSERT_TRUE(same_bits(got, download(y_eager))) << tokens << " tokens, replay " << replay;
      if (replay == 0) {
        first = got;
      } else {
        ASSERT_FALSE(same_bits(first, got)) << tokens << " tokens, replay " << replay;
      }
      if (replay % 40 == 0) {
        const Comparison comparison =
            Oracle(problem, host.view(), input.view()).compare(got.view());
        ASSERT_TRUE(comparison.passed) << comparison.describe();
      }
    }
  }
}

TEST_F(CudaStreaming, TwoLayersOnTwoStreams) {
  const Problem problem{{16, 256, 192, 32, 4}, DType::kBF16};
  const OwnedWeights host = make_weights(problem, 6);
  const Weights weights = place(host);
  const Stream streams[2] = {Stream(unsigned{cudaStreamNonBlocking}),
                             Stream(unsigned{cudaStreamNonBlocking})};
  Layer layers[2] = {create(problem, weights, streams[0].get()),
                     create(problem, weights, streams[1].get())};
  TensorView x[2];
  TensorView y[2];
  Tensor want[2];
  for (std::size_t i = 0; i < 2; ++i) {
    x[i] = place(make_input(problem, 6, i).view());
    y[i] = place(make_input(problem, 6, 9).view());
    Layer alone = create(problem, weights);
    alone.forward(x[i], y[i]);
    want[i] = download(y[i]);
    MOE_CUDA_CHECK(cudaMemset(y[i].data, 0xff, y[i].bytes()));
  }
  MOE_CUDA_CHECK(cudaDeviceSynchronize());
  for (int round = 0; round < 50; ++round) {
    for (std::size_t i = 0; i < 2; ++i) layers[i].forward(x[i], y[i]);
  }
  for (std::size_t i = 0; i < 2; ++i) {
    MOE_CUDA_CHECK(cudaStreamSynchronize(streams[i].get()));
    EXPECT_TRUE(same_bits(download(y[i]), want[i])) << "layer " << i;
  }
}

TEST_F(CudaStreaming, NanStaysInItsToken) {
  const Problem problem{{13, 64, 96, 8, 2}, DType::kBF16};
  const OwnedWeights host = make_weights(problem, 7);
  const Weights weights = place(host);
  Layer layer = create(problem, weights);
  Tensor input = make_input(problem, 7, 0);
  const TensorView y = place(make_input(problem, 7, 1).view());
  layer.forward(place(input.view()), y);
  const Tensor clean = download(y);
  input.as<BFloat16>()[4 * 64 + 9] = from_float<BFloat16>(std::numeric_limits<float>::quiet_NaN());
  layer.forward(place(input.view()), y);
  const Tensor got = download(y);
  for (std::size_t token = 0; token < 13; ++token) {
    for (std::size_t h = 0; h < 64; ++h) {
      const float value = to_float(got.as<BFloat16>()[token * 64 + h]);
      if (token == 4) {
        ASSERT_TRUE(std::isnan(value)) << h;
      } else {
        ASSERT_EQ(value, to_float(clean.as<BFloat16>()[token * 64 + h])) << token << ", " << h;
      }
    }
  }
}

TEST_F(CudaStreaming, SaysWhatItIsNotFor) {
  const auto message = [&](const Problem& problem) -> std::string {
    try {
      static_cast<void>(
          Layer::predict({.level = "streaming", .backend = Backend::kCuda, .problem = problem}));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
      return error.what();
    }
    return {};
  };
  EXPECT_EQ(message({{256, 64, 64, 8, 2}, DType::kBF16}), "");
  const std::string many = message({{257, 64, 64, 8, 2}, DType::kBF16});
  EXPECT_NE(many.find("256"), std::string::npos) << many;
  EXPECT_NE(many.find("257"), std::string::npos) << many;
  EXPECT_NE(message({{8, 64, 64, 8, 2}, DType::kF32}).find("bf16"), std::string::npos);
}

TEST_F(CudaStreaming, AutoTakesItForFewRowsAnExpert) {
  const auto chosen = [&](const Problem& problem) {
    const OwnedWeights host = make_weights(problem, 8);
    return create(problem, place(host), nullptr, "auto").level().name;
  };
  if (query_device(0).major != 9) GTEST_SKIP() << "the crossover is Hopper's";
  EXPECT_EQ(chosen({{4, 128, 64, 16, 2}, DType::kBF16}), "streaming");
  EXPECT_NE(chosen({{256, 128, 64, 4, 4}, DType::kBF16}), "streaming");  // 256 rows an expert
  EXPECT_NE(chosen({{512, 128, 64, 64, 2}, DType::kBF16}), "streaming");
  EXPECT_NE(chosen({{4, 128, 64, 16, 2}, DType::kF32}), "streaming");
}

}  // namespace
}  // namespace moe::cuda
