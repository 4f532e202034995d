// bf16 on AMX tiles: up to 32 rows times one panel, as 2x2 accumulators of 16x16 (Intel SDM vol. 1,
// chapter 18; tdpbf16ps). One step is 32 k: a whole A tile.
//
//              B: 6 (columns 0-15)  7 (16-31)     16 rows of pairs, 128 bytes apart in the panel
//   A: 4 (rows 0-15)     0              1
//      5 (rows 16-31)    2              3
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/isa/gemm_epilogue_impl.h"
#include "cpu/isa/gemm_tile.h"

namespace moe::cpu {
namespace {

constexpr int kAmxTileRows = 16;
constexpr int kAmxDepth = 32;    // bf16 in 64 bytes, the longest tile row
constexpr int kAmxColumns = 32;  // two B tiles: one panel

/// Palette 1 of ldtilecfg.
struct alignas(64) AmxConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(AmxConfig) == 64, "ldtilecfg reads 64 bytes");

inline AmxConfig amx_config(int upper_rows, int lower_rows) {
  AmxConfig config;
  const auto upper = static_cast<std::uint8_t>(upper_rows);
  const auto lower = static_cast<std::uint8_t>(lower_rows > 0 ? lower_rows : 1);
  config.rows[0] = config.rows[1] = config.rows[4] = upper;
  config.rows[2] = config.rows[3] = config.rows[5] = lower;
  config.rows[6] = config.rows[7] = kAmxTileRows;
  return config;
}

/// Sums of the tile in memory: [rows][32].
template <bool kLower>
inline void amx_multiply(const TileArgs& tile, float* sums) {
  constexpr std::int64_t kSumStride = kAmxColumns * 4;
  float* lower_sums = sums + kAmxTileRows * kAmxColumns;
  if (tile.k_begin == 0) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kLower) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, sums, kSumStride);
    _tile_loadd(1, sums + 16, kSumStride);
    if constexpr (kLower) {
      _tile_loadd(2, lower_sums, kSumStride);
      _tile_loadd(3, lower_sums + 16, kSumStride);
    }
  }
  const std::int64_t a_stride = tile.depth * 2;
  const char* a = static_cast<const char*>(tile.a) + tile.k_begin * 2;
  const char* b = static_cast<const char*>(tile.b) + tile.k_begin * 2 * kAmxColumns;
  const char* prefetch = tile.prefetch;
  for (std::int64_t k = tile.k_begin; k < tile.k_end; k += kAmxDepth) {
    for (std::int64_t line = 0; line < tile.prefetch_advance; line += 64) {
      __builtin_prefetch(prefetch + line, 0, 2);
    }
    prefetch += tile.prefetch_advance;
    _tile_loadd(6, b, 128);
    _tile_loadd(4, a, a_stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + 64, 128);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kLower) {
      _tile_loadd(5, a + kAmxTileRows * a_stride, a_stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    a += kAmxDepth * 2;
    b += kAmxDepth * 2 * kAmxColumns;
  }
  _tile_stored(0, sums, kSumStride);
  _tile_stored(1, sums + 16, kSumStride);
  if constexpr (kLower) {
    _tile_stored(2, lower_sums, kSumStride);
    _tile_stored(3, lower_sums + 16, kSumStride);
  }
}

inline void amx_tile(const TileArgs& tile) {
  const int rows = static_cast<int>(tile.rows);
  const int upper = rows < kAmxTileRows ? rows : kAmxTileRows;
  // Configured and released per call: thousands of cycles of work follow, any thread may come, and
  // no tile state is left for the kernel to save at context switches.
  const AmxConfig config = amx_config(upper, rows - upper);
  _tile_loadconfig(&config);
  alignas(64) float scratch[2 * kAmxTileRows * kAmxColumns];
  const bool whole = tile.k_begin == 0 && tile.k_end == tile.depth;
  float* sums = whole ? scratch : tile.partial;
  if (rows > kAmxTileRows) {
    amx_multiply<true>(tile, sums);
  } else {
    amx_multiply<false>(tile, sums);
  }
  _tile_release();
  if (tile.k_end < tile.depth) return;

  if (tile.epilogue == Epilogue::kStore) {
    for (int row = 0; row < rows; ++row) {
      const Vector::F vectors[2] = {Vector::load(sums + row * kAmxColumns),
                                    Vector::load(sums + row * kAmxColumns + 16)};
      store_row<2>(tile, row, vectors);
    }
  } else {
    float act[2 * kAmxTileRows][Vector::kLanes];
    for (int row = 0; row < rows; ++row) {
      const Vector::F value = swiglu(Vector::load(sums + row * kAmxColumns),
                                     Vector::load(sums + row * kAmxColumns + 16));
      Vector::store(act[row], Vector::round_to_bf16(value));
    }
    store_act<RowLayout::kRows, true>(tile, tile.act_column, rows, act);
  }
}

inline TileFunction find_amx_tile(TileShape, int, int) {
  return amx_tile;
}

}  // namespace
}  // namespace moe::cpu
