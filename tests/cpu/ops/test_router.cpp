#include "cpu/ops/router.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace moe::cpu {
namespace {

struct Routed {
  std::vector<std::int32_t> idx;
  std::vector<float> weights;
};

/// Experts and weights of one token with these logits, on the highest tier of this machine.
Routed route_row(std::vector<float> logits, std::int64_t top_k,
                 const std::string& router = "softmax", const std::vector<float>& bias = {},
                 const std::vector<float>& selection = {}) {
  const auto experts = static_cast<std::int64_t>(logits.size());
  Routed out{std::vector<std::int32_t>(static_cast<std::size_t>(top_k)),
             std::vector<float>(static_cast<std::size_t>(top_k))};
  RouterSetup setup{&kernels_for(best_isa()), {}, {}};
  setup.problem.shape = {1, 1, 1, experts, top_k};
  setup.problem.router = parse_router(router);
  validate(setup.problem);
  const auto view = [&](const std::vector<float>& values) {
    return TensorView(const_cast<float*>(values.data()), DType::kF32, {experts});
  };
  if (!bias.empty()) setup.weights.router_bias = view(bias);
  if (!selection.empty()) setup.weights.selection_bias = view(selection);
  choose_experts(setup, {}, 0, 1, logits.data(), {}, {out.idx.data(), out.weights.data(), nullptr});
  return out;
}

double sigmoid(double logit) {
  return 1 / (1 + std::exp(-logit));
}

double root_softplus(double logit) {
  return std::sqrt(std::log1p(std::exp(logit)));
}

TEST(SoftmaxTopK, PicksTheLargestInOrderAndRenormalises) {
  const Routed routed = route_row({0.5F, 3.0F, -1.0F, 2.0F}, 2);
  EXPECT_EQ(routed.idx, (std::vector<std::int32_t>{1, 3}));
  const double p = std::exp(3.0) / (std::exp(3.0) + std::exp(2.0));
  EXPECT_NEAR(routed.weights[0], p, 1e-6);
  EXPECT_NEAR(routed.weights[1], 1 - p, 1e-6);
}

TEST(SoftmaxTopK, LowestIndexWinsTies) {
  EXPECT_EQ(route_row({1, 1, 1, 1}, 3).idx, (std::vector<std::int32_t>{0, 1, 2}));
  EXPECT_EQ(route_row({0, 2, 1, 2, 1}, 3).idx, (std::vector<std::int32_t>{1, 3, 2}));
  EXPECT_EQ(route_row({0, 2, 1, 2, 1}, 5).idx, (std::vector<std::int32_t>{1, 3, 2, 4, 0}));
}

TEST(SoftmaxTopK, SurvivesExtremeLogits) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Routed large = route_row({3e38F, -3e38F, 3e38F}, 2);
  EXPECT_EQ(large.idx, (std::vector<std::int32_t>{0, 2}));
  EXPECT_FLOAT_EQ(large.weights[0], 0.5F);
  const Routed infinite = route_row({inf, 0, inf}, 2);
  EXPECT_FLOAT_EQ(infinite.weights[0] + infinite.weights[1], 1.0F);
  EXPECT_EQ(route_row({nan, 1, nan, 2}, 2).idx, (std::vector<std::int32_t>{3, 1}));
  const Routed all_nan = route_row({nan, nan, nan}, 2);
  EXPECT_EQ(all_nan.idx, (std::vector<std::int32_t>{0, 1}));
  EXPECT_FLOAT_EQ(all_nan.weights[0], 0.5F);
}

TEST(SoftmaxTopK, WeightsOfManyExpertsSumToOne) {
  std::vector<float> logits(300);
  for (std::size_t i = 0; i < logits.size(); ++i)
    logits[i] = std::sin(static_cast<float>(i) * 12.9898F) * 5;
  const Routed routed = route_row(logits, 22);
  float sum = 0;
  for (std::size_t slot = 0; slot < routed.idx.size(); ++slot) {
    sum += routed.weights[slot];
    if (slot > 0) {
      EXPECT_GE(routed.weights[slot - 1], routed.weights[slot]);
    }
  }
  EXPECT_NEAR(sum, 1.0F, 1e-6F);
}

using Experts = std::vector<std::int32_t>;

TEST(Routers, SoftmaxThatIsNotRenormalisedAndScaled) {
  const Routed routed = route_row({0.5F, 3.0F, -1.0F, 2.0F}, 2, "softmax,raw,scale=2");
  EXPECT_EQ(routed.idx, (Experts{1, 3}));
  const double all = std::exp(0.5) + std::exp(3.0) + std::exp(-1.0) + std::exp(2.0);
  EXPECT_NEAR(routed.weights[0], 2 * std::exp(3.0) / all, 1e-6);
  EXPECT_NEAR(routed.weights[1], 2 * std::exp(2.0) / all, 1e-6);
}

TEST(Routers, ABiasOfTheLogitsChoosesAndWeighs) {
  const Routed routed = route_row({0, 1, 2}, 2, "softmax,bias", {3, 0, 0});
  EXPECT_EQ(routed.idx, (Experts{0, 2}));
  EXPECT_NEAR(routed.weights[0], sigmoid(1), 1e-6);  // of 3 and 2
}

TEST(Routers, ASelectionBiasChoosesButDoesNotWeigh) {
  const std::vector<float> logits = {1, 0, -1, 0.5F};
  const Routed routed = route_row(logits, 2, "sigmoid,selection-bias,scale=2.5", {}, {0, 0, 1, 0});
  EXPECT_EQ(routed.idx, (Experts{2, 0}));
  const double sum = sigmoid(-1) + sigmoid(1);
  EXPECT_NEAR(routed.weights[0], 2.5 * sigmoid(-1) / sum, 1e-6);
  EXPECT_NEAR(routed.weights[1], 2.5 * sigmoid(1) / sum, 1e-6);
  const Routed roots = route_row(logits, 2, "sqrtsoftplus,selection-bias", {}, {0, 0, 1, 0});
  EXPECT_EQ(roots.idx, (Experts{2, 0}));
  EXPECT_NEAR(roots.weights[0], root_softplus(-1) / (root_softplus(-1) + root_softplus(1)), 1e-6);
}

TEST(Routers, GroupsAreScoredByTheirTwoBestOrTheirBest) {
  // Groups {0,1} {2,3} {4,5}. By the two best of sigmoid: the last two; the best expert is outside.
  const std::vector<float> logits = {4, -4, 2, 2, 3, 0};
  const Routed pairs = route_row(logits, 2, "sigmoid,groups=3/2");
  EXPECT_EQ(pairs.idx, (Experts{4, 2}));
  EXPECT_NEAR(pairs.weights[0], sigmoid(3) / (sigmoid(3) + sigmoid(2)), 1e-6);
  const Routed best = route_row(logits, 2, "softmax,raw,groups=3/2");
  EXPECT_EQ(best.idx, (Experts{0, 4}));
  double all = 0;
  for (const float logit : logits) all += std::exp(static_cast<double>(logit));
  EXPECT_NEAR(best.weights[1], std::exp(3.0) / all, 1e-6) << "of the softmax over all experts";
  EXPECT_EQ(route_row({1, 1, 1, 1, 1, 1}, 2, "sigmoid,groups=3/1").idx, (Experts{0, 1}))
      << "the first of equal groups";
}

TEST(Routers, SparseMixerWeighsByThoseCloseToTheBest) {
  // 10 and 9.9 are within 2 % of each other, 5 is not: the first slot's softmax is over two.
  const Routed routed = route_row({5, 10, 9.9F, 4.95F}, 2, "sparsemixer");
  EXPECT_EQ(routed.idx, (Experts{1, 2}));
  EXPECT_NEAR(routed.weights[0], sigmoid(0.1), 1e-6);
  EXPECT_NEAR(routed.weights[1], 1, 1e-6) << "alone within 2 %";
  const Routed three = route_row({5, 10, 1, 4.95F}, 3, "sparsemixer");
  EXPECT_EQ(three.idx, (Experts{1, 0, 3}));
  EXPECT_NEAR(three.weights[1], sigmoid(0.05), 1e-6);
}

TEST(Routers, LowestIndexWinsTiesOfScores) {
  for (const char* router : {"sigmoid", "sqrtsoftplus", "softmax,raw", "sparsemixer"}) {
    EXPECT_EQ(route_row({0, 2, 1, 2, 1}, 3, router).idx, (Experts{1, 3, 2})) << router;
  }
}

TEST(Routers, NaNLogitsCountAsMinusInfinity) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const char* router :
       {"softmax", "softmax,raw", "sigmoid", "sqrtsoftplus", "sparsemixer", "sigmoid,groups=2/2"}) {
    const Routed routed = route_row({nan, 1, nan, 2}, 3, router);
    EXPECT_EQ(routed.idx, (Experts{3, 1, 0})) << router;
    EXPECT_EQ(routed.weights[2], 0.0F) << router;
    EXPECT_GT(routed.weights[1], 0.0F) << router;
  }
  EXPECT_EQ(route_row({nan, nan, nan}, 2, "sigmoid").weights, (std::vector<float>{0, 0}));
}

TEST(Routers, ScoresOfEveryTierAgreeWithFp64) {
  for (const Isa isa : available_isas()) {
    const Kernels& kernels = kernels_for(isa);
    std::vector<float> logits;
    for (float logit = -60; logit < 60; logit += 0.173F) logits.push_back(logit);
    std::vector<float> sigmoids = logits;
    std::vector<float> roots = logits;
    const auto count = static_cast<std::int64_t>(logits.size());
    kernels.sigmoid(sigmoids.data(), count);
    kernels.sqrt_softplus(roots.data(), count);
    double sum = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const double s = sigmoid(logits[i]);
      const double r = root_softplus(logits[i]);
      ASSERT_LE(std::abs(sigmoids[i] - s), s * 8 * 0x1p-24) << name_of(isa) << ' ' << logits[i];
      ASSERT_LE(std::abs(roots[i] - r), r * 8 * 0x1p-24) << name_of(isa) << ' ' << logits[i];
      sum += std::exp(static_cast<double>(logits[i]) - 60);
    }
    EXPECT_NEAR(kernels.sum_of_exponentials(logits.data(), count, 60) / sum, 1, 1e-5);
  }
}

}  // namespace
}  // namespace moe::cpu
