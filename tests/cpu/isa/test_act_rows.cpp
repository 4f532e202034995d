#include "cpu/isa/act_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/rng.h"

namespace moe::cpu {
namespace {

class ActRowsTest : public testing::TestWithParam<Isa> {
 protected:
  [[nodiscard]] const ActRows& kernel() const { return act_rows_for(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Tiers, ActRowsTest, testing::ValuesIn([] {
                           std::vector<Isa> tiers;
                           for (const Isa isa : available_isas()) {
                             if (isa >= Isa::kAvx2) tiers.push_back(isa);
                           }
                           return tiers;
                         }()),
                         [](const auto& p) { return std::string(name_of(p.param)); });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ActRowsTest);

double swiglu_fp64(double gate, double up) {
  return gate / (1.0 + std::exp(-gate)) * up;
}

TEST_P(ActRowsTest, MatchesFp64ForEveryColumnCountAndStride) {
  constexpr std::int64_t kRows = 3;
  for (const std::int64_t columns : {1, 7, 15, 16, 17, 33, 100}) {
    const std::int64_t stride = columns + 5;
    std::vector<float> gate_up(static_cast<std::size_t>(kRows * 2 * columns));
    for (std::size_t i = 0; i < gate_up.size(); ++i) {
      gate_up[i] = static_cast<float>(random_normal(23, 0, i) * 4);
    }
    std::vector<float> f32(static_cast<std::size_t>(kRows * stride), 77);
    std::vector<BFloat16> bf16(f32.size(), to_bfloat16(77));
    kernel()({.sums = gate_up.data(), .rows = kRows, .columns = columns}, f32.data(), stride);
    kernel()({.sums = gate_up.data(), .rows = kRows, .columns = columns}, bf16.data(), stride);
    for (std::int64_t row = 0; row < kRows; ++row) {
      for (std::int64_t i = 0; i < stride; ++i) {
        const auto at = static_cast<std::size_t>(row * stride + i);
        if (i >= columns) {
          ASSERT_EQ(f32[at], 77) << "written past the columns";
          ASSERT_EQ(to_float(bf16[at]), 77);
          continue;
        }
        const auto gate = static_cast<std::size_t>(row * 2 * columns + i);
        const double want =
            swiglu_fp64(gate_up[gate], gate_up[gate + static_cast<std::size_t>(columns)]);
        ASSERT_LE(std::abs(f32[at] - want), std::abs(want) * 8 * 0x1p-24)
            << "columns " << columns << " gate " << gate_up[gate];
        ASSERT_EQ(bf16[at], to_bfloat16(f32[at]));
      }
    }
  }
}

TEST_P(ActRowsTest, WholeRangeOfTheExponential) {
  for (float gate = -120; gate <= 120; gate += 0.037F) {
    const std::vector<float> gate_up = {gate, 1};
    float got = 0;
    kernel()({.sums = gate_up.data(), .rows = 1, .columns = 1}, &got, 1);
    const double want = swiglu_fp64(gate, 1);
    // The absolute part covers results near the denormal range, which may be flushed to zero.
    ASSERT_LE(std::abs(got - want), std::abs(want) * 8 * 0x1p-24 + 1e-35) << gate;
  }
}

TEST_P(ActRowsTest, FarNegativeGatesGiveZero) {
  const std::vector<float> gate_up = {-1e30F, 1};
  float got = 1;
  kernel()({.sums = gate_up.data(), .rows = 1, .columns = 1}, &got, 1);
  EXPECT_EQ(got, 0.0F);
}

TEST_P(ActRowsTest, NonFiniteValuesStayVisible) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> gate_up = {nan, 1, inf, 1, nan, 1};  // gates nan 1 inf, ups 1 nan 1
  std::vector<float> f32(3);
  std::vector<BFloat16> bf16(3);
  kernel()({.sums = gate_up.data(), .rows = 1, .columns = 3}, f32.data(), 3);
  kernel()({.sums = gate_up.data(), .rows = 1, .columns = 3}, bf16.data(), 3);
  EXPECT_TRUE(std::isnan(f32[0]) && std::isnan(f32[1]));
  EXPECT_EQ(f32[2], inf);
  EXPECT_TRUE(std::isnan(to_float(bf16[0])) && std::isnan(to_float(bf16[1])));
  EXPECT_EQ(to_float(bf16[2]), inf);
}

TEST_P(ActRowsTest, EveryActivationWithBiasesAndRowScales) {
  constexpr std::int64_t kRows = 3;
  constexpr std::int64_t kColumns = 37;
  const Activation gpt_oss{.alpha = 1.702F, .limit = 7, .up_offset = 1};
  const auto expected = [](const Activation& activation, double gate, double up) {
    switch (activation.kind) {
      case Activation::Kind::kSwiGLU: {
        const double limit = activation.limit;
        const double g = std::min(gate, limit);
        const double u = std::max(-limit, std::min(up, limit));
        return g / (1 + std::exp(-static_cast<double>(activation.alpha) * g)) *
               (u + activation.up_offset);
      }
      case Activation::Kind::kGeGLU:
        return 0.5 * gate *
               (1 + std::tanh(0.79788456080286535588 * (gate + 0.044715 * gate * gate * gate))) *
               up;
      case Activation::Kind::kReLU2:
        return up > 0 ? up * up : 0.0;
    }
    return 0.0;
  };
  std::vector<float> numbers(static_cast<std::size_t>(kRows * 2 * kColumns));
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = static_cast<float>(random_normal(29, 0, i) * 5);
  }
  const float* gate_bias = numbers.data() + 11;
  const float* up_bias = numbers.data() + 3;
  const std::vector<float> scale = {0.5F, 1.25F, 0.0F};
  for (const Activation& activation :
       {Activation{}, gpt_oss, Activation{.limit = 2}, Activation{.kind = Activation::Kind::kGeGLU},
        Activation{.kind = Activation::Kind::kReLU2}}) {
    for (const bool adjusted : {false, true}) {
      ActBlock block{.sums = numbers.data(),
                     .rows = kRows,
                     .columns = kColumns,
                     .step = ActivationStep::of(activation)};
      if (adjusted) {
        if (activation.gated()) block.gate_bias = gate_bias;
        block.up_bias = up_bias;
        block.row_scale = scale.data();
      }
      std::vector<float> act(static_cast<std::size_t>(kRows * kColumns), NAN);
      kernel()(block, act.data(), kColumns);
      for (std::int64_t row = 0; row < kRows; ++row) {
        for (std::int64_t i = 0; i < kColumns; ++i) {
          const double times = adjusted ? scale[static_cast<std::size_t>(row)] : 1;
          const std::int64_t width = activation.gated() ? 2 * kColumns : kColumns;
          const float* sums = numbers.data() + row * width;
          const double gate = times * sums[i] + (adjusted ? gate_bias[i] : 0);
          const double up = times * sums[width - kColumns + i] + (adjusted ? up_bias[i] : 0);
          const double want = expected(activation, gate, up);
          const double got = act[static_cast<std::size_t>(row * kColumns + i)];
          // Gate and up are fp32 themselves: their rounding moves what a steep slope makes of them.
          const double allowed = (std::abs(want) + std::abs(up) + std::abs(gate) + 1) * 24 *
                                 (1 + std::abs(up)) * 0x1p-24;
          ASSERT_LE(std::abs(got - want), allowed)
              << to_string(activation) << " gate " << gate << " up " << up;
        }
      }
    }
  }
}

}  // namespace
}  // namespace moe::cpu
