// Matrix-vector products of routed rows with their experts' matrices, for the levels that read every
// weight once per routed row (levels 2 and 3).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "moe/config.h"

namespace moe::cuda {

/// Where the matrix of a routed row starts: at base + topk_idx[row] · stride elements, or, with
/// topk_idx null, at base + row · stride (gathered copies).
struct MatrixOfRow {
  const void* base = nullptr;
  const std::int32_t* topk_idx = nullptr;
  std::int64_t stride = 0;
};

/// act[r, first + i] = silu(gate_r[i,:] · x_r) · (up_r[i,:] · x_r) for `columns` rows i of both
/// matrices, x_r = x[r / rows_per_input, :] of `depth` elements. act has rows of `act_stride`.
void product_swiglu(DType dtype, const MatrixOfRow& gate, const MatrixOfRow& up, const void* x,
                    std::int64_t rows, std::int64_t rows_per_input, std::int64_t columns,
                    std::int64_t depth, void* act, std::int64_t act_stride, cudaStream_t stream);

/// y[t, h] = sum over slots k of topk_weights[t,k] · (down_r[h,:] · act[r,:]) with r = t·K + k, in
/// fp32 and in slot order.
void product_combine(DType dtype, const MatrixOfRow& down, const void* act,
                     const float* topk_weights, std::int64_t tokens, std::int64_t top_k,
                     std::int64_t hidden, std::int64_t depth, void* y, cudaStream_t stream);

}  // namespace moe::cuda
