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

/// Keys of the experts [lane·kPerLane, ...) of one row: a lower lane has lower indices, which makes
/// "lowest index wins" the first lane of a ballot.
template <int kPerLane>
__device__ __forceinline__ void load_keys(const float* row, int lane, int experts,
                                          unsigned (&keys)[kPerLane]) {
  if constexpr (kPerLane % 4 == 0) {
    if (experts % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kPerLane; i += 4) {
        const int expert = lane * kPerLane + i;
        if (expert < experts) {
          const float4 four = *reinterpret_cast<const float4*>(row + expert);
          keys[i] = key_of(four.x);
          keys[i + 1] = key_of(four.y);
          keys[i + 2] = key_of(four.z);
          keys[i + 3] = key_of(four.w);
        } else {
          keys[i] = keys[i + 1] = keys[i + 2] = keys[i + 3] = 0;
        }
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = lane * kPerLane + i;
    keys[i] = expert < experts ? key_of(row[expert]) : 0;
  }
}

/// The chosen slots of one token, spread over the lanes of its warp.
struct Chosen {
  unsigned key = 0;
  int expert = 0;
  int slot = -1;  // -1: this lane holds none
};

/// K rounds over one key per lane; a lower lane has a lower expert. K <= kWarpSize.
__device__ __forceinline__ Chosen select_one_per_lane(unsigned key, int expert, int lane,
                                                      int top_k) {
  Chosen chosen{key, expert, -1};
  for (int slot = 0; slot < top_k; ++slot) {
    const unsigned top = __reduce_max_sync(kAllLanes, key);
    if (lane == __ffs(__ballot_sync(kAllLanes, key == top)) - 1) {
      chosen.slot = slot;
      key = 0;
    }
  }
  return chosen;
}

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
    if (lane == slot - first) chosen = {top, winner * kPerLane + position, slot};
  }
  return chosen;
}

/// At least K keys are no smaller than the K-th largest of the lanes' maxima, and seldom many more:
/// when at most kWarpSize are, they are dealt out one to a lane, in order of their experts.
/// Returns whether that succeeded.
template <int kPerLane>
__device__ __forceinline__ bool deal_candidates(const unsigned (&keys)[kPerLane], int lane,
                                                int top_k, uint2* candidates, unsigned& key,
                                                int& expert) {
  unsigned best = keys[0];
#pragma unroll
  for (int i = 1; i < kPerLane; ++i) best = max(best, keys[i]);
  unsigned threshold = 0;
  for (int round = 0; round < top_k; ++round) {
    threshold = __reduce_max_sync(kAllLanes, best);
    if (best == threshold) best = 0;  // equal maxima go together: the threshold only gets lower
  }
  int mine = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) mine += keys[i] >= threshold ? 1 : 0;
  const int upto = warp_inclusive_scan(mine);
  const int total = __shfl_sync(kAllLanes, upto, kWarpSize - 1);
  if (threshold == 0 || total > kWarpSize) return false;
  int at = upto - mine;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (keys[i] >= threshold) {
      candidates[at++] = make_uint2(keys[i], static_cast<unsigned>(lane * kPerLane + i));
    }
  }
  __syncwarp();
  const uint2 candidate = lane < total ? candidates[lane] : make_uint2(0, 0);
  key = candidate.x;
  expert = static_cast<int>(candidate.y);
  return true;
}

/// Experts and weights of one token. `sink` is told slot by slot, by whichever lane holds it:
///   sink.choose(slot, expert, weight)   once for every slot
///   sink.divide(slot, sum)              K > 32 only, after all: the weight is to be divided by sum
/// candidates[kWarpSize] is shared memory of this warp. E <= kPerLane · kWarpSize.
template <int kPerLane, class Sink>
__device__ __forceinline__ void softmax_top_k_of_row(const float* logits, int lane, int experts,
                                                     int top_k, uint2* candidates, Sink&& sink) {
  unsigned keys[kPerLane];
  load_keys(logits, lane, experts, keys);
  unsigned one_key = keys[0];
  int one_expert = lane;
  bool one_per_lane = kPerLane == 1;
  if constexpr (kPerLane > 1) {
    if (top_k <= kWarpSize) {
      one_per_lane = deal_candidates(keys, lane, top_k, candidates, one_key, one_expert);
    }
  }
  float largest = 0;
  float sum = 0;
  for (int first = 0; first < top_k; first += kWarpSize) {
    const int end = min(top_k, first + kWarpSize);
    const Chosen chosen = one_per_lane ? select_one_per_lane(one_key, one_expert, lane, top_k)
                                       : select_repeatedly(keys, lane, first, end);
    // Softmax over all E and renormalisation over the chosen K cancel the sum over all E: what is
    // left is the softmax of the K chosen logits. Equal logits, infinite ones included, weigh the
    // same; without that inf - inf would be NaN.
    const bool mine = chosen.slot >= 0;
    const float logit = logit_of(chosen.key);
    if (first == 0) {
      largest = logit_of(__reduce_max_sync(kAllLanes, mine ? chosen.key : 0));
    }
    float weight = mine ? (logit == largest ? 1.0F : expf(logit - largest)) : 0.0F;
    sum += warp_sum(weight);
    if (top_k <= kWarpSize) weight /= sum;
    if (mine) sink.choose(chosen.slot, chosen.expert, weight);
  }
  if (top_k > kWarpSize) {  // slot s was chosen by lane s % kWarpSize
    for (int slot = lane; slot < top_k; slot += kWarpSize) sink.divide(slot, sum);
  }
}

}  // namespace moe::cuda
