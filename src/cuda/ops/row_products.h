// Matrix-vector products of routed rows with their experts' matrices, for the levels that read every
// weight once per routed row (levels 2 and 3).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/ops/expert_matrices.h"
#include "moe/config.h"

namespace moe::cuda {

/// Where the matrix of a routed row starts: that of expert topk_idx[row], or, with topk_idx null, at
/// matrices.data + row · stride (gathered copies).
struct MatrixOfRow {
  MatrixByExpert matrices;
  const std::int32_t* topk_idx = nullptr;
};

/// What a block adds to the products of a routed row; null: nothing. Views.
struct RowExtras {
  const std::int32_t* topk_idx =
      nullptr;                           ///< [rows] -1: the row is left out; with any of the others
  const float* input_weights = nullptr;  ///< [rows] multiplies the row's input
  const float* gate_bias = nullptr;  ///< [biased, bias_stride], from the first of the columns on
  const float* up_bias = nullptr;    ///< likewise
  const float* down_bias = nullptr;  ///< [biased, bias_stride]
  int biased = 0;                    ///< experts that have one: those below this number
  std::int64_t bias_stride = 0;
};

/// act[r, first + i] = f(gate_r[i,:] · x_r, up_r[i,:] · x_r) for `columns` rows i of both matrices, x_r =
/// x[r / rows_per_input, :] of `depth` elements; f is `activation`, and without a gate `gate` is not read.
/// act has rows of `act_stride`.
void product_activation(DType dtype, const Activation& activation, const MatrixOfRow& gate,
                        const MatrixOfRow& up, const void* x, std::int64_t rows,
                        std::int64_t rows_per_input, std::int64_t columns, std::int64_t depth,
                        void* act, std::int64_t act_stride, cudaStream_t stream,
                        const RowExtras& extras = {});

/// y[t, h] = sum over slots k of topk_weights[t,k] · (down_r[h,:] · act[r,:]) with r = t·K + k, in
/// fp32 and in slot order. With extras.topk_idx topk_weights may be null: 1.
void product_combine(DType dtype, const MatrixOfRow& down, const void* act,
                     const float* topk_weights, std::int64_t tokens, std::int64_t top_k,
                     std::int64_t hidden, std::int64_t depth, void* y, cudaStream_t stream,
                     const RowExtras& extras = {});

}  // namespace moe::cuda
