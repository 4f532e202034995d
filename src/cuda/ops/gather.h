// Weight gathering: one copy of its expert's matrix for every routed row (levels 1 and 2).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "moe/tensor.h"

namespace moe::cuda {

/// A run of rows inside every expert's matrix of weights[E, rows, columns].
struct RowSlice {
  std::int64_t first = 0;
  std::int64_t count = 0;
};

/// For every routed row r: out[r, 0..slice.count, columns] with `row_stride` elements between
/// routed rows = weights[topk_idx[r], slice, columns].
void gather_weights(const TensorView& weights, const std::int32_t* topk_idx,
                    std::int64_t num_routed, RowSlice slice, std::int64_t row_stride, void* out,
                    cudaStream_t stream);

}  // namespace moe::cuda
