// From logits to everything the levels need to group rows by expert, in one kernel.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/backend.h"
#include "cuda/device/router_rule.h"
#include "cuda/ops/permute.h"

namespace moe::cuda {

/// What softmax_top_k() followed by build_permutation() leaves, bit for bit, for fp32
/// logits[tokens,E], 16-byte aligned: topk_idx[tokens,K], topk_weights[tokens,K] and `permutation`.
/// With another rule than the default its choices and weights; K <= kMostRuleChoices then. With shared
/// slots rows of the outputs have K + P slots, and `permutation` is of E + P experts.
/// No host synchronisation and no state between calls. Needs tokens >= 1 and E + P <= kMaxExperts.
void route_rows(const float* logits, std::int64_t tokens, std::int64_t experts, std::int64_t top_k,
                std::int32_t* topk_idx, float* topk_weights, const Permutation& permutation,
                const DeviceFacts& facts, cudaStream_t stream, const RouterRule& rule = {},
                const SharedSlots& shared_slots = {});

/// What the routing of one forward starts from, in device memory.
struct RoutingInputs {
  const float* logits = nullptr;          ///< [T,E]; not read with given routes
  const float* shared_weights = nullptr;  ///< [T] of Problem::shared_switch; null: 1
  Routes routes = {};                     ///< of Scoring::kGiven, from the first token on
};

/// The router of a layer, whatever it is: a token has K' = K + P slots, P those of the shared expert
/// (core/expert_set.h), and experts are numbered below E' = E + P.
class LayerRouter {
 public:
  LayerRouter(const Problem& problem, const Weights& weights, const DeviceFacts& facts);

  /// topk_idx[tokens,K'] (-1: the slot is not used) and topk_weights[tokens,K'].
  void choose(const RoutingInputs& in, std::int64_t tokens, std::int32_t* topk_idx,
              float* topk_weights, cudaStream_t stream) const;
  /// The same and the rows by expert; `permutation` is of tokens·K' rows and E' experts.
  void route(const RoutingInputs& in, std::int64_t tokens, std::int32_t* topk_idx,
             float* topk_weights, const Permutation& permutation, cudaStream_t stream) const;

 private:
  [[nodiscard]] SharedSlots shared_slots(const RoutingInputs& in) const;

  Problem problem_;
  Shape shape_;  // with_shared_slots()
  RouterRule rule_;
  DeviceFacts facts_;
};

}  // namespace moe::cuda
