// Every router: one row of logits, one warp. docs/routing.md has the formulas.
#pragma once

#include "cuda/device/router_rule.h"
#include "cuda/device/top_k.cuh"

namespace moe::cuda {

__device__ __forceinline__ float negative_infinity() {
  return __uint_as_float(0xff800000U);
}

/// log(1 + z), 0 <= z <= 1, to 2 units in the last place: z times a polynomial that interpolates
/// log(1 + z) / z in Chebyshev's points. log1pf() takes twice the instructions.
__device__ __forceinline__ float log_of_one_plus(float z) {
  constexpr float kFactors[] = {-0.00317605701F, 0.0195425265F, -0.0563736111F, 0.105436236F,
                                -0.152696669F,   0.196632743F,  -0.249516159F,  0.333297104F,
                                -0.499998927F,   1.0F};
  float value = kFactors[0];
#pragma unroll
  for (int i = 1; i < 10; ++i) value = fmaf(value, z, kFactors[i]);
  return value * z;
}

/// PTX ISA, ex2.approx.ftz: e^x, 0 where that is below the smallest normal number.
__device__ __forceinline__ float exp_or_zero(float x) {
  constexpr float kLog2E = 1.44269504F;
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x * kLog2E));
  return value;
}
/// PTX ISA, rcp.approx.ftz. Of a number that is at least 1.
__device__ __forceinline__ float reciprocal(float x) {
  float value;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}
/// PTX ISA, sqrt.approx
__device__ __forceinline__ float square_root(float x) {
  float value;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}

/// Of a logit that is a number or -infinity.
__device__ __forceinline__ float score_of(Scoring scoring, float logit) {
  if (scoring == Scoring::kSigmoid) return reciprocal(1.0F + exp_or_zero(-logit));
  if (scoring == Scoring::kSqrtSoftplus) {
    return square_root(fmaxf(logit, 0.0F) + log_of_one_plus(__expf(-fabsf(logit))));
  }
  return logit;  // softmax keeps their order
}

/// The same for all of a lane's.
template <int kPerLane>
__device__ __forceinline__ void score_all(Scoring scoring, float (&logits)[kPerLane]) {
  if (scoring == Scoring::kSigmoid) {
#pragma unroll
    for (float& logit : logits) logit = score_of(Scoring::kSigmoid, logit);
  } else if (scoring == Scoring::kSqrtSoftplus) {
#pragma unroll
    for (float& logit : logits) logit = score_of(Scoring::kSqrtSoftplus, logit);
  }
}

/// The logit that the rule scores: with its bias, -infinity for NaN.
__device__ __forceinline__ float biased_logit(const RouterRule& rule, float logit, int expert) {
  const float value = rule.bias == nullptr ? logit : logit + __ldg(rule.bias + expert);
  return fmaxf(value, negative_infinity());
}

/// Adds a bias per expert where there is one, at any address. -infinity stays beyond the last expert.
template <int kPerLane>
__device__ __forceinline__ void add_biases(const float* biases, int lane, int experts,
                                           float (&logits)[kPerLane]) {
  if (biases == nullptr) return;
  const bool aligned = reinterpret_cast<std::uintptr_t>(biases) % 16 == 0;
  float mine[kPerLane];
  load_logits(biases, lane, experts, aligned && experts % 4 == 0, mine);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) logits[i] += mine[i];
}

/// The two largest of what a lane or some lanes have seen.
struct BestTwo {
  float best;
  float second;
  __device__ __forceinline__ void see(float value) {
    second = fmaxf(second, fminf(best, value));
    best = fmaxf(best, value);
  }
  /// What the lane `step` away has seen, too.
  __device__ __forceinline__ void see_lane(int step) {
    const float theirs = __shfl_xor_sync(kAllLanes, best, step);
    const float their_second = __shfl_xor_sync(kAllLanes, second, step);
    see(theirs);
    second = fmaxf(second, their_second);
  }
};

/// What a group is ranked by: its largest score (softmax) or the sum of its two largest. `of` are scores
/// with their selection bias, or logits where there is none.
__device__ __forceinline__ float group_score(const RouterRule& rule, int size, const BestTwo& of) {
  if (rule.scoring == Scoring::kSoftmax) return of.best;
  const bool scored = rule.selection_bias != nullptr;
  const float best = scored ? of.best : score_of(rule.scoring, of.best);
  if (size == 1) return best;
  return best + (scored ? of.second : score_of(rule.scoring, of.second));
}

/// Where a group is whole lanes, a power of two of them: a lane's group is among the kept ones. The lanes
/// of a group share out the others.
template <int kPerLane>
__device__ __forceinline__ bool lane_is_kept(const RouterRule& rule, int size, int lane,
                                             const float (&ranked)[kPerLane]) {
  const int lanes = size / kPerLane;
  BestTwo mine{negative_infinity(), negative_infinity()};
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) mine.see(ranked[i]);
  for (int step = 1; step < lanes; step *= 2) mine.see_lane(step);
  const float score = group_score(rule, size, mine);
  const int first = lane & -lanes;  // lane of the group
  const unsigned group_lanes = (1U << lanes) - 1;
  int better = 0;
  for (int others = 0; others < rule.groups; others += lanes) {
    const int other = (others + lane - first) * lanes;  // its first lane
    const float theirs = __shfl_sync(kAllLanes, score, other);
    const bool before =
        other < rule.groups * lanes && (theirs > score || (theirs == score && other < first));
    better += __popc(__ballot_sync(kAllLanes, before) >> first & group_lanes);
  }
  return better < rule.top_groups;
}

/// The groups that are kept, one bit each, lowest index first among equals; groups of any size.
template <int kPerLane>
__device__ __forceinline__ unsigned keep_groups(const RouterRule& rule, int size, int lane,
                                                const float (&ranked)[kPerLane]) {
  float mine = negative_infinity();  // of group `lane`
  for (int group = 0; group < rule.groups; ++group) {
    BestTwo of{negative_infinity(), negative_infinity()};
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int place = lane * kPerLane + i - group * size;
      of.see(place >= 0 && place < size ? ranked[i] : negative_infinity());
    }
    for (int step = 1; step < kWarpSize; step *= 2) of.see_lane(step);
    if (lane == group) mine = group_score(rule, size, of);
  }
  unsigned key = lane < rule.groups ? key_of(mine) : 0;
  unsigned kept = 0;
  for (int i = 0; i < rule.top_groups; ++i) {
    const unsigned top = __reduce_max_sync(kAllLanes, key);
    const int winner = __ffs(__ballot_sync(kAllLanes, key == top)) - 1;
    if (lane == winner) key = 0;
    kept |= 1U << winner;
  }
  return kept;
}

/// The experts that may be chosen: those of the groups that are kept.
struct OpenExperts {
  int group_size;
  unsigned groups = ~0U;    // that are kept
  bool whole_lanes = true;  // groups are whole lanes: `lane_kept` says it all
  bool lane_kept = true;
  __device__ __forceinline__ bool holds(int expert) const {
    return whole_lanes ? lane_kept : (groups >> (expert / group_size) & 1U) != 0;
  }
};

/// Finds them and lets the logits of the others be -infinity.
template <int kPerLane>
__device__ __forceinline__ OpenExperts close_groups(const RouterRule& rule, int lane, int experts,
                                                    float (&ranked)[kPerLane]) {
  OpenExperts open{experts};
  if (rule.groups == 1) return open;
  open.group_size = experts / rule.groups;
  const int lanes = open.group_size / kPerLane;
  open.whole_lanes = open.group_size % kPerLane == 0 && (lanes & (lanes - 1)) == 0;
  if (open.whole_lanes) {
    open.lane_kept = lane_is_kept(rule, open.group_size, lane, ranked);
#pragma unroll
    for (float& value : ranked) value = open.lane_kept ? value : negative_infinity();
    return open;
  }
  open.groups = keep_groups(rule, open.group_size, lane, ranked);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = lane * kPerLane + i;
    if (expert < experts && !open.holds(expert)) ranked[i] = negative_infinity();
  }
  return open;
}

/// Sparsemixer: slot after slot the best that is left, weighed by those left that are close to it: l' with
/// l - l' <= t·max(|l'|, l), which is l' >= (1 - t)·l above 0 and l' >= l / (1 - t) below.
__device__ __forceinline__ float nearest_bound(float best) {
  constexpr float kThreshold = 0.02F;
  return best > 0 ? (1 - kThreshold) * best : best / (1 - kThreshold);
}
/// What a logit that is near adds to the sum; equal ones 1, infinite ones included.
__device__ __forceinline__ float share_beside(float logit, float best) {
  return logit == best ? 1.0F : __expf(logit - best);
}

/// All slots at once, one to a lane: whatever takes part in any of their softmaxes is gathered first.
/// Returns whether that was possible.
template <int kPerLane, class Sink>
__device__ __forceinline__ bool mix_by_rank(const RouterRule& rule, const float (&logits)[kPerLane],
                                            int lane, int top_k, Candidates& candidates,
                                            Sink&& sink) {
  unsigned largest_key = 0;
  const unsigned threshold = find_threshold(key_of(largest_of(logits)), top_k, largest_key);
  if (threshold <= kNegativeInfinityKey) return false;
  const int total = gather_candidates(logits, lane, nearest_bound(logit_of(threshold)), candidates);
  if (total == 0) return false;
  const bool holds = lane < total;
  const float mine = holds ? candidates.logits[lane] : __uint_as_float(0x7fffffffU);
  const int rank = rank_candidate(mine, lane, total, candidates);
  if (!holds || rank >= top_k) return true;
  const float bound = nearest_bound(mine);
  float sum = 1;
  for (int other = 0; other < total; ++other) {
    const float logit = candidates.logits[other];
    const bool left = logit < mine || (logit == mine && other > lane);
    if (left && logit >= bound) sum += share_beside(logit, mine);
  }
  sink.choose(rank, candidates.experts[lane], __fdividef(rule.scale, sum));
  return true;
}

/// The same one slot after another, for any logits.
template <int kPerLane, class Sink>
__device__ __forceinline__ void mix_repeatedly(const RouterRule& rule, float (&logits)[kPerLane],
                                               int lane, int experts, int top_k, Sink&& sink) {
  const float taken = __uint_as_float(0x7fffffffU);  // NaN: no comparison lets it in again
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (lane * kPerLane + i >= experts) logits[i] = taken;
  }
  for (int slot = 0; slot < top_k; ++slot) {
    float best = taken;
    int place = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (logits[i] > best || (best != best && logits[i] == logits[i])) {
        best = logits[i];
        place = i;
      }
    }
    const unsigned key = best == best ? key_of(best) : 0;
    const unsigned top = __reduce_max_sync(kAllLanes, key);
    const int winner = __ffs(__ballot_sync(kAllLanes, key == top)) - 1;
    const float most = logit_of(top);
    const float bound = nearest_bound(most);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (logits[i] >= bound) sum += share_beside(logits[i], most);
      if (lane == winner && i == place) logits[i] = taken;
    }
    sum = warp_sum(sum);
    if (lane == winner) {
      const float weight = most == negative_infinity() ? 0.0F : __fdividef(rule.scale, sum);
      sink.choose(slot, lane * kPerLane + place, weight);
    }
  }
}

/// As softmax_top_k_of_row() for any rule; `row` points to the token's logits in memory, `logits` are
/// they, spread over the warp, and are overwritten. K <= kMostRuleChoices, groups <= kMostRuleGroups.
template <int kPerLane, class Sink>
__device__ __forceinline__ void choose_of_row(const RouterRule& rule, const float* row,
                                              float (&logits)[kPerLane], int lane, int experts,
                                              int top_k, Candidates& candidates, Sink&& sink) {
  add_biases(rule.bias, lane, experts, logits);
#pragma unroll
  for (float& logit : logits) logit = fmaxf(logit, negative_infinity());  // NaN
  if (rule.scoring == Scoring::kSparseMixer) {
    if (!mix_by_rank(rule, logits, lane, top_k, candidates, sink)) {
      mix_repeatedly(rule, logits, lane, experts, top_k, sink);
    }
    return;
  }
  float largest = 0;
  float sum = 0;  // of all exponentials, where softmax is not renormalised
  if (rule.scoring == Scoring::kSoftmax && !rule.renormalise) {
    largest = logit_of(__reduce_max_sync(kAllLanes, key_of(largest_of(logits))));
#pragma unroll
    for (const float logit : logits) sum += exp_or_zero(logit - largest);
    sum = warp_sum(sum);
  }
  // Scores grow with the logits: without a selection bias those are ranked instead.
  if (rule.selection_bias != nullptr) {
    score_all(rule.scoring, logits);
    add_biases(rule.selection_bias, lane, experts, logits);
  }
  const OpenExperts open = close_groups(rule, lane, experts, logits);
  Chosen chosen;
  float first = 0;
  if (!select_by_rank(logits, lane, top_k, candidates, chosen, first)) {
    unsigned keys[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int expert = lane * kPerLane + i;
      keys[i] = expert < experts && open.holds(expert) ? key_of(logits[i]) : 0;
    }
    chosen = select_repeatedly(keys, lane, 0, top_k);
    first = __shfl_sync(kAllLanes, chosen.logit, 0);
  }
  float weight = 0;
  if (chosen.slot >= 0) {
    if (rule.scoring == Scoring::kSoftmax) {
      weight = rule.renormalise ? share_beside(chosen.logit, first)
                                : __fdividef(__expf(chosen.logit - largest), sum);
    } else if (rule.selection_bias == nullptr) {
      weight = score_of(rule.scoring, chosen.logit);
    } else {
      // The score without the selection bias, from the logit again: what was ranked has lost digits.
      weight = score_of(rule.scoring, biased_logit(rule, row[chosen.expert], chosen.expert));
    }
  }
  if (rule.renormalise) {
    const float all = warp_sum(weight);
    weight = all > 0 ? __fdividef(weight, all) : 0.0F;
  }
  if (chosen.slot >= 0) sink.choose(chosen.slot, chosen.expert, weight * rule.scale);
}

}  // namespace moe::cuda
