// The fp32 GEMM of AVX-512F, which the tiers above share: their extra instructions are for bf16.
#pragma once

#include <iterator>

#include "cpu/isa/gemm_tile.h"

namespace moe::cpu {

// Heights of the 512-bit tiles: sums, columns and one value of A must fit 32 vector registers.
// AddressSanitizer checks every access of the unrolled loops, and GCC 12 then needs minutes for each
// file: such builds instantiate the same templates for fewer and smaller tiles.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr int kTallRows = 4;
inline constexpr int kTallestRows = 5;
inline constexpr int kTwoPanelRows = 2;
#else
inline constexpr int kTallRows = 12;
inline constexpr int kTallestRows = 14;
inline constexpr int kTwoPanelRows = 6;
#endif

inline constexpr TileShape kShapesF32Avx512f[] = {
    {kTallRows, 1}, {kTallestRows, 1}, {kTwoPanelRows, 2}};

/// Defined in kernels_avx512f.cpp.
TileFunction find_tile_f32_avx512f(TileShape shape, int rows, int prefetch_lines);

inline constexpr GemmKernels kGemmF32Avx512f = {
    .row_layout = RowLayout::kColumns,
    .lanes = 16,
    .depth_multiple = 1,
    .depth_step = 1,
    .shapes = kShapesF32Avx512f,
    .shape_count = static_cast<int>(std::size(kShapesF32Avx512f)),
    .tile = find_tile_f32_avx512f};

}  // namespace moe::cpu
