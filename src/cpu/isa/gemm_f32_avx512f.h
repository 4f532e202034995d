// The fp32 GEMM of AVX-512F, which the tiers above share: their extra instructions are for bf16.
#pragma once

#include <iterator>

#include "cpu/isa/gemm_tile.h"

namespace moe::cpu {

/// Sums, columns and one value of A must fit the 32 vector registers.
inline constexpr TileShape kShapesF32Avx512f[] = {{12, 1}, {14, 1}, {6, 2}};

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
