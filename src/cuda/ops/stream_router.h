// From x to the list of experts that have work, for a few tokens, in one kernel.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/device/active_expert.h"

namespace moe::cuda {

/// Most tokens of one call: a token is a bit of an expert's mask in shared memory.
inline constexpr std::int64_t kMostStreamTokens = 256;

/// Counters that stream_router() needs: blocks that are done, by tile of eight tokens, and tiles.
inline constexpr std::int64_t kStreamArrivals = 1 + kMostStreamTokens / 8;

/// Where the router writes. Views: the memory is the caller's.
struct StreamRouting {
  float* logits = nullptr;           ///< [T,E], 16-byte aligned
  std::int32_t* topk_idx = nullptr;  ///< [T,K] descending weight, lowest index first among equals
  float* topk_weights = nullptr;     ///< [T,K] sums to 1 per token
  std::int32_t* slots = nullptr;     ///< [T·K] t·K + k by expert, in order of t
  ActiveExpert* active =
      nullptr;  ///< [min(T·K,E)]: those with more than 8 tokens, then the others, ascending
  unsigned* arrivals =
      nullptr;  ///< [kStreamArrivals], 0 before the first call and after every call
};

/// bf16 x[tokens,hidden] and router[experts,hidden], 1 <= tokens <= kMostStreamTokens. Logits are fp32
/// sums in an order that depends on `tokens` and the sizes alone. No host synchronisation; calls that
/// overlap need an `arrivals` each. Any sizes and addresses; 16-byte multiples are read as such.
void stream_router(const void* x, const void* router, std::int64_t tokens, std::int64_t hidden,
                   std::int64_t experts, std::int64_t top_k, const StreamRouting& out,
                   cudaStream_t stream);

/// body.operator()<kPerLane>() for the logits that a lane holds of a row of E, in fewer steps than
/// with_registers_for().
template <class Body>
void with_stream_registers_for(std::int64_t experts, Body&& body) {
  if (experts <= 32) {
    body.template operator()<1>();
  } else if (experts <= 128) {
    body.template operator()<4>();
  } else if (experts <= 256) {
    body.template operator()<8>();
  } else {
    body.template operator()<32>();
  }
}

}  // namespace moe::cuda
