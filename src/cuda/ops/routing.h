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
/// With another rule than the default its choices and weights; K <= kMostRuleChoices then.
/// No host synchronisation and no state between calls. Needs tokens >= 1 and E <= kMaxExperts.
void route_rows(const float* logits, std::int64_t tokens, std::int64_t experts, std::int64_t top_k,
                std::int32_t* topk_idx, float* topk_weights, const Permutation& permutation,
                const DeviceFacts& facts, cudaStream_t stream, const RouterRule& rule = {});

}  // namespace moe::cuda
