// Every router on the device against the fp64 reference, and the two kernels that choose against each
// other.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/rng.h"
#include "cuda/device_test.h"
#include "cuda/ops/router.h"
#include "cuda/ops/routing.h"
#include "reference/reference.h"
#include "reference/rounding.h"

namespace moe::cuda {
namespace {

struct Case {
  const char* router;
  std::int64_t experts;
  std::int64_t top_k;
};

class CudaChooseExperts : public CudaTest {
 protected:
  void check(const Case& one, std::int64_t tokens) {
    SCOPED_TRACE(testing::Message() << one.router << " E=" << one.experts << " K=" << one.top_k);
    Problem problem{.shape = {tokens, 1, 1, one.experts, one.top_k}};
    problem.router = parse_router(one.router);
    validate(problem);
    const auto numbers = [](std::int64_t count, std::uint64_t stream, double deviation) {
      std::vector<float> values(static_cast<std::size_t>(count));
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = static_cast<float>(random_normal(4, stream, i) * deviation);
      }
      return values;
    };
    std::vector<float> logits = numbers(tokens * one.experts, 0, 2);
    std::vector<float> bias = numbers(one.experts, 1, 0.5);
    std::vector<float> selection = numbers(one.experts, 2, 0.1);
    const auto view = [&](float* data) { return TensorView(data, DType::kF32, {one.experts}); };
    Weights host;
    host.router_bias = view(bias.data());
    host.selection_bias = view(selection.data());
    const DeviceArray<float> device_bias(device(), bias);
    const DeviceArray<float> device_selection(device(), selection);
    Weights placed;
    placed.router_bias = view(const_cast<float*>(device_bias.data()));
    placed.selection_bias = view(const_cast<float*>(device_selection.data()));
    const RouterRule rule = RouterRule::of(problem.router, placed);
    const DeviceArray<float> given(device(), logits);
    const std::int64_t routed = tokens * one.top_k;
    const DeviceArray<std::int32_t> idx(device(), routed);
    const DeviceArray<float> weights(device(), routed);
    choose_experts(rule, given.data(), tokens, one.experts, one.top_k, idx.data(), weights.data(),
                   stream());
    const std::vector<std::int32_t> experts = idx.download();
    const std::vector<float> got = weights.download();
    EXPECT_TRUE(idx.intact() && weights.intact() && given.intact());

    for (std::int64_t token = 0; token < tokens; ++token) {
      std::vector<reference::Logit> row;
      for (std::int64_t expert = 0; expert < one.experts; ++expert) {
        double logit = logits[static_cast<std::size_t>(token * one.experts + expert)];
        if (problem.router.bias)
          logit += static_cast<double>(bias[static_cast<std::size_t>(expert)]);
        // What fp32 loses before it ranks.
        row.push_back({logit, 16 * reference::kFp32Variance * (1 + logit * logit)});
      }
      const reference::Route route = reference::route_logits(problem, host, row);
      bool matched = false;
      for (const reference::Choice& choice : route.choices) {
        bool same = true;
        for (std::int64_t slot = 0; slot < one.top_k; ++slot) {
          const auto at = static_cast<std::size_t>(token * one.top_k + slot);
          const auto found = std::find(choice.experts.begin(), choice.experts.end(), experts[at]);
          if (found == choice.experts.end()) {
            same = false;
            break;
          }
          const double want =
              choice.weights[static_cast<std::size_t>(found - choice.experts.begin())];
          same = same && std::abs(got[at] - want) <= 2e-5 * std::abs(want) + 1e-12;
        }
        matched = matched || same;
      }
      ASSERT_TRUE(matched) << "token " << token << ": expert "
                           << experts[static_cast<std::size_t>(token * one.top_k)] << " weight "
                           << got[static_cast<std::size_t>(token * one.top_k)] << ", wanted "
                           << route.choices[0].experts[0] << " with "
                           << route.choices[0].weights[0];
    }

    const DeviceArray<std::int32_t> sorted_idx(device(), routed);
    const DeviceArray<float> sorted_weights(device(), routed);
    const DeviceArray<std::int32_t> offsets(device(), one.experts + 1);
    const DeviceArray<std::int32_t> rows(device(), routed);
    const DeviceArray<std::int32_t> scratch(
        device(), permutation_scratch(routed, one.experts, device().facts()));
    route_rows(given.data(), tokens, one.experts, one.top_k, sorted_idx.data(),
               sorted_weights.data(), {offsets.data(), rows.data(), scratch.data()},
               device().facts(), stream(), rule);
    EXPECT_EQ(sorted_idx.download(), experts);
    EXPECT_EQ(sorted_weights.download(), got);
    EXPECT_EQ(offsets.download().back(), routed);
  }
};

TEST_F(CudaChooseExperts, MatchesTheReference) {
  for (const Case& one : std::vector<Case>{{"softmax,bias", 32, 4},
                                           {"softmax,raw", 64, 8},
                                           {"softmax,raw,scale=2", 60, 6},
                                           {"softmax,raw,groups=8/3,scale=16", 160, 6},
                                           {"softmax,groups=3/2", 9, 4},
                                           {"sigmoid", 8, 2},
                                           {"sigmoid,raw", 16, 1},
                                           {"sigmoid,selection-bias,groups=8/4,scale=2.5", 256, 8},
                                           {"sigmoid,bias,selection-bias,groups=5/3", 40, 7},
                                           {"sigmoid,selection-bias,scale=2.827", 384, 8},
                                           {"sigmoid,selection-bias", 512, 22},
                                           {"sigmoid,selection-bias,groups=32/8", 64, 8},
                                           {"sigmoid,groups=7/7", 7, 7},
                                           {"sqrtsoftplus,selection-bias,scale=1.5", 256, 6},
                                           {"sqrtsoftplus,raw,groups=2/1", 1024, 32},
                                           {"sparsemixer", 16, 2},
                                           {"sparsemixer,bias,scale=0.5", 200, 4}}) {
    for (const std::int64_t tokens : {1, 65}) check(one, tokens);
  }
}

TEST_F(CudaChooseExperts, LowestIndexWinsAndNaNIsMinusInfinity) {
  const float nan = std::nanf("");
  for (const char* router : {"softmax,raw", "sigmoid", "sqrtsoftplus", "sparsemixer"}) {
    const RouterRule rule = RouterRule::of(parse_router(router), {});
    const DeviceArray<float> given(
        device(), std::vector<float>{0, 2, 1, 2, 1, 0, 0, 0, nan, 1, nan, 2, nan, nan, nan, nan});
    const DeviceArray<std::int32_t> idx(device(), 6);
    const DeviceArray<float> weights(device(), 6);
    choose_experts(rule, given.data(), 2, 8, 3, idx.data(), weights.data(), stream());
    EXPECT_EQ(idx.download(), (std::vector<std::int32_t>{1, 3, 2, 3, 1, 0})) << router;
    EXPECT_EQ(weights.download()[5], 0.0F) << router;
    EXPECT_GT(weights.download()[4], 0.0F) << router;
  }
}

}  // namespace
}  // namespace moe::cuda
