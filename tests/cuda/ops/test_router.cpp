// softmax_top_k against a sort on the host.
#include "cuda/ops/router.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/rng.h"
#include "cuda/device_test.h"

namespace moe::cuda {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Routed {
  std::vector<std::int32_t> idx;
  std::vector<double> weights;
};

Routed expected(const std::vector<float>& logits, std::int64_t experts, std::int64_t top_k) {
  Routed out;
  for (std::size_t begin = 0; begin < logits.size(); begin += static_cast<std::size_t>(experts)) {
    const auto rank = [&](std::int32_t e) {
      const float logit = logits[begin + static_cast<std::size_t>(e)];
      return std::isnan(logit) ? -kInf : logit;
    };
    std::vector<std::int32_t> order(static_cast<std::size_t>(experts));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int32_t a, std::int32_t b) { return rank(a) > rank(b); });
    double sum = 0;
    const std::size_t first = out.weights.size();
    for (std::int64_t slot = 0; slot < top_k; ++slot) {
      const std::int32_t expert = order[static_cast<std::size_t>(slot)];
      const double largest = rank(order[0]);
      out.idx.push_back(expert);
      out.weights.push_back(rank(expert) == largest ? 1 : std::exp(rank(expert) - largest));
      sum += out.weights.back();
    }
    for (std::size_t i = first; i < out.weights.size(); ++i) out.weights[i] /= sum;
  }
  return out;
}

class CudaSoftmaxTopK : public CudaTest {
 protected:
  void check(const std::vector<float>& logits, std::int64_t experts, std::int64_t top_k) {
    const std::int64_t tokens = static_cast<std::int64_t>(logits.size()) / experts;
    const DeviceArray<float> given(device(), logits);
    const DeviceArray<std::int32_t> idx(device(), tokens * top_k);
    const DeviceArray<float> weights(device(), tokens * top_k);
    softmax_top_k(given.data(), tokens, experts, top_k, idx.data(), weights.data(), stream());
    const Routed want = expected(logits, experts, top_k);
    SCOPED_TRACE(testing::Message() << "T=" << tokens << " E=" << experts << " K=" << top_k);
    ASSERT_EQ(idx.download(), want.idx);
    const std::vector<float> got = weights.download();
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], want.weights[i], 1e-6) << "token " << i / static_cast<std::size_t>(top_k);
    }
    EXPECT_TRUE(idx.intact() && weights.intact() && given.intact());
  }
};

TEST_F(CudaSoftmaxTopK, AnyNumberOfExperts) {
  for (const std::int64_t experts : {1,   2,   3,   8,   31,  32,  33,  63,   64,   65,  100,
                                     128, 130, 256, 257, 300, 512, 513, 1000, 1023, 1024}) {
    for (const std::int64_t top_k : {std::int64_t{1}, std::int64_t{2}, std::int64_t{8},
                                     std::int64_t{22}, std::int64_t{40}, experts}) {
      if (top_k > experts) continue;
      for (const std::int64_t tokens : {1, 37}) {
        std::vector<float> logits(static_cast<std::size_t>(tokens * experts));
        for (std::size_t i = 0; i < logits.size(); ++i) {
          logits[i] = static_cast<float>(random_normal(3, static_cast<std::uint64_t>(experts), i));
        }
        check(logits, experts, top_k);
      }
    }
  }
}

TEST_F(CudaSoftmaxTopK, LowestIndexWinsTies) {
  // A handful of distinct values: nearly every choice is a tie.
  for (const std::int64_t experts : {5, 64, 96, 256, 384, 1024}) {
    std::vector<float> logits(static_cast<std::size_t>(200 * experts));
    for (std::size_t i = 0; i < logits.size(); ++i) {
      logits[i] = static_cast<float>(random_bits(4, 1, i) % 5) - 2.0F;
    }
    check(logits, experts, 4);
  }
  check(std::vector<float>(256 * 9, 0.5F), 256, 8);
}

TEST_F(CudaSoftmaxTopK, SurvivesExtremeLogits) {
  check({3e38F, -3e38F, 3e38F}, 3, 2);
  check({kInf, 0, kInf, -kInf}, 4, 2);
  check({-kInf, -kInf, -kInf}, 3, 2);
  check({kNan, 1, kNan, 2}, 4, 2);
  check({kNan, kNan, kNan}, 3, 2);
  check({kNan, -kInf, kNan, -kInf, -1e30F}, 5, 4);
  check({-0.0F, 0.0F, -0.0F, 0.0F}, 4, 3);  // equals: 0, 1, 2
}

}  // namespace
}  // namespace moe::cuda
