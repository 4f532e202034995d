// What happens to the sums of a tile: kept between chunks of the depth, stored, or SwiGLU. For the
// tier whose Vector was included before.
#pragma once

#include <cstdint>

#include "cpu/isa/gemm_tile.h"
#include "cpu/isa/swiglu_impl.h"

namespace moe::cpu {
namespace {

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
