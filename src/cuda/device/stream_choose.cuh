// From logits to the list of experts that have work, for a few tokens, by one block.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device/active_expert.h"
#include "cuda/device/route.cuh"
#include "cuda/device/top_k.cuh"
#include "cuda/device/warp.cuh"

namespace moe::cuda {

/// What a block finds out, in global or in shared memory.
struct StreamChoices {
  std::int32_t* topk_idx;  // [T,K]
  float* topk_weights;     // [T,K]
  std::int32_t* slots;     // [T·K] t·K + k by expert, in order of t
  ActiveExpert* active;    // [min(T·K,E)]
};

/// Writes a slot of the only token down: its experts are active, in the order of slots.
struct ListChoice {
  StreamChoices out;
  __device__ void choose(int slot, int expert, float weight) const {
    out.topk_idx[slot] = expert;
    out.topk_weights[slot] = weight;
    out.slots[slot] = slot;
    out.active[slot] = {expert, slot, 1};
  }
  __device__ void divide(int slot, float sum) const { out.topk_weights[slot] /= sum; }
};

/// Writes a slot down.
struct PlainChoice {
  std::int32_t* idx;  // [K]
  float* weights;     // [K]
  __device__ void choose(int slot, int expert, float weight) const {
    idx[slot] = expert;
    weights[slot] = weight;
  }
  __device__ void divide(int slot, float sum) const { weights[slot] /= sum; }
};

/// Words of 32 tokens.
__host__ __device__ constexpr int mask_words(int tokens) {
  return (tokens + 31) / 32;
}
/// Shared memory that list_experts() works in, 4-byte aligned.
__host__ __device__ constexpr std::size_t choose_bytes(int tokens, int experts) {
  return static_cast<std::size_t>(experts) * static_cast<std::size_t>(mask_words(tokens) + 1) *
         sizeof(int);
}

/// Tokens before `token` that its bits mark.
__device__ __forceinline__ int count_before(const unsigned* mask, int token) {
  int before = __popc(mask[token / 32] & ((1U << token % 32) - 1));
  for (int word = 0; word < token / 32; ++word) before += __popc(mask[word]);
  return before;
}

/// Of one token, by one warp. logits[experts] are 16-byte aligned, experts <= kPerLane · 32.
template <int kPerLane>
__device__ __forceinline__ void choose_for_token(const float* logits, int experts, int top_k,
                                                 Candidates& candidates, const StreamChoices& out) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  float row[kPerLane];
  load_logits(logits, lane, experts, row);
  softmax_top_k_of_row(row, lane, experts, top_k, candidates, ListChoice{out});
}

/// Tokens [first, end) by all kWarps warps of a block, a token a warp in turn. logits[tokens,experts] are
/// 16-byte aligned, experts <= kPerLane · 32. topk_idx[tokens,top_k] and topk_weights alike.
template <int kPerLane, int kWarps>
__device__ __forceinline__ void choose_for_tokens(const float* logits, int first, int end,
                                                  int experts, int top_k, std::int32_t* topk_idx,
                                                  float* topk_weights) {
  __shared__ Candidates candidates[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  for (int token = first + warp; token < end; token += kWarps) {
    float row[kPerLane];
    load_logits(logits + token * experts, lane, experts, row);
    softmax_top_k_of_row(row, lane, experts, top_k, candidates[warp],
                         PlainChoice{topk_idx + token * top_k, topk_weights + token * top_k});
    __syncwarp();
  }
}

/// out.slots and out.active from out.topk_idx, which other blocks may have written, by all kWarps warps
/// of a block. Experts with more than kManyTokens come first, because their blocks take longest; then
/// the others, both in ascending order. tokens · experts < 2^20. `scratch` has choose_bytes().
template <int kWarps, int kManyTokens>
__device__ __forceinline__ void list_experts(int tokens, int experts, int top_k,
                                             const StreamChoices& out, std::byte* scratch) {
  constexpr int kThreads = kWarps * kWarpSize;
  __shared__ int warp_totals[kWarpSize];
  const int thread = static_cast<int>(threadIdx.x);
  const int words = mask_words(tokens);
  auto* const masks = reinterpret_cast<unsigned*>(scratch);                   // [E][words]
  auto* const first_slots = reinterpret_cast<int*>(masks + experts * words);  // [E]
  for (int i = thread; i < experts * words; i += kThreads) masks[i] = 0;
  __syncthreads();
  for (int slot = thread; slot < tokens * top_k; slot += kThreads) {
    const int token = slot / top_k;
    atomicOr(masks + __ldcg(out.topk_idx + slot) * words + token / 32, 1U << token % 32);
  }
  __syncthreads();

  // One scan for both: rows in the lower bits, experts that have any in the upper ones.
  constexpr int kRowBits = 20;
  const int per_thread = (experts + kThreads - 1) / kThreads;
  const auto rows_of = [&](int expert) {
    int rows = 0;
    if (expert >= experts) return rows;
    for (int word = 0; word < words; ++word) rows += __popc(masks[expert * words + word]);
    return rows;
  };
  int mine = 0;
  int mine_many = 0;
  for (int i = 0; i < per_thread; ++i) {
    const int rows = rows_of(thread * per_thread + i);
    mine += rows + (rows > 0 ? 1 << kRowBits : 0);
    mine_many += rows > kManyTokens ? 1 : 0;
  }
  int many_sum = 0;
  int many_before = 0;
  if (__syncthreads_or(mine_many) != 0) {
    many_before = block_scan<kWarps>(mine_many, warp_totals, many_sum);
  }
  int sum = 0;
  int before = block_scan<kWarps>(mine, warp_totals, sum);
  for (int i = 0; i < per_thread; ++i) {
    const int expert = thread * per_thread + i;
    const int rows = rows_of(expert);
    if (rows == 0) continue;
    const int first = before & ((1 << kRowBits) - 1);
    first_slots[expert] = first;
    const bool many = rows > kManyTokens;
    const int place = many ? many_before : many_sum + (before >> kRowBits) - many_before;
    out.active[place] = {expert, first, rows};
    before += rows + (1 << kRowBits);
    many_before += many ? 1 : 0;
  }
  const int most_active = min(tokens * top_k, experts);
  for (int i = (sum >> kRowBits) + thread; i < most_active; i += kThreads) out.active[i] = {};
  __syncthreads();
  for (int slot = thread; slot < tokens * top_k; slot += kThreads) {
    const int expert = __ldcg(out.topk_idx + slot);
    const int rank = count_before(masks + expert * words, slot / top_k);
    out.slots[first_slots[expert] + rank] = slot;
  }
}

}  // namespace moe::cuda
