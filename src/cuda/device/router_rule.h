// What a router does beside softmax, top-k and renormalising, as the routing kernels take it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "moe/layer.h"

namespace moe::cuda {

/// Most groups, of which a lane of a warp holds one each; most experts of a token likewise.
inline constexpr int kMostRuleGroups = 32;
inline constexpr int kMostRuleChoices = 32;

/// moe::Router with its biases on the device. Scoring::kGiven is none.
struct RouterRule {
  Scoring scoring = Scoring::kSoftmax;
  bool renormalise = true;
  float scale = 1;
  int groups = 1;
  int top_groups = 1;
  const float* bias = nullptr;            // [E] or null
  const float* selection_bias = nullptr;  // [E] or null

  /// Whether that is softmax_top_k_of_row().
  [[nodiscard]] bool plain() const {
    return scoring == Scoring::kSoftmax && renormalise && scale == 1 && groups == 1 &&
           bias == nullptr;
  }
  static RouterRule of(const Router& router, const Weights& weights) {
    RouterRule rule;
    rule.scoring = router.scoring;
    rule.renormalise = router.renormalise;
    rule.scale = router.scale;
    rule.groups = static_cast<int>(router.groups);
    rule.top_groups = static_cast<int>(router.top_groups);
    if (router.bias) rule.bias = weights.router_bias.as<const float>();
    if (router.selection_bias) rule.selection_bias = weights.selection_bias.as<const float>();
    return rule;
  }
};

/// The parts of a shared expert, which every token takes after its K experts: slots K.. hold experts
/// E.. (core/expert_set.h).
struct SharedSlots {
  int count = 0;                   // P
  const float* weights = nullptr;  // [T] weight of all parts; null: 1
  [[nodiscard]] __device__ float weight_of(std::int64_t token) const {
    return weights == nullptr ? 1.0F : weights[token];
  }
};

}  // namespace moe::cuda
