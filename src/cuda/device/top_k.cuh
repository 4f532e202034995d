// Softmax over all E, top-k, renormalise: one row of logits, one warp.
#pragma once

#include <cstdint>

#include "cuda/device/shared_address.cuh"
#include "cuda/device/warp.cuh"

namespace moe::cuda {

/// An unsigned number that orders as the logit does; 0 is below all of them.
__device__ __forceinline__ unsigned key_of(float logit) {
  // NaN ranks as -infinity; adding 0 turns -0 into +0, which is its equal.
  const float rankable = logit != logit ? __uint_as_float(0xff800000U) : logit + 0.0F;
  const unsigned bits = __float_as_uint(rankable);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}
__device__ __forceinline__ float logit_of(unsigned key) {
  return __uint_as_float((key & 0x80000000U) != 0 ? key ^ 0x80000000U : ~key);
}

/// The logits of the experts [lane·kPerLane, ...) of one row: a lower lane has lower indices, which
/// makes "lowest index wins" the first lane of a ballot. Beyond the last expert: -infinity. `in_fours`:
/// E is a multiple of 4 and the row 16-byte aligned.
template <int kPerLane>
__device__ __forceinline__ void load_logits(const float* row, int lane, int experts, bool in_fours,
                                            float (&logits)[kPerLane]) {
  const float none = __uint_as_float(0xff800000U);
  if constexpr (kPerLane % 4 == 0) {
    if (in_fours) {
#pragma unroll
      for (int i = 0; i < kPerLane; i += 4) {
        const int expert = lane * kPerLane + i;
        const float4 four = expert < experts ? *reinterpret_cast<const float4*>(row + expert)
                                             : make_float4(none, none, none, none);
        logits[i] = four.x;
        logits[i + 1] = four.y;
        logits[i + 2] = four.z;
        logits[i + 3] = four.w;
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = lane * kPerLane + i;
    logits[i] = expert < experts ? row[expert] : none;
  }
}
/// Of rows that begin 16-byte aligned where E is a multiple of 4.
template <int kPerLane>
__device__ __forceinline__ void load_logits(const float* row, int lane, int experts,
                                            float (&logits)[kPerLane]) {
  load_logits(row, lane, experts, experts % 4 == 0, logits);
}

/// The chosen slots of one token, spread over the lanes of its warp.
struct Chosen {
  float logit = 0;
  int expert = 0;
  int slot = -1;  // -1: this lane holds none
};

/// Slots [first, end), at most kWarpSize of them, by taking the largest key of all lanes out again
/// and again. Slot first + l ends up in lane l.
template <int kPerLane>
__device__ __forceinline__ Chosen select_repeatedly(unsigned (&keys)[kPerLane], int lane, int first,
                                                    int end) {
  Chosen chosen;
  for (int slot = first; slot < end; ++slot) {
    unsigned best = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) best = max(best, keys[i]);
    const unsigned top = __reduce_max_sync(kAllLanes, best);
    const int winner = __ffs(__ballot_sync(kAllLanes, best == top)) - 1;
    int position = 0;
    if (lane == winner) {
      bool taken = false;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        if (taken || keys[i] != top) continue;
        taken = true;
        position = i;
        keys[i] = 0;
      }
    }
    position = __shfl_sync(kAllLanes, position, winner);
    if (lane == slot - first) chosen = {logit_of(top), winner * kPerLane + position, slot};
  }
  return chosen;
}

/// The few experts of a token that may be chosen. Shared memory of one warp.
struct alignas(16) Candidates {
  static constexpr int kPadding = 12;  // logits that rank_candidate() reads in any case
  static constexpr int kLogits = kWarpSize + kPadding;
  float logits[kLogits];  // in order of their experts, then NaN
  int experts[kWarpSize];
};

/// Appends a logit that reaches the bound to the candidates at `at`, and advances. NOTE: predicated in
/// PTX; as a condition of C++ it was a branch and a new address for each logit.
__device__ __forceinline__ void append_candidate(float logit, float bound, int expert,
                                                 std::uint32_t& at) {
  constexpr int kToExpert = Candidates::kLogits * 4;  // bytes
  asm volatile(
      "{\n.reg .pred reaches;\n"
      "setp.ge.f32 reaches, %1, %2;\n"
      "@reaches st.shared.f32 [%0], %1;\n"
      "@reaches st.shared.s32 [%0+%4], %3;\n"
      "@reaches add.u32 %0, %0, 4;\n}"
      : "+r"(at)
      : "f"(logit), "f"(bound), "r"(expert), "n"(kToExpert)
      : "memory");
}

/// All logits that reach the bound, in order of their experts; how many, or 0 where there is no room.
template <int kPerLane>
__device__ __forceinline__ int gather_candidates(const float (&logits)[kPerLane], int lane,
                                                 float bound, Candidates& candidates) {
  int mine = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) mine += logits[i] >= bound ? 1 : 0;
  int before = 0;
  int total = 0;
  if (kPerLane > 3 && __any_sync(kAllLanes, mine > 3)) {
    const int upto = warp_inclusive_scan(mine);
    before = upto - mine;
    total = __shfl_sync(kAllLanes, upto, kWarpSize - 1);
  } else {
    const unsigned lower = (1U << lane) - 1;
    const unsigned ones = __ballot_sync(kAllLanes, (mine & 1) != 0);
    const unsigned twos = kPerLane > 1 ? __ballot_sync(kAllLanes, (mine & 2) != 0) : 0;
    before = __popc(ones & lower) + 2 * __popc(twos & lower);
    total = __popc(ones) + 2 * __popc(twos);
  }
  if (total > kWarpSize) return 0;
  std::uint32_t at = shared_address(candidates.logits + before);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) append_candidate(logits[i], bound, lane * kPerLane + i, at);
  if (lane < Candidates::kPadding) {
    candidates.logits[total + lane] = __uint_as_float(0x7fffffffU);  // NaN: larger than nothing
  }
  __syncwarp();
  return total;
}

/// PTX ISA, set: -1 where a > b, else 0. NOTE: sums of it take half the instructions of a condition's.
__device__ __forceinline__ int minus_one_if_greater(float a, float b) {
  int value;
  asm("set.gt.s32.f32 %0, %1, %2;" : "=r"(value) : "f"(a), "f"(b));
  return value;
}

/// Candidates that are larger than `logit`, a lane's own; equal ones in lower lanes, too. NaN in lanes
/// beyond the candidates.
__device__ __forceinline__ int rank_candidate(float logit, int lane, int total,
                                              const Candidates& candidates) {
  int rank = 0;
  const auto compare = [&](int other) {
    const float4 four = *reinterpret_cast<const float4*>(candidates.logits + other);
    const int first_two = minus_one_if_greater(four.x, logit) + minus_one_if_greater(four.y, logit);
    rank -= first_two + minus_one_if_greater(four.z, logit) + minus_one_if_greater(four.w, logit);
  };
#pragma unroll
  for (int other = 0; other < Candidates::kPadding; other += 4) compare(other);
#pragma unroll 1
  for (int other = Candidates::kPadding; other < total; other += 4) compare(other);
  const unsigned ranks = __reduce_or_sync(kAllLanes, lane < total ? 1U << rank : 0);
  if (__popc(ranks) != total) {  // equal logits: the lower expert, in the lower lane, goes first
    for (int other = 0; other < total; ++other) {
      rank += other < lane && candidates.logits[other] == logit ? 1 : 0;
    }
  }
  return rank;
}

/// The K-th largest of the lanes' largest logits, as a key, and the largest of all. At least K
/// logits are no smaller, and seldom many more. 0 where lanes or distinct logits are fewer than K.
__device__ __forceinline__ unsigned find_threshold(unsigned key, int top_k, unsigned& largest) {
  unsigned threshold = largest = __reduce_max_sync(kAllLanes, key);
  const auto lower = [&] {
    if (key == threshold) key = 0;  // equal ones go together: the threshold only gets lower
    threshold = __reduce_max_sync(kAllLanes, key);
  };
  if (top_k == 8) {
#pragma unroll
    for (int round = 1; round < 8; ++round) lower();
  } else {
#pragma unroll 1
    for (int round = 1; round < top_k; ++round) lower();
  }
  return threshold;
}

/// The key of -infinity, which NaN has too.
inline constexpr unsigned kNegativeInfinityKey = 0x007fffffU;

/// The largest of a lane's logits; NaN loses.
template <int kPerLane>
__device__ __forceinline__ float largest_of(const float (&logits)[kPerLane]) {
  float best = logits[0];
#pragma unroll
  for (int i = 1; i < kPerLane; ++i) best = fmaxf(best, logits[i]);
  return best;
}

/// All K slots, K <= kWarpSize, one to a lane: the candidates are dealt out to the lanes and ranked
/// by counting larger ones. `largest` is the largest logit of all. Returns whether that was possible.
template <int kPerLane>
__device__ __forceinline__ bool select_by_rank(const float (&logits)[kPerLane], int lane, int top_k,
                                               Candidates& candidates, Chosen& chosen,
                                               float& largest) {
  unsigned largest_key = 0;
  const unsigned threshold = find_threshold(key_of(largest_of(logits)), top_k, largest_key);
  largest = logit_of(largest_key);
  if (threshold <= kNegativeInfinityKey) return false;
  const int total = gather_candidates(logits, lane, logit_of(threshold), candidates);
  if (total == 0) return false;
  const bool holds = lane < total;
  const float logit = holds ? candidates.logits[lane] : __uint_as_float(0x7fffffffU);
  const int rank = rank_candidate(logit, lane, total, candidates);
  chosen = {logit, candidates.experts[lane], holds && rank < top_k ? rank : -1};
  return true;
}

/// Experts and weights of one token, whose logits load_logits() spread over the warp. `sink` is told
/// slot by slot, by whichever lane holds it:
///   sink.choose(slot, expert, weight)   once for every slot
///   sink.divide(slot, sum)              K > 32 only, after all: the weight is to be divided by sum
/// `candidates` is of this warp, which must have met since it last read them. E <= kPerLane ·
/// kWarpSize.
template <int kPerLane, class Sink>
__device__ __forceinline__ void softmax_top_k_of_row(const float (&logits)[kPerLane], int lane,
                                                     int experts, int top_k, Candidates& candidates,
                                                     Sink&& sink) {
  // Softmax over all E and renormalisation over the chosen K cancel the sum over all E: what is left
  // is the softmax of the K chosen logits. Equal logits, infinite ones included, weigh the same;
  // without that inf - inf would be NaN.
  const auto weigh = [](const Chosen& chosen, float largest) {
    if (chosen.slot < 0) return 0.0F;
    return chosen.logit == largest ? 1.0F : __expf(chosen.logit - largest);
  };
  Chosen chosen;
  float largest = 0;
  if (top_k <= kWarpSize && select_by_rank(logits, lane, top_k, candidates, chosen, largest)) {
    const float weight = weigh(chosen, largest);
    const float sum = warp_sum(weight);
    if (chosen.slot >= 0) sink.choose(chosen.slot, chosen.expert, __fdividef(weight, sum));
    return;
  }
  unsigned keys[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    keys[i] = lane * kPerLane + i < experts ? key_of(logits[i]) : 0;
  }
  float sum = 0;
  for (int first = 0; first < top_k; first += kWarpSize) {
    chosen = select_repeatedly(keys, lane, first, min(top_k, first + kWarpSize));
    if (first == 0) largest = __shfl_sync(kAllLanes, chosen.logit, 0);  // slot 0
    float weight = weigh(chosen, largest);
    sum += warp_sum(weight);
    if (top_k <= kWarpSize) weight = __fdividef(weight, sum);
    if (chosen.slot >= 0) sink.choose(chosen.slot, chosen.expert, weight);
  }
  if (top_k > kWarpSize) {  // slot s was chosen by lane s % kWarpSize
    for (int slot = lane; slot < top_k; slot += kWarpSize) sink.divide(slot, sum);
  }
}

}  // namespace moe::cuda
