// The register-tiled micro-kernel of the vector tiers. For the tier whose Vector was included
// before; the Step policies say what one step of the inner loop multiplies.
#pragma once

#include <cstdint>
#include <iterator>
#include <utility>

#include "cpu/isa/gemm_epilogue_impl.h"
#include "cpu/isa/gemm_tile.h"

namespace moe::cpu {
namespace {

/// fp32 A and B: one step is one k.
struct StepF32 {
  static constexpr int kDepth = 1;
  static constexpr RowLayout kLayout = RowLayout::kColumns;
  static constexpr bool kRoundToBf16 = false;
  template <int kRows, int kPanels>
  static void multiply(Vector::F (&sums)[kRows][2 * kPanels], const float* a,
                       const char* const (&b)[kPanels]) {
    Vector::F columns[2 * kPanels];
#pragma GCC unroll 8
    for (int v = 0; v < 2 * kPanels; ++v) {
      columns[v] = Vector::load(reinterpret_cast<const float*>(b[v / 2]) + v % 2 * Vector::kLanes);
    }
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const Vector::F value = Vector::set1(a[row]);
#pragma GCC unroll 8
      for (int v = 0; v < 2 * kPanels; ++v)
        sums[row][v] = Vector::fma(value, columns[v], sums[row][v]);
    }
  }
};

/// bf16 B expanded by shift and mask, fp32 A that was expanded when it was packed: one step is a
/// pair of k.
struct StepBf16Expanded {
  static constexpr int kDepth = 2;
  static constexpr RowLayout kLayout = RowLayout::kColumns;
  static constexpr bool kRoundToBf16 = true;
  template <int kRows, int kPanels>
  static void multiply(Vector::F (&sums)[kRows][2 * kPanels], const float* a,
                       const char* const (&b)[kPanels]) {
    typename Vector::Pairs pairs[2 * kPanels];
    Vector::F columns[2 * kPanels];
#pragma GCC unroll 8
    for (int v = 0; v < 2 * kPanels; ++v) {
      pairs[v] = Vector::load_pairs(b[v / 2] + v % 2 * Vector::kLanes * 4);
      columns[v] = Vector::even(pairs[v]);
    }
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const Vector::F value = Vector::set1(a[row]);
#pragma GCC unroll 8
      for (int v = 0; v < 2 * kPanels; ++v)
        sums[row][v] = Vector::fma(value, columns[v], sums[row][v]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < 2 * kPanels; ++v) columns[v] = Vector::odd(pairs[v]);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const Vector::F value = Vector::set1(a[kRows + row]);
#pragma GCC unroll 8
      for (int v = 0; v < 2 * kPanels; ++v)
        sums[row][v] = Vector::fma(value, columns[v], sums[row][v]);
    }
  }
};

constexpr std::int64_t kCacheLine = 64;

template <class Step, int kRows, int kPanels, int kPrefetchLines>
void gemm_tile(const TileArgs& tile) {
  constexpr std::int64_t kLanes = Vector::kLanes;
  constexpr std::int64_t kVectors = std::int64_t{2} * kPanels;
  // A step of A is kDepth values of each row in the dtype's storage: 4 bytes per row of fp32 and of a
  // bf16 pair, 8 of an expanded pair.
  constexpr std::int64_t kAStep = kRows * (Step::kLayout == RowLayout::kColumns ? Step::kDepth : 1);
  constexpr std::int64_t kBStep = 2 * kLanes * 4;

  Vector::F sums[kRows][kVectors];
  if (tile.k_begin == 0) {
    static_assert(kVectors * kLanes <= static_cast<std::int64_t>(std::size(kNoBias)));
    const float* begin = tile.begins_with_bias() ? tile.bias : kNoBias;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Vector::F column = Vector::load(begin + v * kLanes);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) sums[row][v] = column;
    }
  } else {
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        sums[row][v] = Vector::load(tile.partial + (row * kVectors + v) * kLanes);
      }
    }
  }

  const std::int64_t first_step = tile.k_begin / Step::kDepth;
  const std::int64_t steps = tile.k_end / Step::kDepth - first_step;
  const float* a = static_cast<const float*>(tile.a) + first_step * kAStep;
  const char* b[kPanels];
#pragma GCC unroll 4
  for (int panel = 0; panel < kPanels; ++panel) {
    b[panel] = static_cast<const char*>(tile.b) + panel * tile.b_panel_stride + first_step * kBStep;
  }
  [[maybe_unused]] const char* prefetch = tile.prefetch;
  for (std::int64_t step = 0; step < steps; ++step) {
    if constexpr (kPrefetchLines > 0) {
#pragma GCC unroll 4
      for (int panel = 0; panel < kPanels; ++panel) {
#pragma GCC unroll 2
        for (int line = 0; line < kPrefetchLines; ++line) {
          // Into the second level: the first is full of this step's rows and columns.
          __builtin_prefetch(prefetch + panel * tile.b_panel_stride + line * kCacheLine, 0, 2);
        }
      }
      prefetch += tile.prefetch_advance;
    }
    Step::template multiply<kRows, kPanels>(sums, a, b);
    a += kAStep;
#pragma GCC unroll 4
    for (int panel = 0; panel < kPanels; ++panel) b[panel] += kBStep;
  }

  if (tile.k_end < tile.depth) {
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        Vector::store(tile.partial + (row * kVectors + v) * kLanes, sums[row][v]);
      }
    }
  } else if (tile.adjusted()) [[unlikely]] {
    alignas(64) float kept[kRows * kVectors * kLanes];
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        Vector::store(kept + (row * kVectors + v) * kLanes, sums[row][v]);
      }
    }
    finish_tile<Step::kLayout, Step::kRoundToBf16>(tile, kept, kRows, kPanels, kLanes);
  } else if (tile.epilogue == Epilogue::kStore) {
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) store_row<kVectors>(tile, row, sums[row]);
  } else {
    float act[kPanels][kRows][kLanes];
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
      for (int panel = 0; panel < kPanels; ++panel) {
        Vector::F value = swiglu(sums[row][2 * panel], sums[row][2 * panel + 1]);
        if constexpr (Step::kRoundToBf16) value = Vector::round_to_bf16(value);
        Vector::store(act[panel][row], value);
      }
    }
    for (int panel = 0; panel < kPanels; ++panel) {
      store_act<Step::kLayout, Step::kRoundToBf16>(tile, tile.act_column + panel * kLanes, kRows,
                                                   act[panel]);
    }
  }
}

/// All tiles of 1..kMaxRows rows, by prefetch lines and rows.
template <class Step, int kPanels, class Rows>
struct TileTable;
template <class Step, int kPanels, int... kRow>
struct TileTable<Step, kPanels, std::integer_sequence<int, kRow...>> {
  static constexpr TileFunction kTiles[kMaxPrefetchLines + 1][sizeof...(kRow)] = {
      {gemm_tile<Step, kRow + 1, kPanels, 0>...},
      {gemm_tile<Step, kRow + 1, kPanels, 1>...},
      {gemm_tile<Step, kRow + 1, kPanels, 2>...}};
};

/// The tile function of a tier with at most kRows1 rows on one panel and kRows2 on two.
template <class Step, int kRows1, int kRows2>
TileFunction find_tile(TileShape shape, int rows, int prefetch_lines) {
  if (shape.panels == 1) {
    return TileTable<Step, 1, std::make_integer_sequence<int, kRows1>>::kTiles[prefetch_lines]
                                                                              [rows - 1];
  }
  return TileTable<Step, 2, std::make_integer_sequence<int, kRows2>>::kTiles[prefetch_lines]
                                                                            [rows - 1];
}

}  // namespace
}  // namespace moe::cpu
