// What happens to the sums of a tile: kept between chunks of the depth, stored, or SwiGLU. For the
// tier whose Vector was included before.
#pragma once

#include <cstdint>

#include "cpu/isa/gemm_tile.h"

namespace moe::cpu {
namespace {

/// exp(x) for fp32 to a few units in the last place; overflows to infinity, NaN stays NaN.
/// exp(x) = exp(x/2)^2, so that both ends of the range come out of the last multiplication:
/// x/2 = n·ln2 + r with |r| <= ln2/2, exp(x/2) = 2^n·exp(r), exp(r) by its Taylor polynomial. The
/// first term left out, r^8/8!, is below 6e-9.
inline Vector::F exponential(Vector::F x) {
  using V = Vector;
  // max and min return their second argument when it is NaN. Beyond the bounds the square is 0 or
  // infinity anyway.
  x = V::min(V::set1(87.0F), V::max(V::set1(-87.0F), V::mul(x, V::set1(0.5F))));
  const V::F magic = V::set1(12582912.0F);  // 1.5·2^23: adding it rounds to an integer
  const V::F shifted = V::fma(x, V::set1(1.44269504F), magic);
  const V::F n = V::sub(shifted, magic);
  V::F r = V::fma(n, V::set1(-0.693359375F), x);  // ln2 in two parts, the first with 9 bits
  r = V::fma(n, V::set1(2.12194440e-4F), r);
  V::F sum = V::set1(1.0F / 5040.0F);
  sum = V::fma(sum, r, V::set1(1.0F / 720.0F));
  sum = V::fma(sum, r, V::set1(1.0F / 120.0F));
  sum = V::fma(sum, r, V::set1(1.0F / 24.0F));
  sum = V::fma(sum, r, V::set1(1.0F / 6.0F));
  sum = V::fma(sum, r, V::set1(0.5F));
  sum = V::fma(sum, r, V::set1(1.0F));
  sum = V::fma(sum, r, V::set1(1.0F));
  // n sits in the low bits of `shifted`; the rest of them leaves at the top of the shift by 23.
  sum = V::add_exponent(sum, shifted);
  return V::mul(sum, sum);
}

/// silu(gate)*up, silu(v) = v / (1 + exp(-v)).
inline Vector::F swiglu(Vector::F gate, Vector::F up) {
  const Vector::F one = Vector::set1(1.0F);
  const Vector::F minus = Vector::sub(Vector::zero(), gate);
  return Vector::mul(Vector::div(gate, Vector::add(one, exponential(minus))), up);
}

/// act[row][lane] of one panel into the block that the next GEMM reads; values are rounded to
/// bf16 when that block is bf16.
template <RowLayout kLayout, bool kRoundToBf16>
inline void store_act(const TileArgs& tile, std::int64_t column, std::int64_t rows,
                      const float (*act)[Vector::kLanes]) {
  constexpr std::int64_t kLanes = Vector::kLanes;
  const auto bits = [&](std::int64_t row, std::int64_t lane) {
    return __builtin_bit_cast(std::uint32_t, act[row][lane]);
  };
  if constexpr (kLayout == RowLayout::kColumns) {
    float* out = static_cast<float*>(tile.act) + column * rows;
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      for (std::int64_t row = 0; row < rows; ++row) *out++ = act[row][lane];
    }
  } else if constexpr (kLayout == RowLayout::kPairs) {
    static_assert(kRoundToBf16);
    auto* out = static_cast<std::uint32_t*>(tile.act) + column / 2 * rows;
    for (std::int64_t lane = 0; lane < kLanes; lane += 2) {
      for (std::int64_t row = 0; row < rows; ++row) {
        *out++ = (bits(row, lane) >> 16) | bits(row, lane + 1);
      }
    }
  } else {
    static_assert(kRoundToBf16);
    auto* out = static_cast<std::uint16_t*>(tile.act) + column;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t lane = 0; lane < kLanes; ++lane) {
        out[row * tile.act_depth + lane] = static_cast<std::uint16_t>(bits(row, lane) >> 16);
      }
    }
  }
}

/// `sums` of one row: 2·kPanels vectors. Stores what is inside tile.columns.
template <std::int64_t kVectors>
inline void store_row(const TileArgs& tile, std::int64_t row, const Vector::F* sums) {
  constexpr std::int64_t kLanes = Vector::kLanes;
  float* out = tile.c + row * tile.c_stride;
#pragma GCC unroll 8
  for (std::int64_t v = 0; v < kVectors; ++v) {
    const std::int64_t left = tile.columns - v * kLanes;
    if (left >= kLanes) {
      Vector::store(out + v * kLanes, sums[v]);
    } else if (left > 0) {
      float edge[kLanes];
      Vector::store(edge, sums[v]);
      for (std::int64_t lane = 0; lane < left; ++lane) out[v * kLanes + lane] = edge[lane];
    }
  }
}

}  // namespace
}  // namespace moe::cpu
