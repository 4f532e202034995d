// Dot products of every tier against fp64.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/rng.h"
#include "cpu/isa/kernels.h"

namespace moe::cpu {
namespace {

class Dot : public testing::TestWithParam<Isa> {};

std::string isa_of(const testing::TestParamInfo<Isa>& info) {
  return std::string(name_of(info.param));
}
INSTANTIATE_TEST_SUITE_P(Tiers, Dot, testing::ValuesIn(available_isas()), isa_of);

template <class Element>
std::vector<Element> normal(std::int64_t count, std::uint64_t stream) {
  std::vector<Element> values;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<std::uint64_t>(i);
    values.push_back(from_float<Element>(static_cast<float>(random_normal(1, stream, at))));
  }
  return values;
}

/// Every length up to 300 covers all remainders of all vector widths and unrollings.
template <class Element>
void expect_matches_fp64(const Kernels& kernels) {
  constexpr std::int64_t kLongest = 300;
  const auto a = normal<Element>(kLongest, 1);
  const auto b = normal<Element>(kLongest, 2);
  for (std::int64_t n = 0; n <= kLongest; ++n) {
    double sum = 0;
    double magnitude = 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
      const double product = static_cast<double>(to_float(a[i])) * to_float(b[i]);
      sum += product;
      magnitude += std::fabs(product);
    }
    // Each of at most n/2 + 8 additions of a chain rounds by 2^-24 of what is summed so far.
    const double allowed = magnitude * (static_cast<double>(n) / 2 + 8) * 0x1p-24;
    const double got = dot<Element>(kernels, a.data(), b.data(), n);
    EXPECT_LE(std::fabs(got - sum), allowed) << "n=" << n;
  }
}

TEST_P(Dot, Fp32MatchesFp64) {
  expect_matches_fp64<float>(kernels_for(GetParam()));
}
TEST_P(Dot, Bf16MatchesFp64) {
  expect_matches_fp64<BFloat16>(kernels_for(GetParam()));
}

TEST_P(Dot, ReadsNothingBehindTheEnd) {
  // A NaN right behind the last element would poison the sum.
  for (std::int64_t n = 0; n <= 140; ++n) {
    std::vector<float> a(static_cast<std::size_t>(n + 1), 1.0F);
    a.back() = std::numeric_limits<float>::quiet_NaN();
    std::vector<BFloat16> b;
    for (const float value : a) b.push_back(to_bfloat16(value));
    const Kernels& kernels = kernels_for(GetParam());
    EXPECT_EQ(kernels.dot_f32(a.data(), a.data(), n), static_cast<float>(n));
    EXPECT_EQ(kernels.dot_bf16(b.data(), b.data(), n), static_cast<float>(n));
  }
}

TEST(KernelTable, CeilingIsRespected) {
  for (const Isa isa : available_isas()) EXPECT_EQ(kernels_for(isa).isa, isa);
  EXPECT_EQ(kernels_for(Isa::kAmx).isa, best_isa());
}

}  // namespace
}  // namespace moe::cpu
