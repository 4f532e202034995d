// bf16 on AMX tiles: up to 32 rows times one panel, as 2x2 accumulators of 16x16 (Intel SDM vol. 1,
// chapter 18). One step is 32 k: a whole A tile. For the tier whose Vector was included before.
//
//                          B: 6 (columns 0-15)  7 (16-31)     16 rows of pairs, 128 bytes apart
//   A: 4 (rows 0-15)          0                 1
//      5 (rows 16-31)         2                 3
//
// `Tiles` executes the tile instructions, so that a test can stand in for the hardware.
#pragma once

#include <cstdint>

#include "cpu/isa/gemm_epilogue_impl.h"
#include "cpu/isa/gemm_tile.h"

namespace moe::cpu {
namespace {

constexpr std::int64_t kAmxTileRows = 16;
constexpr std::int64_t kAmxLanes = 16;               // half a panel: columns of one B tile
constexpr std::int64_t kAmxColumns = 2 * kAmxLanes;  // one panel
constexpr std::int64_t kAmxDepth = 32;               // bf16 in 64 bytes, the longest row of a tile
constexpr std::int64_t kAmxPanelStride = 128;        // bytes of one pair of k in a panel
constexpr std::int64_t kAmxSumStride = kAmxColumns * 4;

/// What ldtilecfg reads: palette 1, bytes per row and rows of each tile.
struct alignas(64) AmxConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(AmxConfig) == 64, "ldtilecfg reads 64 bytes");

/// `lower` 0: the tiles 2, 3 and 5 are not used, but a row count of 0 is not valid.
inline AmxConfig amx_config(std::int64_t upper, std::int64_t lower) {
  AmxConfig config;
  config.rows[0] = config.rows[1] = config.rows[4] = static_cast<std::uint8_t>(upper);
  config.rows[2] = config.rows[3] = config.rows[5] =
      static_cast<std::uint8_t>(lower > 0 ? lower : 1);
  config.rows[6] = config.rows[7] = kAmxTileRows;
  return config;
}

/// sums[rows][32] (+)= A · B for k_begin <= k < k_end.
template <class Tiles, bool kLower>
void amx_multiply(const TileArgs& tile, float* sums) {
  float* lower = sums + kAmxTileRows * kAmxColumns;
  if (tile.k_begin == 0 && tile.begins_with_bias()) {
    constexpr std::int64_t kSameRow = 0;  // as a stride: every row is the bias
    Tiles::template load<0>(tile.bias, kSameRow);
    Tiles::template load<1>(tile.bias + kAmxLanes, kSameRow);
    if constexpr (kLower) {
      Tiles::template load<2>(tile.bias, kSameRow);
      Tiles::template load<3>(tile.bias + kAmxLanes, kSameRow);
    }
  } else if (tile.k_begin == 0) {
    Tiles::template zero<0>();
    Tiles::template zero<1>();
    if constexpr (kLower) {
      Tiles::template zero<2>();
      Tiles::template zero<3>();
    }
  } else {
    Tiles::template load<0>(sums, kAmxSumStride);
    Tiles::template load<1>(sums + kAmxLanes, kAmxSumStride);
    if constexpr (kLower) {
      Tiles::template load<2>(lower, kAmxSumStride);
      Tiles::template load<3>(lower + kAmxLanes, kAmxSumStride);
    }
  }
  const std::int64_t a_stride = tile.depth * 2;
  const char* a = static_cast<const char*>(tile.a) + tile.k_begin * 2;
  const char* b = static_cast<const char*>(tile.b) + tile.k_begin / 2 * kAmxPanelStride;
  const char* prefetch = tile.prefetch;
  for (std::int64_t k = tile.k_begin; k < tile.k_end; k += kAmxDepth) {
    for (std::int64_t line = 0; line < tile.prefetch_advance; line += 64) {
      __builtin_prefetch(prefetch + line, 0, 2);
    }
    prefetch += tile.prefetch_advance;
    Tiles::template load<6>(b, kAmxPanelStride);
    Tiles::template load<4>(a, a_stride);
    Tiles::template multiply<0, 4, 6>();
    Tiles::template load<7>(b + 64, kAmxPanelStride);
    Tiles::template multiply<1, 4, 7>();
    if constexpr (kLower) {
      Tiles::template load<5>(a + kAmxTileRows * a_stride, a_stride);
      Tiles::template multiply<2, 5, 6>();
      Tiles::template multiply<3, 5, 7>();
    }
    a += kAmxDepth * 2;
    b += kAmxDepth / 2 * kAmxPanelStride;
  }
  Tiles::template store<0>(sums, kAmxSumStride);
  Tiles::template store<1>(sums + kAmxLanes, kAmxSumStride);
  if constexpr (kLower) {
    Tiles::template store<2>(lower, kAmxSumStride);
    Tiles::template store<3>(lower + kAmxLanes, kAmxSumStride);
  }
}

template <class Tiles>
void amx_tile(const TileArgs& tile) {
  constexpr std::int64_t kLanes = Vector::kLanes;
  const std::int64_t rows = tile.rows;
  const std::int64_t upper = rows < kAmxTileRows ? rows : kAmxTileRows;
  // Configured and released per call: thousands of cycles of work follow, any thread may come, and
  // no tile state is left for the kernel to save at context switches.
  Tiles::configure(amx_config(upper, rows - upper));
  alignas(64) float scratch[2 * kAmxTileRows * kAmxColumns];
  const bool whole = tile.k_begin == 0 && tile.k_end == tile.depth;
  float* sums = whole ? scratch : tile.partial;
  if (rows > kAmxTileRows) {
    amx_multiply<Tiles, true>(tile, sums);
  } else {
    amx_multiply<Tiles, false>(tile, sums);
  }
  Tiles::release();
  if (tile.k_end < tile.depth) return;
  if (tile.adjusted()) {
    finish_tile<RowLayout::kRows, true>(tile, sums, rows, 1, kAmxLanes);
    return;
  }

  if (tile.epilogue == Epilogue::kStore) {
    constexpr std::int64_t kVectors = kAmxColumns / kLanes;
    for (std::int64_t row = 0; row < rows; ++row) {
      Vector::F vectors[kVectors];
      for (std::int64_t v = 0; v < kVectors; ++v) {
        vectors[v] = Vector::load(sums + row * kAmxColumns + v * kLanes);
      }
      store_row<kVectors>(tile, row, vectors);
    }
    return;
  }
  for (std::int64_t lane = 0; lane < kAmxLanes; lane += kLanes) {
    float act[2 * kAmxTileRows][kLanes];
    for (std::int64_t row = 0; row < rows; ++row) {
      const float* gate = sums + row * kAmxColumns + lane;
      const Vector::F value = swiglu(Vector::load(gate), Vector::load(gate + kAmxLanes));
      Vector::store(act[row], Vector::round_to_bf16(value));
    }
    store_act<RowLayout::kRows, true>(tile, tile.act_column + lane, rows, act);
  }
}

}  // namespace
}  // namespace moe::cpu
