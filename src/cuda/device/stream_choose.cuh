// From logits to the list of experts that have work, for a few tokens, by one block.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device/active_expert.h"
#include "cuda/device/choose_row.cuh"
#include "cuda/device/route.cuh"
#include "cuda/device/stream_block.h"
#include "cuda/device/top_k.cuh"
#include "cuda/device/warp.cuh"

namespace moe::cuda {

/// A list of the experts that have work, and what it is made from.
struct ExpertList {
  const std::int32_t* topk_idx;  // [T,K]
  std::int32_t* slots;           // [T·K] t·K + k by expert, in order of t
  ActiveExpert* active;          // [most_active]
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

/// How a token's experts are found.
enum class StreamRule {
  kPlain,  ///< softmax_top_k_of_row()
  kRule,   ///< any other RouterRule
  kGiven,  ///< by the caller
};

/// A token's given routes by one warp, K <= kWarpSize. An expert that stands in several slots gets the
/// sum of their weights in the first; a slot that is not used gets expert -1 and weight 0.
template <class Sink>
__device__ __forceinline__ void take_given_row(const std::int32_t* given_experts,
                                               const float* given_weights, int lane, int experts,
                                               int top_k, Sink&& sink) {
  const int given = lane < top_k ? given_experts[lane] : -1;
  const int expert = given >= 0 && given < experts ? given : -1;
  float weight = expert >= 0 ? given_weights[lane] : 0;
  const unsigned same = __match_any_sync(kAllLanes, expert);
  const bool first = lane == __ffs(same) - 1;
  if (__any_sync(kAllLanes, expert >= 0 && !first)) {
    float sum = 0;
    for (int slot = 0; slot < top_k; ++slot) {
      const float of_slot = __shfl_sync(kAllLanes, weight, slot);
      if ((same >> slot & 1U) != 0) sum += of_slot;
    }
    weight = sum;
  }
  if (lane >= top_k) return;
  const bool used = expert >= 0 && first;
  sink.choose(lane, used ? expert : -1, used ? weight : 0);
}

/// A token's K experts by one warp. `row` points to its logits, `token` is its number in what is given.
template <StreamRule kRule, int kPerLane, class Sink>
__device__ __forceinline__ void choose_of_token(const StreamBlock& block, const float* row,
                                                int token, int experts, int top_k,
                                                Candidates& candidates, Sink&& sink) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if constexpr (kRule == StreamRule::kGiven) {
    take_given_row(block.given_experts + token * top_k, block.given_weights + token * top_k, lane,
                   experts, top_k, sink);
  } else {
    float logits[kPerLane];
    load_logits(row, lane, experts, logits);
    if constexpr (kRule == StreamRule::kPlain) {
      softmax_top_k_of_row(logits, lane, experts, top_k, candidates, sink);
    } else {
      choose_of_row(block.rule, row, logits, lane, experts, top_k, candidates, sink);
    }
  }
}

/// What the shared expert's output is multiplied by. `logit` is x · shared_switch where there is one.
__device__ __forceinline__ float shared_weight(const StreamBlock& block, const float* logit) {
  if (block.shared_switch == nullptr) return 1;
  return __fdividef(1.0F, 1.0F + __expf(-*logit));
}

/// Words of 32 tokens.
__host__ __device__ constexpr int mask_words(int tokens) {
  return (tokens + 31) / 32;
}
/// Which tokens chose which experts: what a list is made from. Shared memory of a block.
struct ExpertMarks {
  unsigned* masks;    // [E][words] a bit a token
  int* first_slots;   // [E]
  std::int32_t* idx;  // [T·K] the choices again; null: they are read from where they were written
  int words;

  /// Bytes, 4-byte aligned.
  __host__ __device__ static constexpr std::size_t bytes(int experts, int tokens, int slots_kept) {
    return static_cast<std::size_t>(experts * (mask_words(tokens) + 1) + slots_kept) * sizeof(int);
  }
  __device__ ExpertMarks(std::byte* memory, int experts, int tokens, bool keeps_slots)
      : masks(reinterpret_cast<unsigned*>(memory)),
        first_slots(reinterpret_cast<int*>(masks + experts * mask_words(tokens))),
        idx(keeps_slots ? first_slots + experts : nullptr),
        words(mask_words(tokens)) {}
  __device__ __forceinline__ void clear(int experts, int threads) const {
    for (int i = static_cast<int>(threadIdx.x); i < experts * words; i += threads) masks[i] = 0;
  }
  /// `slot` counts through all tokens. Expert -1 leaves no mark.
  __device__ __forceinline__ void mark(int slot, int token, int expert) const {
    if (idx != nullptr) idx[slot] = expert;
    if (expert >= 0) atomicOr(masks + expert * words + token / 32, 1U << token % 32);
  }
};

/// Tokens before `token` that its bits mark.
__device__ __forceinline__ int count_before(const unsigned* mask, int token) {
  int before = __popc(mask[token / 32] & ((1U << token % 32) - 1));
  for (int word = 0; word < token / 32; ++word) before += __popc(mask[word]);
  return before;
}

/// out.slots and out.active[most_active] from marks that all kWarps warps of a block see. Slots of
/// expert -1 are left out; an expert stands in a token's slots once. Experts with more than kManyTokens
/// come first, because their blocks take longest; then the others, both in ascending order.
/// tokens · experts < 2^20.
template <int kWarps, int kManyTokens>
__device__ __forceinline__ void list_experts(int tokens, int experts, int top_k, int most_active,
                                             const ExpertMarks& marks, const ExpertList& out) {
  constexpr int kThreads = kWarps * kWarpSize;
  __shared__ int warp_totals[kWarpSize];
  const int thread = static_cast<int>(threadIdx.x);
  const auto [masks, first_slots, kept, words] = marks;

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
  for (int i = (sum >> kRowBits) + thread; i < most_active; i += kThreads) out.active[i] = {};
  __syncthreads();
  for (int slot = thread; slot < tokens * top_k; slot += kThreads) {
    const int expert = kept != nullptr ? kept[slot] : __ldcg(out.topk_idx + slot);
    if (expert < 0) continue;
    const int rank = count_before(masks + expert * words, slot / top_k);
    out.slots[first_slots[expert] + rank] = slot;
  }
}

}  // namespace moe::cuda
