#include "cpu/isa/swiglu_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/rng.h"

namespace moe::cpu {
namespace {

class SwigluRowsTest : public testing::TestWithParam<Isa> {
 protected:
  [[nodiscard]] const SwigluRows& kernel() const { return swiglu_rows_for(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Tiers, SwigluRowsTest, testing::ValuesIn([] {
                           std::vector<Isa> tiers;
                           for (const Isa isa : available_isas()) {
                             if (isa >= Isa::kAvx2) tiers.push_back(isa);
                           }
                           return tiers;
                         }()),
                         [](const auto& p) { return std::string(name_of(p.param)); });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(SwigluRowsTest);

double swiglu_fp64(double gate, double up) {
  return gate / (1.0 + std::exp(-gate)) * up;
}

TEST_P(SwigluRowsTest, MatchesFp64ForEveryColumnCountAndStride) {
  constexpr std::int64_t kRows = 3;
  for (const std::int64_t columns : {1, 7, 15, 16, 17, 33, 100}) {
    const std::int64_t stride = columns + 5;
    std::vector<float> gate_up(static_cast<std::size_t>(kRows * 2 * columns));
    for (std::size_t i = 0; i < gate_up.size(); ++i) {
      gate_up[i] = static_cast<float>(random_normal(23, 0, i) * 4);
    }
    std::vector<float> f32(static_cast<std::size_t>(kRows * stride), 77);
    std::vector<BFloat16> bf16(f32.size(), to_bfloat16(77));
    kernel()(gate_up.data(), kRows, columns, f32.data(), stride);
    kernel()(gate_up.data(), kRows, columns, bf16.data(), stride);
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

TEST_P(SwigluRowsTest, WholeRangeOfTheExponential) {
  for (float gate = -120; gate <= 120; gate += 0.037F) {
    const std::vector<float> gate_up = {gate, 1};
    float got = 0;
    kernel()(gate_up.data(), 1, 1, &got, 1);
    const double want = swiglu_fp64(gate, 1);
    // The absolute part covers results near the denormal range, which may be flushed to zero.
    ASSERT_LE(std::abs(got - want), std::abs(want) * 8 * 0x1p-24 + 1e-35) << gate;
  }
}

TEST_P(SwigluRowsTest, FarNegativeGatesGiveZero) {
  const std::vector<float> gate_up = {-1e30F, 1};
  float got = 1;
  kernel()(gate_up.data(), 1, 1, &got, 1);
  EXPECT_EQ(got, 0.0F);
}

TEST_P(SwigluRowsTest, NonFiniteValuesStayVisible) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> gate_up = {nan, 1, inf, 1, nan, 1};  // gates nan 1 inf, ups 1 nan 1
  std::vector<float> f32(3);
  std::vector<BFloat16> bf16(3);
  kernel()(gate_up.data(), 1, 3, f32.data(), 3);
  kernel()(gate_up.data(), 1, 3, bf16.data(), 3);
  EXPECT_TRUE(std::isnan(f32[0]) && std::isnan(f32[1]));
  EXPECT_EQ(f32[2], inf);
  EXPECT_TRUE(std::isnan(to_float(bf16[0])) && std::isnan(to_float(bf16[1])));
  EXPECT_EQ(to_float(bf16[2]), inf);
}

}  // namespace
}  // namespace moe::cpu
