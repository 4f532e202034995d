// Every router: one row of logits, one warp. docs/routing.md has the formulas.
#pragma once

#include "cuda/device/router_rule.h"
#include "cuda/device/top_k.cuh"

namespace moe::cuda {

__device__ __forceinline__ float negative_infinity() {
  return __uint_as_float(0xff800000U);
}

/// Of a logit that is a number or -infinity.
__device__ __forceinline__ float score_of(Scoring scoring, float logit) {
  if (scoring == Scoring::kSigmoid) return __fdividef(1.0F, 1.0F + __expf(-logit));
  if (scoring == Scoring::kSqrtSoftplus) {
    return sqrtf(fmaxf(logit, 0.0F) + log1pf(__expf(-fabsf(logit))));
  }
  return logit;  // softmax keeps their order
}

/// The logit that the rule scores: with its bias, -infinity for NaN.
__device__ __forceinline__ float biased_logit(const RouterRule& rule, float logit, int expert) {
  const float value = rule.bias == nullptr ? logit : logit + __ldg(rule.bias + expert);
  return value == value ? value : negative_infinity();
}

/// The two largest of what a lane or some lanes have seen.
struct BestTwo {
  float best;
  float second;
  __device__ __forceinline__ void see(float value) {
    second = fmaxf(second, fminf(best, value));
    best = fmaxf(best, value);
  }
};

/// What a group is ranked by: its largest (softmax) or the sum of its two largest.
__device__ __forceinline__ float group_score(const RouterRule& rule, int size, const BestTwo& of) {
  return rule.scoring == Scoring::kSoftmax || size == 1 ? of.best : of.best + of.second;
}

/// Where a group is whole lanes, a power of two of them: a lane's group is among the kept ones. All
/// groups at once, by shuffles within them.
template <int kPerLane>
__device__ __forceinline__ bool lane_is_kept(const RouterRule& rule, int size, int lane,
                                             const float (&ranked)[kPerLane]) {
  const int lanes = size / kPerLane;
  BestTwo mine{negative_infinity(), negative_infinity()};
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) mine.see(ranked[i]);
  for (int step = 1; step < lanes; step *= 2) {
    const float best = __shfl_xor_sync(kAllLanes, mine.best, step);
    const float second = __shfl_xor_sync(kAllLanes, mine.second, step);
    mine.see(best);
    mine.second = fmaxf(mine.second, second);
  }
  const float score = group_score(rule, size, mine);
  const int group = lane / lanes;
  int better = 0;
  for (int other = 0; other < rule.groups; ++other) {
    const float theirs = __shfl_sync(kAllLanes, score, other * lanes);
    better += theirs > score || (theirs == score && other < group) ? 1 : 0;
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
    for (int step = 1; step < kWarpSize; step *= 2) {
      const float best = __shfl_xor_sync(kAllLanes, of.best, step);
      const float second = __shfl_xor_sync(kAllLanes, of.second, step);
      of.see(best);
      of.second = fmaxf(of.second, second);
    }
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

/// Slot after slot the best that is left, weighed by those left that are close to it: l' with
/// l - l' <= t·max(|l'|, l), which is l' >= (1 - t)·l above 0 and l' >= l / (1 - t) below.
template <int kPerLane, class Sink>
__device__ __forceinline__ void mix_experts(const RouterRule& rule, float (&logits)[kPerLane],
                                            int lane, int experts, int top_k, Sink&& sink) {
  constexpr float kThreshold = 0.02F;
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
    const float bound = most > 0 ? (1 - kThreshold) * most : most / (1 - kThreshold);
    float sum = 0;
    if (best >= bound) {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        if (logits[i] >= bound) sum += logits[i] == most ? 1.0F : __expf(logits[i] - most);
        if (lane == winner && i == place) logits[i] = taken;
      }
    }
    const unsigned near = __ballot_sync(kAllLanes, sum > 0);
    if ((near & (near - 1)) != 0) {
      sum = warp_sum(sum);
    }
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
  float sum = 0;  // of all exponentials, where softmax is not renormalised
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = lane * kPerLane + i;
    logits[i] = expert < experts ? biased_logit(rule, logits[i], expert) : negative_infinity();
  }
  if (rule.scoring == Scoring::kSparseMixer) {
    mix_experts(rule, logits, lane, experts, top_k, sink);
    return;
  }
  float largest = 0;
  if (rule.scoring == Scoring::kSoftmax && !rule.renormalise) {
    float best = logits[0];
#pragma unroll
    for (int i = 1; i < kPerLane; ++i) best = fmaxf(best, logits[i]);
    largest = logit_of(__reduce_max_sync(kAllLanes, key_of(best)));
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) sum += __expf(logits[i] - largest);
    sum = warp_sum(sum);
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = lane * kPerLane + i;
    if (expert >= experts) continue;
    logits[i] = score_of(rule.scoring, logits[i]);
    if (rule.selection_bias != nullptr) logits[i] += __ldg(rule.selection_bias + expert);
  }
  const int size = experts / rule.groups;
  const int lanes = size / kPerLane;
  unsigned kept = ~0U;    // groups
  bool lane_kept = true;  // where groups are whole lanes
  if (rule.groups > 1) {
    if (size % kPerLane == 0 && (lanes & (lanes - 1)) == 0) {
      lane_kept = lane_is_kept(rule, size, lane, logits);
    } else {
      kept = keep_groups(rule, size, lane, logits);
    }
  }
  const auto open = [&](int i) {
    const int expert = lane * kPerLane + i;
    const int group = rule.groups == 1 ? 0 : min(expert / size, rule.groups - 1);
    return expert < experts && lane_kept && (kept >> group & 1U) != 0;
  };
  if (rule.groups > 1) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const bool out = kept == ~0U ? !lane_kept : !open(i);
      if (out) logits[i] = negative_infinity();
    }
  }
  Chosen chosen;
  float first = 0;
  if (!select_by_rank(logits, lane, top_k, candidates, chosen, first)) {
    unsigned keys[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) keys[i] = open(i) ? key_of(logits[i]) : 0;
    chosen = select_repeatedly(keys, lane, 0, top_k);
    first = __shfl_sync(kAllLanes, chosen.logit, 0);
  }
  float weight = 0;
  if (chosen.slot >= 0) {
    if (rule.scoring != Scoring::kSoftmax) {
      // The score without the selection bias, from the logit again: what was ranked has lost digits.
      weight = score_of(rule.scoring, biased_logit(rule, row[chosen.expert], chosen.expert));
    } else if (rule.renormalise) {
      weight = chosen.logit == first ? 1.0F : __expf(chosen.logit - first);
    } else {
      weight = __fdividef(__expf(chosen.logit - largest), sum);
    }
  }
  if (rule.renormalise) {
    const float all = warp_sum(weight);
    weight = all > 0 ? __fdividef(weight, all) : 0.0F;
  }
  if (chosen.slot >= 0) sink.choose(chosen.slot, chosen.expert, weight * rule.scale);
}

}  // namespace moe::cuda
