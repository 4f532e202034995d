// Level 9: replays under changing routing against eager launches bit by bit, every number of tokens of a
// bucket, NaN, company on the device, and its limits.
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "core/scalar.h"
#include "cuda/graph.h"
#include "cuda/levels/level_test.h"
#include "cuda/occupied_device.h"
#include "moe/error.h"
#include "moe/verify.h"

namespace moe::cuda {
namespace {

class CudaStreaming : public CudaLevelTest {
 protected:
  static Layer create(const Problem& problem, const Weights& weights, void* stream = nullptr,
                      const char* level = "streaming") {
    return Layer::create({.level = level,
                          .backend = Backend::kCuda,
                          .problem = problem,
                          .stream = stream,
                          .launch = Launch::kEager},  // these tests record themselves
                         weights);
  }
  void two_layers(const Problem& problem);
  void nan_in_one_token(std::int64_t tokens);
};

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.view().bytes() == b.view().bytes() &&
         std::memcmp(a.view().data, b.view().data, a.view().bytes()) == 0;
}

TEST_F(CudaStreaming, AThousandReplaysWithChangingRoutingAreBitwiseEager) {
  // Graphs of one token, of a few, and of many rows an expert. Each replay's input arrives at the same
  // address and brings another routing than the one before.
  constexpr int kReplays = 1000;
  constexpr std::size_t kInputs = 50;
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
    std::vector<Tensor> inputs;
    for (std::uint64_t i = 0; i < kInputs; ++i) {
      inputs.push_back(
          make_input(problem, 5, i, Skew::parse(i % 5 == 4 ? "one-expert" : "uniform")));
    }
    Tensor before;
    for (int replay = 0; replay < kReplays; ++replay) {
      const Tensor& input = inputs[static_cast<std::size_t>(replay) % kInputs];
      device().copy_from_host(x.data, input.view().data, x.bytes());
      MOE_CUDA_CHECK(cudaMemset(y.data, 0xff, y.bytes()));
      MOE_CUDA_CHECK(cudaDeviceSynchronize());
      graph.launch(stream.get());
      graph.launch(stream.get());  // the second starts while the first drains
      MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
      eager.forward(x, y_eager);
      const Tensor got = download(y);
      ASSERT_TRUE(same_bits(got, download(y_eager))) << tokens << " tokens, replay " << replay;
      if (replay > 0) {
        ASSERT_FALSE(same_bits(before, got)) << tokens << " tokens, replay " << replay;
      }
      before = got;
      if (replay < static_cast<int>(kInputs) && replay % 10 == 4) {
        const Comparison comparison =
            Oracle(problem, host.view(), input.view()).compare(got.view());
        ASSERT_TRUE(comparison.passed) << comparison.describe();
      }
    }
  }
}

TEST_F(CudaStreaming, EveryNumberOfTokensOfABucket) {
  const Problem problem{{256, 72, 56, 12, 3}, DType::kBF16};
  const OwnedWeights host = make_weights(problem, 11);
  Layer layer = create(problem, place(host));
  const Tensor input = make_input(problem, 11, 0);
  const Oracle oracle(problem, host.view(), input.view());
  const TensorView x = place(input.view());
  const TensorView y = place(make_input(problem, 11, 1).view());
  for (std::int64_t rows = 1; rows <= 256; ++rows) {
    MOE_CUDA_CHECK(cudaMemset(y.data, 0xff, y.bytes()));
    layer.forward(x.first_rows(rows), y.first_rows(rows));
    const Tensor got = download(y);
    const Comparison comparison = oracle.compare(got.view().first_rows(rows));
    ASSERT_TRUE(comparison.passed) << rows << " rows: " << comparison.describe();
    for (std::int64_t i = rows * 72; i < 256 * 72; ++i) {
      ASSERT_TRUE(std::isnan(to_float(got.as<BFloat16>()[i]))) << "written behind row " << rows;
    }
  }
  // None is no work at all, and more than the bucket an error with both numbers.
  MOE_CUDA_CHECK(cudaMemset(y.data, 0xff, y.bytes()));
  EXPECT_TRUE(layer.trace(x.first_rows(0), y.first_rows(0)).empty());
  EXPECT_TRUE(std::isnan(to_float(download(y).as<BFloat16>()[0])));
  const Problem more{{257, 72, 56, 12, 3}, DType::kBF16};
  const TensorView large = place(make_input(more, 11, 2).view());
  const TensorView y_large = place(make_input(more, 11, 3).view());
  try {
    layer.forward(large, y_large);
    ADD_FAILURE() << "257 rows passed";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_STREQ(error.what(), "x has 257 rows, but the layer was created for tokens=256");
  }
}

TEST_F(CudaStreaming, FinishesWhateverElseHoldsTheDevice) {
  // No block waits for one that may not be resident: two free multiprocessors are enough, and a device
  // that is taken altogether only delays.
  const int multiprocessors = query_device(0).multiprocessors;
  for (const std::int64_t tokens : {1, 24, 200}) {
    SCOPED_TRACE(testing::Message() << tokens << " tokens");
    const Problem problem{{tokens, 256, 192, 32, 4}, DType::kBF16};
    const OwnedWeights host = make_weights(problem, 10);
    const Stream stream(unsigned{cudaStreamNonBlocking});
    Layer layer = create(problem, place(host), stream.get());
    const TensorView x = place(make_input(problem, 10, 0).view());
    const TensorView y = place(make_input(problem, 10, 1).view());
    layer.forward(x, y);  // loads the kernels, which would wait for the device
    const GraphExec graph(stream.get(), [&] { layer.forward(x, y); });
    graph.launch(stream.get());
    MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
    const Tensor want = download(y);
    const auto finishes = [&] {
      const auto start = std::chrono::steady_clock::now();
      while (cudaStreamQuery(stream.get()) == cudaErrorNotReady) {
        if (std::chrono::steady_clock::now() - start > std::chrono::seconds(10)) return false;
        std::this_thread::yield();
      }
      return true;
    };
    MOE_CUDA_CHECK(cudaMemset(y.data, 0xff, y.bytes()));
    MOE_CUDA_CHECK(cudaDeviceSynchronize());
    {
      const OccupiedDevice busy(multiprocessors - 2);
      for (int i = 0; i < 20; ++i) {
        graph.launch(stream.get());
        layer.forward(x, y);
      }
      EXPECT_TRUE(finishes());
      EXPECT_TRUE(busy.holds()) << "the test's own premise";
    }
    MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
    EXPECT_TRUE(same_bits(download(y), want));
    MOE_CUDA_CHECK(cudaMemset(y.data, 0xff, y.bytes()));
    MOE_CUDA_CHECK(cudaDeviceSynchronize());
    {
      const OccupiedDevice busy(multiprocessors);
      graph.launch(stream.get());
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      EXPECT_EQ(cudaStreamQuery(stream.get()), cudaErrorNotReady) << "the test's own premise";
    }
    EXPECT_TRUE(finishes());
    EXPECT_TRUE(same_bits(download(y), want));
    release();
  }
}

TEST_F(CudaStreaming, TwoLayersOnTwoStreams) {
  for (const std::int64_t tokens : {1, 16, 200}) {
    two_layers({{tokens, 256, 192, 32, 4}, DType::kBF16});
  }
}

void CudaStreaming::two_layers(const Problem& problem) {
  SCOPED_TRACE(testing::Message() << problem.shape.tokens << " tokens");
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
  for (const std::int64_t tokens : {1, 13, 100}) nan_in_one_token(tokens);
}

void CudaStreaming::nan_in_one_token(std::int64_t tokens) {
  const std::size_t of_nan = static_cast<std::size_t>(tokens) / 3;
  const Problem problem{{tokens, 64, 96, 8, 2}, DType::kBF16};
  const OwnedWeights host = make_weights(problem, 7);
  const Weights weights = place(host);
  Layer layer = create(problem, weights);
  Tensor input = make_input(problem, 7, 0);
  const TensorView y = place(make_input(problem, 7, 1).view());
  layer.forward(place(input.view()), y);
  const Tensor clean = download(y);
  input.as<BFloat16>()[of_nan * 64 + 9] =
      from_float<BFloat16>(std::numeric_limits<float>::quiet_NaN());
  layer.forward(place(input.view()), y);
  const Tensor got = download(y);
  for (std::size_t token = 0; token < static_cast<std::size_t>(tokens); ++token) {
    for (std::size_t h = 0; h < 64; ++h) {
      const float value = to_float(got.as<BFloat16>()[token * 64 + h]);
      if (token == of_nan) {
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
