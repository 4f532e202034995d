// From x to the list of experts that have work, for a few tokens, in one kernel.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/device/active_expert.h"
#include "cuda/device/stream_block.h"

namespace moe::cuda {

/// Most tokens of one call: a token is a bit of an expert's mask in shared memory.
inline constexpr std::int64_t kMostStreamTokens = 256;

/// Counters that stream_router() needs: blocks that are done, by tile of eight tokens, and tiles.
inline constexpr std::int64_t kStreamArrivals = 1 + kMostStreamTokens / 8;

/// Most experts that can have work: those of T·K slots, and the parts of the shared one.
[[nodiscard]] constexpr int most_active(int tokens, int experts, int top_k, int parts) {
  return (tokens * top_k < experts ? tokens * top_k : experts) + parts;
}

/// Where the router writes. Views: the memory is the caller's. P parts of a shared expert stand behind
/// the K chosen experts of each token: S = K + P slots.
struct StreamRouting {
  float* logits = nullptr;           ///< [T,E], 16-byte aligned; biased; not of given routes
  float* switch_logits = nullptr;    ///< [T], of StreamBlock::shared_switch
  std::int32_t* topk_idx = nullptr;  ///< [T,S] descending weight, lowest index first among equals;
                                     ///< of given routes also -1: the slot is not used
  float* topk_weights = nullptr;     ///< [T,S]
  std::int32_t* slots = nullptr;     ///< [T·S] t·S + s by expert, in order of t
  ActiveExpert* active = nullptr;    ///< [most_active()]: those with more than 8 tokens, then the
                                     ///< others, ascending
  unsigned* arrivals =
      nullptr;  ///< [kStreamArrivals], 0 before the first call and after every call
};

/// bf16 x[tokens,hidden] and router[experts,hidden], 1 <= tokens <= kMostStreamTokens. Logits are fp32
/// sums in an order that depends on `tokens` and the sizes alone. No host synchronisation; calls that
/// overlap need an `arrivals` each. Any sizes and addresses; 16-byte multiples are read as such. Given
/// routes have no router (null). experts + P <= kMaxExperts.
void stream_router(const void* x, const void* router, std::int64_t tokens, std::int64_t hidden,
                   std::int64_t experts, std::int64_t top_k, const StreamRouting& out,
                   cudaStream_t stream, const StreamBlock& block = {});

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
