#include "cpu/ops/router.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace moe::cpu {
namespace {

struct Routed {
  std::vector<std::int32_t> idx;
  std::vector<float> weights;
};

Routed route_row(const std::vector<float>& logits, std::int64_t top_k) {
  Routed out{std::vector<std::int32_t>(static_cast<std::size_t>(top_k)),
             std::vector<float>(static_cast<std::size_t>(top_k))};
  softmax_top_k(logits.data(), 1, static_cast<std::int64_t>(logits.size()), top_k, out.idx.data(),
                out.weights.data());
  return out;
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
    if (slot > 0) EXPECT_GE(routed.weights[slot - 1], routed.weights[slot]);
  }
  EXPECT_NEAR(sum, 1.0F, 1e-6F);
}

}  // namespace
}  // namespace moe::cpu
