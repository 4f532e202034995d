// The kernels of one token against fp64 loops and a sort on the host.
#include "cuda/ops/stream_token.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "core/rng.h"
#include "core/scalar.h"
#include "cuda/device_test.h"
#include "cuda/late_copy.h"

namespace moe::cuda {
namespace {

struct Sizes {
  std::int64_t hidden, intermediate, experts, top_k;
  std::int64_t misaligned = 0;  // elements from a 256-byte boundary
};

std::vector<BFloat16> normal(std::int64_t count, std::uint64_t stream, double scale) {
  std::vector<BFloat16> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = from_float<BFloat16>(static_cast<float>(scale * random_normal(47, stream, i)));
  }
  return values;
}

double dot(const BFloat16* a, const BFloat16* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(to_float(a[i])) * to_float(b[i]);
  return sum;
}

/// The chosen config, every number of rows that it does not choose, and grids of other sizes.
std::vector<TokenConfig> configs(const Sizes& sizes) {
  const Shape shape{1, sizes.hidden, sizes.intermediate, sizes.experts, sizes.top_k};
  std::vector<TokenConfig> all = {choose_token_config({.shape = shape}, 100)};
  for (const int rows : {1, 2, 4}) {
    TokenConfig config = all.front();
    config.rows = rows;
    config.gate_up_blocks = rows;
    config.down_blocks = 3;
    config.parts =
        std::max(1, std::min<int>(rows, static_cast<int>(kMostTokenSlots / sizes.top_k)));
    all.push_back(config);
  }
  return all;
}

class CudaStreamToken : public CudaTest {
 protected:
  void check(const Sizes& sizes) { check(sizes, normal(sizes.hidden, 0, 1)); }
  void check(const Sizes& sizes, const std::vector<BFloat16>& x) {
    const double scale = 3 / std::sqrt(static_cast<double>(sizes.hidden));
    check(sizes, x, normal(sizes.experts * sizes.hidden, 1, scale));
  }
  void check(const Sizes& sizes, const std::vector<BFloat16>& x,
             const std::vector<BFloat16>& router) {
    const auto [hidden, intermediate, experts, top_k, misaligned] = sizes;
    const std::int64_t matrix = hidden * intermediate;
    const double scale = 1 / std::sqrt(static_cast<double>(hidden));
    const std::vector<BFloat16> gate = normal(experts * matrix, 2, scale);
    const std::vector<BFloat16> up = normal(experts * matrix, 3, scale);
    const std::vector<BFloat16> down = normal(experts * matrix, 4, 0.3);
    const DeviceArray<BFloat16> given_x(device(), x, misaligned);
    const DeviceArray<BFloat16> given_router(device(), router, misaligned);
    const DeviceArray<BFloat16> given_gate(device(), gate, misaligned);
    const DeviceArray<BFloat16> given_up(device(), up, misaligned);
    const DeviceArray<BFloat16> given_down(device(), down, misaligned);
    const std::int64_t stride = (intermediate + 7) / 8 * 8;
    for (const TokenConfig& config : configs(sizes)) {
      SCOPED_TRACE(testing::Message()
                   << "H=" << hidden << " I=" << intermediate << " E=" << experts << " K=" << top_k
                   << " offset " << misaligned << ": " << to_string(config));
      const DeviceArray<float> logits(device(), experts);
      const DeviceArray<std::uint64_t> choices(device(), top_k);
      const DeviceArray<BFloat16> act(device(), top_k * stride);
      const DeviceArray<BFloat16> y(device(), hidden, misaligned);
      const TokenLayer layer{.router = given_router.data(),
                             .gate = given_gate.data(),
                             .up = given_up.data(),
                             .down = given_down.data(),
                             .hidden = hidden,
                             .intermediate = intermediate,
                             .experts = experts,
                             .top_k = top_k,
                             .logits = logits.data(),
                             .choices = choices.data(),
                             .act = act.data(),
                             .act_stride = stride};
      for (int call = 0; call < 2; ++call) {  // the second overlaps the first
        token_router(layer, given_x.data(), stream());
        token_gate_up(layer, given_x.data(), config, stream());
        token_down(layer, y.data(), config, stream());
      }
      const std::vector<float> got_logits = logits.download();
      for (std::int64_t e = 0; e < experts; ++e) {
        const double want = dot(x.data(), router.data() + e * hidden, hidden);
        expect_near(got_logits[static_cast<std::size_t>(e)], want, 0,
                    4 * 0x1p-24 * static_cast<double>(hidden) + 1e-6,
                    [&] { return fmt::format("logit {}", e); });
      }
      // Each kernel is judged from what the one before it wrote.
      const std::vector<std::int32_t> chosen = choose(got_logits, top_k);
      const std::vector<BFloat16> got_act = act.download();
      for (std::int64_t k = 0; k < top_k; ++k) {
        const std::int64_t e = chosen[static_cast<std::size_t>(k)];
        for (std::int64_t i = 0; i < intermediate; ++i) {
          const double g = dot(x.data(), gate.data() + (e * intermediate + i) * hidden, hidden);
          const double u = dot(x.data(), up.data() + (e * intermediate + i) * hidden, hidden);
          expect_near(to_float(got_act[static_cast<std::size_t>(k * stride + i)]),
                      g / (1 + std::exp(-g)) * u, 0x1p-7, 1e-4,
                      [&] { return fmt::format("act of slot {}, {}", k, i); });
        }
      }
      const std::vector<double> weights = weigh(got_logits, chosen);
      const std::vector<BFloat16> got_y = y.download();
      for (std::int64_t h = 0; h < hidden; ++h) {
        double want = 0;
        for (std::int64_t k = 0; k < top_k; ++k) {
          const std::int64_t e = chosen[static_cast<std::size_t>(k)];
          want += weights[static_cast<std::size_t>(k)] *
                  dot(got_act.data() + k * stride, down.data() + (e * hidden + h) * intermediate,
                      intermediate);
        }
        expect_near(to_float(got_y[static_cast<std::size_t>(h)]), want, 0x1p-7, 1e-4,
                    [&] { return fmt::format("y, {}", h); });
      }
      EXPECT_TRUE(logits.intact() && choices.intact() && act.intact() && y.intact() &&
                  given_x.intact());
      if (HasFailure()) return;
    }
  }

  /// Rank of a logit: NaN is below all.
  static float rank(float logit) {
    return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
  }
  static std::vector<std::int32_t> choose(const std::vector<float>& logits, std::int64_t top_k) {
    std::vector<std::int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
      return rank(logits[static_cast<std::size_t>(a)]) > rank(logits[static_cast<std::size_t>(b)]);
    });
    order.resize(static_cast<std::size_t>(top_k));
    return order;
  }
  static std::vector<double> weigh(const std::vector<float>& logits,
                                   const std::vector<std::int32_t>& chosen) {
    const float largest = rank(logits[static_cast<std::size_t>(chosen[0])]);
    std::vector<double> weights;
    double sum = 0;
    for (const std::int32_t e : chosen) {
      const float logit = rank(logits[static_cast<std::size_t>(e)]);
      weights.push_back(logit == largest ? 1 : std::exp(static_cast<double>(logit) - largest));
      sum += weights.back();
    }
    for (double& weight : weights) weight /= sum;
    return weights;
  }

  template <class Where>
  static void expect_near(double got, double want, double relative, double absolute,
                          Where&& where) {
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got)) << where();
      return;
    }
    EXPECT_LE(std::abs(got - want), relative * std::abs(want) + absolute)
        << where() << ": " << got << " instead of " << want;
  }
};

TEST_F(CudaStreamToken, AnySizes) {
  check({64, 96, 4, 2});
  check({1, 1, 1, 1});
  check({70, 46, 3, 2});  // no multiple of 8
  check({360, 360, 4, 3});
  check({512, 768, 8, 8});
  check({2888, 40, 6, 4});     // rows longer than a batch, the last one not full
  check({40, 2888, 3, 1});     // and of down
  check({136, 264, 6, 3, 1});  // misaligned
  check({1030, 33, 9, 9, 3});
  for (const std::int64_t experts : {1, 31, 32, 33, 128, 129, 256, 257, 1024}) {
    check({48, 24, experts, std::min<std::int64_t>(experts, 5)});
  }
}

TEST_F(CudaStreamToken, ManySlots) {
  check({64, 64, 300, 22});
  check({64, 40, 64, kMostTokenSlots});
  check({40, 24, 200, 40});
}

TEST_F(CudaStreamToken, TiesGoToTheLowestExpert) {
  const Sizes sizes{64, 48, 40, 6};
  const std::vector<BFloat16> row = normal(sizes.hidden, 6, 1);
  std::vector<BFloat16> router;
  for (std::int64_t e = 0; e < sizes.experts; ++e) {
    router.insert(router.end(), row.begin(), row.end());
  }
  check(sizes, normal(sizes.hidden, 0, 1), router);
}

TEST_F(CudaStreamToken, NanIsNan) {
  std::vector<BFloat16> x = normal(96, 5, 1);
  x[50] = from_float<BFloat16>(std::numeric_limits<float>::quiet_NaN());
  check({96, 40, 12, 3}, x);
}

TEST_F(CudaStreamToken, TheSecondProductAwaitsChoicesThatAreNotThereYet) {
  const std::int64_t hidden = 264;
  const std::int64_t intermediate = 192;
  const std::int64_t experts = 20;
  const std::int64_t top_k = 5;
  const std::int64_t matrix = hidden * intermediate;
  const double scale = 1 / std::sqrt(static_cast<double>(hidden));
  const DeviceArray<BFloat16> x(device(), normal(hidden, 0, 1));
  const DeviceArray<BFloat16> router(device(), normal(experts * hidden, 1, 3 * scale));
  const DeviceArray<BFloat16> gate(device(), normal(experts * matrix, 2, scale));
  const DeviceArray<BFloat16> up(device(), normal(experts * matrix, 3, scale));
  const DeviceArray<BFloat16> down(device(), normal(experts * matrix, 4, 0.3));
  const DeviceArray<float> logits(device(), experts);
  const DeviceArray<BFloat16> y(device(), hidden);
  // Choices, and act behind them.
  const std::int64_t act_at = top_k + top_k % 2;
  const DeviceArray<std::uint64_t> handed_on(device(), act_at + top_k * intermediate / 4);
  TokenLayer layer{.router = router.data(),
                   .gate = gate.data(),
                   .up = up.data(),
                   .down = down.data(),
                   .hidden = hidden,
                   .intermediate = intermediate,
                   .experts = experts,
                   .top_k = top_k,
                   .logits = logits.data(),
                   .choices = handed_on.data(),
                   .act = handed_on.data() + act_at,
                   .act_stride = intermediate};
  Problem problem{.shape = {1, hidden, intermediate, experts, top_k}};
  const std::size_t y_bytes = static_cast<std::size_t>(hidden) * sizeof(BFloat16);
  for (const bool plain : {true, false}) {
    SCOPED_TRACE(plain ? "plain" : "block");
    layer.block.plain = plain;
    problem.router.renormalise = plain;
    const TokenConfig config = choose_token_config(problem, 100);
    token_router(layer, x.data(), stream());
    token_gate_up(layer, x.data(), config, stream());
    token_down(layer, y.data(), config, stream());
    const std::vector<BFloat16> in_time = y.download();
    const std::vector<std::uint64_t> image = handed_on.download();
    const DeviceArray<std::uint64_t> saved(device(), image);
    MOE_CUDA_CHECK(cudaMemsetAsync(handed_on.data(), 0, image.size() * 8, stream()));
    MOE_CUDA_CHECK(cudaMemsetAsync(y.data(), 0, y_bytes, stream()));
    copy_late(handed_on.data(), saved.data(), image.size() * 2, stream());
    token_down(layer, y.data(), config, stream());
    const std::vector<BFloat16> late = y.download();
    for (std::size_t h = 0; h < late.size(); ++h) {
      ASSERT_EQ(to_float(late[h]), to_float(in_time[h])) << h;
      ASSERT_NE(to_float(late[h]), 0) << h;
    }
  }
}

TEST(TokenConfigs, FillTheDeviceInWholeRounds) {
  const TokenConfig few = choose_token_config({{1, 64, 16, 8, 2}}, 100);
  EXPECT_EQ(few.gate_up_blocks, 4) << "32 features, eight warps a block";
  EXPECT_EQ(few.parts, 4) << "every warp of a block has a slot or a part of one";
  EXPECT_EQ(few.rows, 4);
  EXPECT_EQ(few.down_blocks, 16);
  // 28672 features are 3584 blocks: nine rounds of at most 400 are no more than those of 399.
  const TokenConfig many = choose_token_config({{1, 4096, 14336, 8, 2}}, 100);
  EXPECT_EQ(many.gate_up_blocks, 399);
  EXPECT_EQ(many.rows, 1) << "448 vectors of a part are 14 a lane";
  EXPECT_EQ(many.down_blocks, 196) << "4096 rows in 21 rounds";
  EXPECT_EQ(choose_token_config({{1, 2048, 768, 128, 8}}, 100).rows, 4);
  EXPECT_EQ(choose_token_config({{1, 2880, 2880, 128, 4}}, 100).rows, 2);
  EXPECT_EQ(choose_token_config({{1, 64, 64, 64, 22}}, 100).parts, 1);
  // A shared expert's features are divided among the blocks of the routed ones'.
  Problem shared{{1, 7168, 2048, 256, 8}};
  shared.shared_intermediate = 2048;
  const TokenConfig nine = choose_token_config(shared, 132);
  EXPECT_EQ(nine.gate_up_blocks, 512) << "four rounds of 2048 blocks";
  EXPECT_EQ(nine.parts, 0);
  EXPECT_EQ(nine.rows, 2) << "72 units are nine a warp";
}

}  // namespace
}  // namespace moe::cuda
