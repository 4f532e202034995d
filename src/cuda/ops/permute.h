// Permute and unpermute: token order <-> rows grouped by expert, all of it on the device.
//
// Routed row r belongs to expert e iff expert_offsets[e] <= r < expert_offsets[e+1]. Within an
// expert rows keep token order, so the permutation depends on the routing alone, not on timing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/backend.h"
#include "cuda/device/block_extras.cuh"
#include "moe/config.h"

namespace moe::cuda {

/// Where every routed row goes. Views: the memory is the caller's.
struct Permutation {
  std::int32_t* expert_offsets = nullptr;  ///< [E+1] exclusive prefix sum of tokens_per_expert
  std::int32_t* dst_row = nullptr;         ///< [T·K] routed row of each (token, slot); -1: none
  std::int32_t* block_counts = nullptr;    ///< scratch, permutation_scratch() elements
};

/// Elements of Permutation::block_counts for at most `routed` rows.
[[nodiscard]] std::int64_t permutation_scratch(std::int64_t routed, std::int64_t experts,
                                               const DeviceFacts& facts);

/// Fills `permutation` from topk_idx[routed] by a stable counting sort in one kernel; slots whose expert
/// is -1 get no row. An expert may stand in a token's slots more than once. No host
/// synchronisation and no state between calls, so it can be captured in a graph. One block up to
/// kRowsPerBlock rows, else a cooperative grid.
void build_permutation(const std::int32_t* topk_idx, std::int64_t routed, std::int64_t experts,
                       const Permutation& permutation, const DeviceFacts& facts,
                       cudaStream_t stream);

/// Warps that share one token's row of `row` units when a warp takes `segment` of them at once: one
/// where there are many tokens, more where that leaves the device idle, but none without a segment
/// of its own.
[[nodiscard]] int segments_per_token(std::int64_t tokens, std::int64_t row, std::int64_t segment);

/// x_perm[dst_row[t,k],:] = x[t,:], rows of `row_bytes` bytes: every row of x is read once and
/// stored K times. Only with Slots::kSome may dst_row be -1, for slots without a row.
void permute_rows(const void* x, const std::int32_t* dst_row, std::int64_t tokens,
                  std::int64_t top_k, std::int64_t row_bytes, void* x_perm, cudaStream_t stream,
                  Slots slots = Slots::kAll);
/// x_perm[dst_row[t,k],:] = topk_weights[t,k] · x[t,:], multiplied in fp32 and rounded to `dtype`
/// (Router::weight_on_input); dst_row may be -1.
void permute_scaled_rows(DType dtype, const void* x, const std::int32_t* dst_row,
                         const float* topk_weights, std::int64_t tokens, std::int64_t top_k,
                         std::int64_t hidden, void* x_perm, cudaStream_t stream);

/// y[t,:] = sum over slots k of topk_weights[t,k] · y_perm[dst_row[t,k],:], in fp32 and in slot
/// order, so that the result does not depend on the launch. dst_row null: row t·K + k. With
/// extras.topk_idx [T,K] slots of -1 are left out, a row of an expert below extras.biased has
/// extras.row_bias[expert,:] added before it is weighed, and topk_weights may be null: 1. only_rows_are_new:
/// of what it reads, the launch just before in the stream makes y_perm and nothing else; row numbers and
/// weights are then looked up before that is complete.
void unpermute_rows(DType dtype, const void* y_perm, const std::int32_t* dst_row,
                    const float* topk_weights, std::int64_t tokens, std::int64_t top_k,
                    std::int64_t hidden, void* y, cudaStream_t stream,
                    const CombineExtras& extras = {}, bool only_rows_are_new = false);

}  // namespace moe::cuda
