// Level 9 and the blocks of real models: every number of tokens, sizes off the vectors, given routes that
// name nothing, NaN, and replays.
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "conformance/blocks_under_test.h"
#include "core/scalar.h"
#include "cuda/graph.h"
#include "cuda/levels/level_test.h"
#include "moe/error.h"
#include "moe/verify.h"
#include "verify/layer_check.h"

namespace moe::cuda {
namespace {

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.view().bytes() == b.view().bytes() &&
         std::memcmp(a.view().data, b.view().data, a.view().bytes()) == 0;
}

class CudaStreamingBlocks : public CudaLevelTest {
 protected:
  static Problem problem_of(const Shape& shape, const std::string& options) {
    Problem problem{shape, DType::kBF16};
    set_block_options(problem, options);
    return problem;
  }
  static Layer create(const Problem& problem, const Weights& weights, void* stream = nullptr) {
    return Layer::create({.level = "streaming",
                          .backend = Backend::kCuda,
                          .problem = problem,
                          .tune_cache = "off",
                          .stream = stream,
                          .launch = Launch::kEager},  // these tests record themselves
                         weights);
  }
  /// Routes on the device.
  Routes place_routes(const OwnedRoutes& host) { return {copy(host.experts), copy(host.weights)}; }
  static void forward(Layer& layer, const TensorView& x, const TensorView& y,
                      const Routes& routes) {
    if (routes.experts == nullptr) {
      layer.forward(x, y);
    } else {
      layer.forward(x, y, routes);
    }
  }
  static void fill_with_nan(const TensorView& y) {
    MOE_CUDA_CHECK(cudaMemset(y.data, 0xff, y.bytes()));
    MOE_CUDA_CHECK(cudaDeviceSynchronize());
  }

 private:
  template <class Value>
  const Value* copy(const std::vector<Value>& values) {
    arrays_.emplace_back(values.size() * sizeof(Value));
    device().copy_from_host(arrays_.back().data(), values.data(), arrays_.back().size());
    return arrays_.back().as<const Value>();
  }
  std::list<DeviceBuffer> arrays_;
};

TEST_F(CudaStreamingBlocks, EveryNumberOfTokensOfABucket) {
  const std::set<std::int64_t> counts = [] {
    std::set<std::int64_t> rows = {24, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 255, 256};
    for (std::int64_t few = 1; few <= 18; ++few) rows.insert(few);
    return rows;
  }();
  for (const Block& block : kBlocks) {
    SCOPED_TRACE(block.name);
    const Problem problem = problem_of({256, 72, 40, 12, 3}, block.options);
    const OwnedWeights host = make_weights(problem, 11);
    const bool given = problem.router.scoring == Scoring::kGiven;
    const OwnedRoutes host_routes = given ? make_routes(problem.shape, 11, 0) : OwnedRoutes{};
    const Routes routes = given ? place_routes(host_routes) : Routes{};
    Layer layer = create(problem, place(host));
    const Tensor input = make_input(problem, 11, 0);
    const Oracle oracle(problem, host.view(), input.view(), {.routes = host_routes.view()});
    const TensorView x = place(input.view());
    const TensorView y = place(make_input(problem, 11, 1).view());
    for (const std::int64_t rows : counts) {
      fill_with_nan(y);
      forward(layer, x.first_rows(rows), y.first_rows(rows), routes);
      const Tensor got = download(y);
      const Comparison comparison = oracle.compare(got.view().first_rows(rows));
      ASSERT_TRUE(comparison.passed) << rows << " rows: " << comparison.describe();
      for (std::int64_t i = rows * 72; i < 256 * 72; ++i) {
        ASSERT_TRUE(std::isnan(to_float(got.as<BFloat16>()[i]))) << "written behind row " << rows;
      }
    }
    Problem more = problem;
    more.shape.tokens = 257;
    EXPECT_THROW(static_cast<void>(Layer::predict(
                     {.level = "streaming", .backend = Backend::kCuda, .problem = more})),
                 Error);
    release();
  }
}

TEST_F(CudaStreamingBlocks, SizesOffTheVectors) {
  // H, I and the shared expert's size each a multiple of eight or not; one token, few, many; experts in
  // one lane's register and in several.
  const Shape shapes[] = {{1, 33, 40, 12, 3},  {1, 64, 7, 12, 3},    {5, 33, 40, 12, 3},
                          {20, 64, 7, 12, 3},  {1, 128, 64, 64, 8},  {19, 128, 64, 64, 8},
                          {1, 64, 24, 256, 4}, {12, 64, 24, 256, 4}, {2, 64, 24, 320, 4},
                          {1, 64, 24, 320, 4}, {1, 512, 1160, 8, 4}, {1, 64, 600, 8, 2}};
  for (const Shape& shape : shapes) {
    for (const Block& block : kBlocks) {
      SCOPED_TRACE(to_string(shape) + " " + block.name);
      const Problem problem = problem_of(shape, block.options);
      const OwnedWeights host = make_weights(problem, 12);
      Layer layer = create(problem, place(host));
      const VerifyResult result = LayerCheck(problem, host.view(), 12, Skew{}).run(layer);
      EXPECT_TRUE(result.passed) << result.failure;
      release();
    }
  }
}

TEST_F(CudaStreamingBlocks, SlotsThatNameNoExpertAreNotUsed) {
  constexpr std::int32_t kLeast = std::numeric_limits<std::int32_t>::min();
  constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const std::int64_t tokens : {1, 4, 40}) {
    for (const char* options : {"--router given", "--router given --expert-bias --shared 20"}) {
      SCOPED_TRACE(testing::Message() << tokens << " tokens, " << options);
      const Problem problem = problem_of({tokens, 48, 24, 5, 4}, options);
      const OwnedWeights host = make_weights(problem, 13);
      Layer layer = create(problem, place(host));
      const TensorView x = place(make_input(problem, 13, 0).view());
      const TensorView y = place(make_input(problem, 13, 1).view());
      const auto routed = static_cast<std::size_t>(tokens) * 4;
      OwnedRoutes clean{std::vector<std::int32_t>(routed, -1), std::vector<float>(routed, nan)};
      OwnedRoutes strange = clean;
      for (std::size_t token = 0; token < routed / 4; ++token) {
        const std::size_t at = token * 4;
        const auto expert = static_cast<std::int32_t>(token % 5);
        // Two slots of one expert are one with the sum of their weights.
        strange.experts[at] = kMost;
        clean.experts[at + 1] = strange.experts[at + 1] = strange.experts[at + 3] = expert;
        strange.experts[at + 2] = token % 2 == 0 ? kLeast : 5;
        clean.weights[at + 1] = 0.75F;
        strange.weights[at + 1] = 0.25F;
        strange.weights[at + 3] = 0.5F;
      }
      layer.forward(x, y, place_routes(clean));
      const Tensor want = download(y);
      fill_with_nan(y);
      layer.forward(x, y, place_routes(strange));
      EXPECT_TRUE(same_bits(download(y), want));
      EXPECT_TRUE(
          Oracle(problem, host.view(), make_input(problem, 13, 0).view(), {.routes = clean.view()})
              .compare(want.view())
              .passed);
      // No expert at all: zeros, or what the shared one says.
      const OwnedRoutes none{std::vector<std::int32_t>(routed, -1),
                             std::vector<float>(routed, nan)};
      fill_with_nan(y);
      layer.forward(x, y, place_routes(none));
      const Tensor got = download(y);
      const Comparison comparison =
          Oracle(problem, host.view(), make_input(problem, 13, 0).view(), {.routes = none.view()})
              .compare(got.view());
      EXPECT_TRUE(comparison.passed) << comparison.describe();
      if (problem.shared_intermediate == 0) {
        for (std::int64_t i = 0; i < tokens * 48; ++i) {
          ASSERT_EQ(to_float(got.as<BFloat16>()[i]), 0) << i;
        }
      }
      release();
    }
  }
}

TEST_F(CudaStreamingBlocks, WhatNoExpertTakesIsNotTouched) {
  // A row of padding may hold anything.
  for (const std::int64_t tokens : {1, 10}) {
    const Problem problem = problem_of({tokens, 48, 24, 5, 2}, "--router given");
    const OwnedWeights host = make_weights(problem, 14);
    Layer layer = create(problem, place(host));
    Tensor input = make_input(problem, 14, 0);
    const auto padding = static_cast<std::size_t>(tokens - 1);
    for (std::size_t h = 0; h < 48; ++h) {
      input.as<BFloat16>()[padding * 48 + h] =
          from_float<BFloat16>(std::numeric_limits<float>::quiet_NaN());
    }
    OwnedRoutes routes{std::vector<std::int32_t>(static_cast<std::size_t>(tokens) * 2, 3),
                       std::vector<float>(static_cast<std::size_t>(tokens) * 2, 0.5F)};
    routes.experts[padding * 2] = routes.experts[padding * 2 + 1] = -1;
    const TensorView y = place(make_input(problem, 14, 1).view());
    fill_with_nan(y);
    layer.forward(place(input.view()), y, place_routes(routes));
    const Tensor got = download(y);
    for (std::size_t i = 0; i < static_cast<std::size_t>(tokens) * 48; ++i) {
      const float value = to_float(got.as<BFloat16>()[i]);
      ASSERT_TRUE(std::isfinite(value)) << i;
      ASSERT_EQ(value == 0, i >= padding * 48) << i;
    }
  }
}

TEST_F(CudaStreamingBlocks, NanStaysInItsToken) {
  for (const Block& block : kBlocks) {
    for (const std::int64_t tokens : {1, 13, 40}) {
      SCOPED_TRACE(testing::Message() << block.name << ", " << tokens << " tokens");
      const Problem problem = problem_of({tokens, 64, 40, 12, 3}, block.options);
      const bool given = problem.router.scoring == Scoring::kGiven;
      OwnedRoutes host_routes = given ? make_routes(problem.shape, 15, 0) : OwnedRoutes{};
      const std::size_t of_nan = static_cast<std::size_t>(tokens) / 3;
      if (given) host_routes.experts[of_nan * 3] = 7;  // its row has an expert
      const Routes routes = given ? place_routes(host_routes) : Routes{};
      const OwnedWeights host = make_weights(problem, 15);
      Layer layer = create(problem, place(host));
      Tensor input = make_input(problem, 15, 0);
      const TensorView y = place(make_input(problem, 15, 1).view());
      forward(layer, place(input.view()), y, routes);
      const Tensor clean = download(y);
      input.as<BFloat16>()[of_nan * 64 + 9] =
          from_float<BFloat16>(std::numeric_limits<float>::quiet_NaN());
      forward(layer, place(input.view()), y, routes);
      const Tensor got = download(y);
      for (std::size_t i = 0; i < static_cast<std::size_t>(tokens) * 64; ++i) {
        const float value = to_float(got.as<BFloat16>()[i]);
        if (i / 64 == of_nan) {
          ASSERT_TRUE(std::isnan(value)) << i;
        } else {
          ASSERT_EQ(value, to_float(clean.as<BFloat16>()[i])) << i;
        }
      }
      release();
    }
  }
}

TEST_F(CudaStreamingBlocks, ReplaysWithChangingRoutingAreBitwiseEager) {
  constexpr std::size_t kInputs = 20;
  for (const Block& block : kBlocks) {
    for (const std::int64_t tokens : {1, 24}) {
      SCOPED_TRACE(testing::Message() << block.name << ", " << tokens << " tokens");
      const Problem problem = problem_of({tokens, 128, 96, 12, 3}, block.options);
      const bool given = problem.router.scoring == Scoring::kGiven;
      const OwnedWeights host = make_weights(problem, 16);
      const Weights weights = place(host);
      const Stream stream(unsigned{cudaStreamNonBlocking});
      Layer recorded = create(problem, weights, stream.get());
      ASSERT_TRUE(recorded.capturable());
      Layer eager = create(problem, weights);
      const TensorView x = place(make_input(problem, 16, 0).view());
      const TensorView y = place(make_input(problem, 16, 1).view());
      const TensorView y_eager = place(make_input(problem, 16, 1).view());
      const Routes routes = given ? place_routes(make_routes(problem.shape, 16, 0)) : Routes{};
      const GraphExec graph(stream.get(), [&] { forward(recorded, x, y, routes); });
      Tensor before;
      for (std::size_t i = 0; i < 3 * kInputs; ++i) {
        const Tensor input = make_input(problem, 16, i % kInputs);
        device().copy_from_host(x.data, input.view().data, x.bytes());
        if (given) {  // other experts at the same address
          const OwnedRoutes other = make_routes(problem.shape, 16, i % kInputs);
          device().copy_from_host(const_cast<std::int32_t*>(routes.experts), other.experts.data(),
                                  other.experts.size() * sizeof(std::int32_t));
          device().copy_from_host(const_cast<float*>(routes.weights), other.weights.data(),
                                  other.weights.size() * sizeof(float));
        }
        fill_with_nan(y);
        graph.launch(stream.get());
        graph.launch(stream.get());  // the second starts while the first drains
        MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
        forward(eager, x, y_eager, routes);
        const Tensor got = download(y);
        ASSERT_TRUE(same_bits(got, download(y_eager))) << "replay " << i;
        if (i > 0 && !(given && tokens == 1)) {
          ASSERT_FALSE(same_bits(before, got)) << "replay " << i;
        }
        before = got;
      }
      release();
    }
  }
}

TEST_F(CudaStreamingBlocks, SaysHowManyExpertsItLists) {
  const Problem problem = problem_of({8, 64, 8, 1000, 2}, "--shared 200");  // 25 parts
  try {
    static_cast<void>(
        Layer::predict({.level = "streaming", .backend = Backend::kCuda, .problem = problem}));
    ADD_FAILURE() << "1025 experts passed";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    const std::string text = error.what();
    EXPECT_NE(text.find("1024"), std::string::npos) << text;
    EXPECT_NE(text.find("25 parts"), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace moe::cuda
