// Softmax over all E, top-k, renormalise: one row of logits, one warp.
#pragma once

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
/// makes "lowest index wins" the first lane of a ballot. Beyond the last expert: -infinity.
template <int kPerLane>
__device__ __forceinline__ void load_logits(const float* row, int lane, int experts,
                                            float (&logits)[kPerLane]) {
  const float none = __uint_as_float(0xff800000U);
  if constexpr (kPerLane % 4 == 0) {
    if (experts % 4 == 0) {
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
  float logits[kWarpSize + 4];  // in order of their experts, then NaN up to a multiple of 4
  int experts[kWarpSize];
};

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

/// All K slots, K <= kWarpSize, one to a lane: the candidates are dealt out to the lanes and ranked
/// by counting larger ones. `largest` is the largest logit of all. Returns whether that was possible.
template <int kPerLane>
__device__ __forceinline__ bool select_by_rank(const float (&logits)[kPerLane], int lane, int top_k,
                                               Candidates& candidates, Chosen& chosen,
                                               float& largest) {
  constexpr unsigned kNegativeInfinity = 0x007fffffU;  // its key, which NaN has too
  float best = logits[0];
#pragma unroll
  for (int i = 1; i < kPerLane; ++i) best = fmaxf(best, logits[i]);  // NaN loses
  unsigned largest_key = 0;
  const unsigned threshold = find_threshold(key_of(best), top_k, largest_key);
  const float bound = logit_of(threshold);
  largest = logit_of(largest_key);
  int mine = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) mine += logits[i] >= bound ? 1 : 0;
  const int upto = warp_inclusive_scan(mine);
  const int total = __shfl_sync(kAllLanes, upto, kWarpSize - 1);
  if (threshold <= kNegativeInfinity || total > kWarpSize) return false;
  int at = upto - mine;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (logits[i] >= bound) {
      candidates.logits[at] = logits[i];
      candidates.experts[at++] = lane * kPerLane + i;
    }
  }
  const float none = __uint_as_float(0x7fffffffU);  // NaN: larger than nothing
  if (lane < 4) candidates.logits[total + lane] = none;
  __syncwarp();
  const bool holds = lane < total;
  const float logit = holds ? candidates.logits[lane] : none;
  int rank = 0;
  for (int other = 0; other < total; other += 4) {
    const float4 four = *reinterpret_cast<const float4*>(candidates.logits + other);
    rank += four.x > logit ? 1 : 0;
    rank += four.y > logit ? 1 : 0;
    rank += four.z > logit ? 1 : 0;
    rank += four.w > logit ? 1 : 0;
  }
  const unsigned ranks = __reduce_or_sync(kAllLanes, holds ? 1U << rank : 0);
  if (__popc(ranks) != total) {  // equal logits: the lower expert, in the lower lane, goes first
    for (int other = 0; other < total; ++other) {
      rank += other < lane && candidates.logits[other] == logit ? 1 : 0;
    }
  }
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
