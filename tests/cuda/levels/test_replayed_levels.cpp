// Levels that replay what comes again: under changing routing against eager launches of the same kernels,
// bit by bit.
#include <cstring>

#include "cuda/graph.h"
#include "cuda/levels/level_test.h"
#include "moe/error.h"
#include "moe/verify.h"

namespace moe::cuda {
namespace {

class ReplayedLevels : public CudaLevelTest, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    CudaLevelTest::SetUp();
    if (!IsSkipped() && level() != "graphs" && device().facts().major != 9) {
      GTEST_SKIP() << level() << " is for compute capability 9.0";
    }
  }
  [[nodiscard]] std::string level() const { return GetParam(); }
  Layer create(const Problem& problem, const Weights& weights, Launch launch,
               void* stream = nullptr) {
    return Layer::create({.level = level(),
                          .backend = Backend::kCuda,
                          .problem = problem,
                          .stream = stream,
                          .launch = launch},
                         weights);
  }
};

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.view().bytes() == b.view().bytes() &&
         std::memcmp(a.view().data, b.view().data, a.view().bytes()) == 0;
}

TEST_P(ReplayedLevels, HundredReplaysWithChangingRoutingAreBitwiseEager) {
  // 40 tokens: routing in one block; 700: a grid. The inputs of a replay arrive at one address, and
  // each brings another routing; every fifth is skewed.
  for (const std::int64_t tokens : {40, 700}) {
    if (tokens > 256 && level() == "streaming") continue;
    const Problem problem{{tokens, 128, 96, 16, 4}, DType::kBF16};
    const OwnedWeights host = make_weights(problem, 5);
    const Weights weights = place(host);
    Layer graph = create(problem, weights, Launch::kGraph);
    Layer eager = create(problem, weights, Launch::kEager);
    ASSERT_EQ(graph.launch(), Launch::kGraph);
    ASSERT_EQ(eager.launch(), Launch::kEager);
    const TensorView x = place(make_input(problem, 5, 0).view());
    const TensorView y = place(make_input(problem, 5, 1).view());
    const TensorView y_eager = place(make_input(problem, 5, 1).view());
    std::vector<Tensor> answers;
    for (int replay = 0; replay < 100; ++replay) {
      const Skew skew = Skew::parse(replay % 5 == 4 ? "one-expert" : "uniform");
      const Tensor input = make_input(problem, 5, static_cast<std::uint64_t>(replay), skew);
      device().copy_from_host(x.data, input.view().data, x.bytes());
      MOE_CUDA_CHECK(cudaMemset(y.data, 0xff, y.bytes()));
      graph.forward(x, y);
      eager.forward(x, y_eager);
      answers.push_back(download(y));
      ASSERT_TRUE(same_bits(answers.back(), download(y_eager))) << "replay " << replay;
      if (replay > 0) {
        ASSERT_FALSE(same_bits(answers[0], answers.back())) << "replay " << replay;
      }
      if (replay % 25 == 0) {
        const Oracle oracle(problem, host.view(), input.view());
        const Comparison comparison = oracle.compare(answers.back().view());
        ASSERT_TRUE(comparison.passed) << comparison.describe();
      }
    }
    EXPECT_EQ(graph.trace(x, y), eager.trace(x, y)) << "a trace shows the steps";
  }
}

TEST_P(ReplayedLevels, AnyRowsAndAddresses) {
  // More (x, y, rows) than graphs are kept: each is still answered by its own, queued the first time,
  // recorded the second, replayed the third.
  const Problem problem{{64, 64, 80, 8, 2}, DType::kBF16};
  const OwnedWeights host = make_weights(problem, 6);
  const Weights weights = place(host);
  Layer graph = create(problem, weights, Launch::kGraph);
  Layer eager = create(problem, weights, Launch::kEager);
  std::vector<TensorView> inputs;
  std::vector<TensorView> outputs;
  for (std::uint64_t i = 0; i < 3; ++i) {
    inputs.push_back(place(make_input(problem, 6, i).view()));
    outputs.push_back(place(make_input(problem, 6, 9).view()));
  }
  const TensorView y_eager = place(make_input(problem, 6, 9).view());
  for (int round = 0; round < 2; ++round) {
    for (const std::int64_t rows : {1, 2, 3, 7, 16, 33, 64}) {
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        const TensorView y = outputs[(i + static_cast<std::size_t>(round)) % 3].first_rows(rows);
        eager.forward(inputs[i].first_rows(rows), y_eager.first_rows(rows));
        for (int again = 0; again < 3; ++again) {
          MOE_CUDA_CHECK(cudaMemset(y.data, 0xff, y.bytes()));
          graph.forward(inputs[i].first_rows(rows), y);
          ASSERT_TRUE(same_bits(download(y), download(y_eager.first_rows(rows))))
              << rows << " rows of input " << i << ", round " << round << ", forward " << again;
        }
      }
    }
  }
}

TEST_P(ReplayedLevels, GivenRoutesAreThoseOfTheForward) {
  // Two sets of routes at addresses of their own, in turns: a graph belongs to one of them.
  Problem problem{{40, 64, 80, 8, 2}, DType::kBF16};
  problem.router = parse_router("given");
  const Weights weights = place(make_weights(problem, 9));
  Layer graph = create(problem, weights, Launch::kGraph);
  Layer eager = create(problem, weights, Launch::kEager);
  const TensorView x = place(make_input(problem, 9, 0).view());
  const TensorView y = place(make_input(problem, 9, 1).view());
  const OwnedRoutes host[2] = {make_routes(problem.shape, 9, 0), make_routes(problem.shape, 9, 1)};
  const DeviceArray<std::int32_t> experts[2] = {{device(), host[0].experts},
                                                {device(), host[1].experts}};
  const DeviceArray<float> slot_weights[2] = {{device(), host[0].weights},
                                              {device(), host[1].weights}};
  std::vector<Tensor> answers;
  for (int turn = 0; turn < 8; ++turn) {
    const Routes routes{experts[turn % 2].data(), slot_weights[turn % 2].data()};
    MOE_CUDA_CHECK(cudaMemset(y.data, 0xff, y.bytes()));
    graph.forward(x, y, routes);
    answers.push_back(download(y));
    eager.forward(x, y, routes);
    ASSERT_TRUE(same_bits(answers.back(), download(y))) << "turn " << turn;
  }
  EXPECT_FALSE(same_bits(answers[0], answers[1])) << "the test's own premise";
}

TEST_P(ReplayedLevels, ReplaysAllocateNothing) {
  const Problem problem{{256, 256, 128, 8, 2}, DType::kBF16};
  const OwnedWeights host = make_weights(problem, 7);
  const Weights weights = place(host);
  const std::uint64_t before = device().available_memory();
  Layer layer = create(problem, weights, Launch::kGraph);
  const TensorView x = place(make_input(problem, 7, 0).view());
  const TensorView y = place(make_input(problem, 7, 1).view());
  layer.forward(x, y);
  layer.forward(x, y);  // records
  const std::uint64_t settled = device().available_memory();
  for (int i = 0; i < 50; ++i) layer.forward(x, y);
  EXPECT_EQ(device().available_memory(), settled);
  // 2 MiB is the unit in which the driver takes memory; each of our few blocks may round up to it.
  EXPECT_LE(before - settled, layer.memory().total() + x.bytes() + y.bytes() + (16U << 20));
}

TEST_P(ReplayedLevels, CallersCanRecordTheirOwnGraph) {
  const Problem problem{{48, 64, 64, 8, 2}, DType::kBF16};
  const OwnedWeights host = make_weights(problem, 8);
  const Weights weights = place(host);
  const Stream stream(unsigned{cudaStreamNonBlocking});
  Layer layer = create(problem, weights, Launch::kGraph, stream.get());
  const TensorView x = place(make_input(problem, 8, 0).view());
  const TensorView y = place(make_input(problem, 8, 1).view());
  const GraphExec callers(stream.get(), [&] { layer.forward(x, y); });
  EXPECT_GE(callers.nodes(), 3U);
  for (std::uint64_t i = 2; i < 5; ++i) {
    const Tensor input = make_input(problem, 8, i);
    device().copy_from_host(x.data, input.view().data, x.bytes());
    MOE_CUDA_CHECK(cudaMemsetAsync(y.data, 0xff, y.bytes(), stream.get()));
    callers.launch(stream.get());
    MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
    const Comparison comparison =
        Oracle(problem, host.view(), input.view()).compare(download(y).view());
    EXPECT_TRUE(comparison.passed) << comparison.describe();
  }
}

INSTANTIATE_TEST_SUITE_P(Cuda, ReplayedLevels,
                         testing::Values("graphs", "grouped_gemm", "persistent", "streaming"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace moe::cuda
