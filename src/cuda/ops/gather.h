// Weight gathering: one copy of its expert's matrix for every routed row (levels 1 and 2).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/ops/expert_matrices.h"

namespace moe::cuda {

/// A run of rows inside every expert's matrix, of `columns` elements each.
struct RowSlice {
  std::int64_t first = 0;
  std::int64_t count = 0;
  std::int64_t columns = 0;
};

/// For every routed row r: out[r, 0..slice.count, columns] with `row_stride` elements between
/// routed rows = the slice of the matrix of expert topk_idx[r]; nothing where that is -1.
void gather_weights(DType dtype, const MatrixByExpert& weights, const std::int32_t* topk_idx,
                    std::int64_t num_routed, RowSlice slice, std::int64_t row_stride, void* out,
                    cudaStream_t stream);

}  // namespace moe::cuda
