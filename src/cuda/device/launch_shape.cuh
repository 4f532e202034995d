// How the kernels that NVRTC compiles are launched: what launcher and kernel must agree on.
#pragma once

namespace moe::cuda {

/// Warps of a block that routes: as many as the counts per warp leave shared memory for.
__host__ __device__ constexpr int route_warps(int experts) {
  return experts <= 512 ? 32 : 16;
}
/// Tokens that one warp routes one after the other. One block a multiprocessor is what the scan over
/// blocks wants; `blocks` is about that.
__host__ __device__ constexpr int route_tokens_per_warp(long long tokens, int experts, int blocks) {
  int per_warp = 1;
  while (per_warp < 16 &&
         tokens > static_cast<long long>(per_warp) * route_warps(experts) * blocks) {
    per_warp *= 2;
  }
  return per_warp;
}

/// Warps of a block that moves rows.
inline constexpr int kRowWarps = 8;
/// 16-byte units of a row that one lane keeps in flight when it scatters it.
inline constexpr int kScatterUnits = 4;

inline constexpr int kSwiGluThreads = 256;
inline constexpr int kSwiGluUnroll = 2;  // vectors of gate and of up a thread

}  // namespace moe::cuda
