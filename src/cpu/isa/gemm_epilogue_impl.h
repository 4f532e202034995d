// What happens to the sums of a tile: kept between chunks of the depth, stored, or activated. For the
// tier whose Vector was included before.
#pragma once

#include <cstdint>

#include "cpu/isa/activation_impl.h"
#include "cpu/isa/gemm_tile.h"

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

/// Tiles have at most this many rows.
inline constexpr std::int64_t kMostTileRows = 32;

/// The epilogue of a tile whose sums need a scale or another activation. `sums` is
/// [rows][panels][2·half]: memory, not registers, so that the tiles carry one small function for all of
/// that instead of a copy each.
template <RowLayout kLayout, bool kRoundToBf16>
[[gnu::noinline]] void finish_tile(const TileArgs& tile, float* sums, std::int64_t rows,
                                   std::int64_t panels, std::int64_t half) {
  constexpr std::int64_t kLanes = Vector::kLanes;
  const std::int64_t width = panels * 2 * half;
  for (std::int64_t row = 0; tile.row_scale != nullptr && row < rows; ++row) {
    const Vector::F scale = Vector::set1(tile.row_scale[row]);
    for (std::int64_t at = 0; at < width; at += kLanes) {
      float* sum = sums + row * width + at;
      const Vector::F bias = tile.bias == nullptr ? Vector::zero() : Vector::load(tile.bias + at);
      Vector::store(sum, Vector::fma(Vector::load(sum), scale, bias));
    }
  }
  if (tile.epilogue == Epilogue::kStore) {
    const std::int64_t columns = tile.columns < width ? tile.columns : width;
    for (std::int64_t row = 0; row < rows; ++row) {
      float* out = tile.c + row * tile.c_stride;
      for (std::int64_t at = 0; at < columns; ++at) out[at] = sums[row * width + at];
    }
    return;
  }
  const bool ungated =
      tile.epilogue == Epilogue::kAct && tile.step.kind == ActivationStep::Kind::kReLU2;
  float act[kMostTileRows][kLanes];
  const std::int64_t vectors = (ungated ? 2 : 1) * half / kLanes;  // of one panel's act
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    for (std::int64_t v = 0; v < vectors; ++v) {
      for (std::int64_t row = 0; row < rows; ++row) {
        const float* first = sums + row * width + panel * 2 * half + v * kLanes;
        Vector::F value = Vector::load(first);
        if (ungated) {
          value = relu2(value);
        } else if (tile.epilogue == Epilogue::kSwiGlu) {
          value = swiglu(value, Vector::load(first + half));
        } else {
          value = activate(tile.step, value, Vector::load(first + half));
        }
        if constexpr (kRoundToBf16) value = Vector::round_to_bf16(value);
        Vector::store(act[row], value);
      }
      store_act<kLayout, kRoundToBf16>(tile, tile.act_column + (panel * vectors + v) * kLanes, rows,
                                       act);
    }
  }
}

}  // namespace
}  // namespace moe::cpu
