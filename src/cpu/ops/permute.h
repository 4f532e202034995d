// Permute and unpermute: token order <-> rows grouped by expert.
//
// Routed row r belongs to expert e iff expert_offsets[e] <= r < expert_offsets[e+1]. Within an
// expert rows keep token order, so the permutation depends on the routing alone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moe::cpu {

/// Where every routed row comes from and goes to. Views: the memory is the caller's.
struct Permutation {
  std::int64_t* expert_offsets = nullptr;  ///< [E+1] exclusive prefix sum of tokens_per_expert
  std::int64_t* src_row = nullptr;         ///< [T·K] token of each routed row
  std::int64_t* dst_row = nullptr;         ///< [T·K] routed row of each (token, slot); -1: none
};

/// Fills `permutation` from topk_idx[tokens,K] by a counting sort, O(T·K + E); indices below 0 get no
/// row. Serial: two passes
/// over a few bytes per routed row.
void build_permutation(const std::int32_t* topk_idx, std::int64_t tokens, std::int64_t experts,
                       std::int64_t top_k, const Permutation& permutation);

/// permuted[dst_row[i]] = weights[i] for i < count. Serial.
void permute_weights(const float* weights, const std::int64_t* dst_row, std::int64_t count,
                     float* permuted);

/// x_perm[r,:] = x[src_row[r],:] for first <= r < end, rows of `row_bytes` bytes. Serial; callers
/// split rows over threads.
void permute_rows(const void* x, const std::int64_t* src_row, std::int64_t first, std::int64_t end,
                  std::size_t row_bytes, void* x_perm);

/// y[t,c] = sum over slots k of topk_weights[t,k] · y_perm[dst_row[t,k], c] for first <= t < end
/// and c < columns, in fp32 and in slot order, so that the result does not depend on threads; a dst_row
/// below 0 is left out. y has
/// row stride `y_stride` (elements), y_perm is dense. Serial; callers split tokens over threads.
template <class Element>
void unpermute_rows(const float* y_perm, const std::int64_t* dst_row, const float* topk_weights,
                    std::int64_t first, std::int64_t end, std::int64_t top_k, std::int64_t columns,
                    Element* y, std::int64_t y_stride);

}  // namespace moe::cpu
