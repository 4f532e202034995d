// Router of the CUDA levels: logits -> K experts and K weights per token.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/device/router_rule.h"

namespace moe::cuda {

/// Most experts that the routing kernels hold in one warp's registers and one block's threads.
inline constexpr std::int64_t kMaxExperts = 1024;

/// body.operator()<kPerLane>() for the logits that a lane keeps when a warp holds a row of E.
template <class Body>
void with_registers_for(std::int64_t experts, Body&& body) {
  if (experts <= 32) {
    body.template operator()<1>();
  } else if (experts <= 64) {
    body.template operator()<2>();
  } else if (experts <= 128) {
    body.template operator()<4>();
  } else if (experts <= 256) {
    body.template operator()<8>();
  } else if (experts <= 512) {
    body.template operator()<16>();
  } else {
    body.template operator()<32>();
  }
}

/// Softmax over all E, top-k, renormalise, for `tokens` rows of fp32 logits[tokens,E], 16-byte
/// aligned. topk_idx[tokens,K] in descending order of weight, lowest index first among equals;
/// topk_weights[tokens,K] sums to 1 per token. NaN logits rank below every number. Needs E <=
/// kMaxExperts.
void softmax_top_k(const float* logits, std::int64_t tokens, std::int64_t experts,
                   std::int64_t top_k, std::int32_t* topk_idx, float* topk_weights,
                   cudaStream_t stream);

/// The same with any rule; K <= kMostRuleChoices unless it is that. With shared slots rows of the outputs
/// have K + P slots.
void choose_experts(const RouterRule& rule, const float* logits, std::int64_t tokens,
                    std::int64_t experts, std::int64_t top_k, std::int32_t* topk_idx,
                    float* topk_weights, cudaStream_t stream, const SharedSlots& shared_slots = {});

/// The same from the caller's routes, [tokens,K] in device memory: an index outside 0..E-1, -1 or any
/// other, is a slot that is not used; it becomes -1 with weight 0, and its given weight is not read.
void take_routes(const Routes& routes, std::int64_t tokens, std::int64_t experts,
                 std::int64_t top_k, std::int32_t* topk_idx, float* topk_weights,
                 cudaStream_t stream, const SharedSlots& shared_slots = {});

/// weights[t] = sigmoid(x[t,:] · shared_switch), fp32 sums; x[tokens,hidden] and shared_switch[hidden]
/// of `dtype`, at any address.
void shared_switch_weights(DType dtype, const void* x, const void* shared_switch,
                           std::int64_t tokens, std::int64_t hidden, float* weights,
                           cudaStream_t stream);

}  // namespace moe::cuda
