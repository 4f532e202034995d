#include "cpu/ops/permute.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "core/rng.h"
#include "core/scalar.h"

namespace moe::cpu {
namespace {

struct Built {
  Built(const std::vector<std::int32_t>& topk_idx, std::int64_t experts, std::int64_t top_k)
      : offsets(static_cast<std::size_t>(experts + 1), -1),
        src_row(topk_idx.size(), -1),
        dst_row(topk_idx.size(), -1) {
    const auto tokens = static_cast<std::int64_t>(topk_idx.size()) / top_k;
    build_permutation(topk_idx.data(), tokens, experts, top_k,
                      {offsets.data(), src_row.data(), dst_row.data()});
  }
  std::vector<std::int64_t> offsets, src_row, dst_row;
};

using Rows = std::vector<std::int64_t>;

TEST(BuildPermutation, GroupsRowsByExpertInTokenOrder) {
  // token 0 -> experts 2, 0; token 1 -> 2, 1; token 2 -> 0, 2
  const Built built({2, 0, 2, 1, 0, 2}, 3, 2);
  EXPECT_EQ(built.offsets, (Rows{0, 2, 3, 6}));
  EXPECT_EQ(built.src_row, (Rows{0, 2, 1, 0, 1, 2}));
  EXPECT_EQ(built.dst_row, (Rows{3, 0, 4, 2, 1, 5}));
}

TEST(BuildPermutation, EmptyExpertsFirstMiddleAndLast) {
  const Built built({1, 3, 1}, 5, 1);
  EXPECT_EQ(built.offsets, (Rows{0, 0, 2, 2, 3, 3}));
  EXPECT_EQ(built.src_row, (Rows{0, 2, 1}));
  EXPECT_EQ(built.dst_row, (Rows{0, 2, 1}));
}

TEST(BuildPermutation, OneExpertTakesAll) {
  const Built built({4, 4, 4}, 5, 1);
  EXPECT_EQ(built.offsets, (Rows{0, 0, 0, 0, 0, 3}));
  EXPECT_EQ(built.src_row, (Rows{0, 1, 2}));
}

TEST(BuildPermutation, OneTokenOneExpert) {
  const Built built({0}, 1, 1);
  EXPECT_EQ(built.offsets, (Rows{0, 1}));
  EXPECT_EQ(built.src_row, (Rows{0}));
  EXPECT_EQ(built.dst_row, (Rows{0}));
}

TEST(BuildPermutation, DstRowInvertsSrcRowForAnyRouting) {
  constexpr std::int64_t kTokens = 257;
  constexpr std::int64_t kExperts = 13;
  constexpr std::int64_t kTopK = 3;
  std::vector<std::int32_t> topk_idx;
  for (std::int64_t token = 0; token < kTokens; ++token) {
    const auto first =
        static_cast<std::int64_t>(random_bits(3, 0, static_cast<std::uint64_t>(token)) % kExperts);
    for (std::int64_t slot = 0; slot < kTopK; ++slot) {
      topk_idx.push_back(static_cast<std::int32_t>((first + 4 * slot) % kExperts));
    }
  }
  const Built built(topk_idx, kExperts, kTopK);
  EXPECT_EQ(built.offsets.back(), kTokens * kTopK);
  std::vector<bool> taken(topk_idx.size(), false);
  for (std::size_t i = 0; i < topk_idx.size(); ++i) {
    const std::int64_t row = built.dst_row[i];
    ASSERT_GE(row, built.offsets[static_cast<std::size_t>(topk_idx[i])]);
    ASSERT_LT(row, built.offsets[static_cast<std::size_t>(topk_idx[i]) + 1]);
    ASSERT_FALSE(taken[static_cast<std::size_t>(row)]) << "row " << row << " given twice";
    taken[static_cast<std::size_t>(row)] = true;
    ASSERT_EQ(built.src_row[static_cast<std::size_t>(row)], static_cast<std::int64_t>(i) / kTopK);
  }
}

TEST(PermuteRows, CopiesOnlyTheRowsOfItsRange) {
  const std::vector<float> x = {0, 1, 10, 11, 20, 21};  // three rows of two
  const Rows src_row = {2, 0, 1, 2};
  std::vector<float> x_perm(8, -1);
  permute_rows(x.data(), src_row.data(), 1, 3, 2 * sizeof(float), x_perm.data());
  EXPECT_EQ(x_perm, (std::vector<float>{-1, -1, 0, 1, 10, 11, -1, -1}));
}

template <class Element>
class UnpermuteRows : public testing::Test {};
using Elements = testing::Types<float, BFloat16>;
TYPED_TEST_SUITE(UnpermuteRows, Elements);

TYPED_TEST(UnpermuteRows, SumsWeightedRowsIntoAStridedColumnRange) {
  constexpr std::int64_t kTokens = 5;
  constexpr std::int64_t kTopK = 3;
  constexpr std::int64_t kColumns = 1030;  // two full column blocks and a rest
  constexpr std::int64_t kStride = kColumns + 7;
  constexpr std::int64_t kFirst = 1;
  constexpr std::int64_t kEnd = 4;
  std::vector<float> y_perm(kTokens * kTopK * kColumns);
  for (std::size_t i = 0; i < y_perm.size(); ++i) {
    y_perm[i] = static_cast<float>(random_normal(11, 0, i));
  }
  Rows dst_row;
  std::vector<float> weights;
  for (std::int64_t i = 0; i < kTokens * kTopK; ++i) {
    dst_row.push_back(i * 7 % (kTokens * kTopK));
    weights.push_back(static_cast<float>(random_uniform(11, 1, static_cast<std::uint64_t>(i))));
  }
  constexpr float kUntouched = 96;  // exact in bf16
  std::vector<TypeParam> y(kTokens * kStride, from_float<TypeParam>(kUntouched));
  unpermute_rows(y_perm.data(), dst_row.data(), weights.data(), kFirst, kEnd, kTopK, kColumns,
                 y.data(), kStride);

  const double unit_roundoff = sizeof(TypeParam) == 2 ? 0x1p-8 : 0x1p-24;
  for (std::int64_t token = 0; token < kTokens; ++token) {
    for (std::int64_t column = 0; column < kStride; ++column) {
      const double got = to_float(y[static_cast<std::size_t>(token * kStride + column)]);
      if (token < kFirst || token >= kEnd || column >= kColumns) {
        ASSERT_EQ(got, kUntouched) << "token " << token << " column " << column;
        continue;
      }
      double want = 0;
      double magnitude = 0;
      for (std::int64_t slot = 0; slot < kTopK; ++slot) {
        const auto pair = static_cast<std::size_t>(token * kTopK + slot);
        const double term = static_cast<double>(weights[pair]) *
                            y_perm[static_cast<std::size_t>(dst_row[pair] * kColumns + column)];
        want += term;
        magnitude += std::abs(term);
      }
      // K products and sums in fp32, then one rounding to the element type.
      const double allowed = magnitude * (2 * kTopK * 0x1p-24) + std::abs(want) * unit_roundoff;
      ASSERT_LE(std::abs(got - want), allowed) << "token " << token << " column " << column;
    }
  }
}

TYPED_TEST(UnpermuteRows, OneNonFiniteRowReachesOnlyItsToken) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> y_perm = {1, 2, nan, nan};  // two rows of two
  const Rows dst_row = {1, 0};                         // token 0 takes row 1
  const std::vector<float> weights = {1, 1};
  std::vector<TypeParam> y(4);
  unpermute_rows(y_perm.data(), dst_row.data(), weights.data(), 0, 2, 1, 2, y.data(), 2);
  EXPECT_TRUE(std::isnan(to_float(y[0])) && std::isnan(to_float(y[1])));
  EXPECT_EQ(to_float(y[2]), 1);
  EXPECT_EQ(to_float(y[3]), 2);
}

}  // namespace
}  // namespace moe::cpu
