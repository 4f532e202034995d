// Router of the CPU levels: logits -> K experts and K weights per token.
#pragma once

#include <cstdint>

#include "cpu/isa/kernels.h"
#include "moe/layer.h"

namespace moe::cpu {

/// Softmax over all E, top-k, renormalise, for `tokens` rows of fp32 logits[tokens,E].
/// topk_idx[tokens,K] in descending order of weight, lowest index first among equals;
/// topk_weights[tokens,K] sums to 1 per token. NaN logits rank below every number. Serial; callers
/// split rows over threads.
void softmax_top_k(const float* logits, std::int64_t tokens, std::int64_t experts,
                   std::int64_t top_k, std::int32_t* topk_idx, float* topk_weights);

/// router_logits and softmax_top_k for `tokens` rows from `first_token` on, rows split over
/// `threads`. logits[tokens,E], topk_idx[tokens,K] and topk_weights[tokens,K] start at first_token.
void route(const Kernels& kernels, const TensorView& x, const TensorView& router,
           std::int64_t top_k, std::int64_t first_token, std::int64_t tokens, int threads,
           float* logits, std::int32_t* topk_idx, float* topk_weights);

/// logits[tokens,E] = x[tokens,H] · router[E,H]^T, one dot product per element. Serial.
void router_logits(const Kernels& kernels, const TensorView& x, const TensorView& router,
                   std::int64_t first_token, std::int64_t tokens, float* logits);

}  // namespace moe::cpu
