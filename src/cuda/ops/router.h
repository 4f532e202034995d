// Router of the CUDA levels: logits -> K experts and K weights per token.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace moe::cuda {

/// Most experts that the routing kernels hold in one warp's registers and one block's threads.
inline constexpr std::int64_t kMaxExperts = 1024;

/// Softmax over all E, top-k, renormalise, for `tokens` rows of fp32 logits[tokens,E], 16-byte
/// aligned. topk_idx[tokens,K] in descending order of weight, lowest index first among equals;
/// topk_weights[tokens,K] sums to 1 per token. NaN logits rank below every number. Needs E <=
/// kMaxExperts.
void softmax_top_k(const float* logits, std::int64_t tokens, std::int64_t experts,
                   std::int64_t top_k, std::int32_t* topk_idx, float* topk_weights,
                   cudaStream_t stream);

}  // namespace moe::cuda
