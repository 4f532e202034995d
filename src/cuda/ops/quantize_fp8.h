// FP8 (e4m3) operands for GEMMs: one scale for a whole tensor, from its largest magnitude.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "moe/config.h"

namespace moe::cuda {

/// Largest finite e4m3 (OCP 8-bit Floating Point Specification, 2023).
inline constexpr float kLargestE4m3 = 448.0F;

/// largest[0] = max |data[r,c]| over `rows` rows of `columns` elements, `stride` elements apart. NaN
/// among the data gives NaN. The same whatever the order of the blocks.
void largest_magnitude(DType dtype, const void* data, std::int64_t rows, std::int64_t columns,
                       std::int64_t stride, float* largest, cudaStream_t stream);

/// out[r,c] = e4m3(data[r,c] · 448 / largest[0]), rows of out contiguous, and scale[0] = largest[0] / 448,
/// what a product of out must be multiplied with. A tensor of zeros has scale 1. Magnitudes beyond
/// largest[0] saturate.
void quantize_e4m3(DType dtype, const void* data, std::int64_t rows, std::int64_t columns,
                   std::int64_t stride, const float* largest, void* out, float* scale,
                   cudaStream_t stream);

}  // namespace moe::cuda
