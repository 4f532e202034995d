// What NVRTC compiles for one layer: the steps around the library's GEMMs, with every size of the
// layer a constant. Macros come from the command line of the compiler (ops/layer_kernels.cu):
//   MOE_HIDDEN MOE_INTERMEDIATE MOE_EXPERTS MOE_TOP_K MOE_TOKENS_PER_WARP   sizes
//   MOE_BF16                                                                1, or 0 for fp32
// The bodies are those of the precompiled kernels; here their bounds, strides and divisors fold.
#include "cuda/device/element.cuh"
#include "cuda/device/launch_shape.cuh"
#include "cuda/device/overlap.cuh"
#include "cuda/device/permute.cuh"
#include "cuda/device/route.cuh"
#include "cuda/device/swiglu.cuh"

namespace moe::cuda {

#if MOE_BF16
using Stored = Bf16;
#else
using Stored = float;
#endif
constexpr int kHidden = MOE_HIDDEN;
constexpr int kIntermediate = MOE_INTERMEDIATE;
constexpr int kExperts = MOE_EXPERTS;
constexpr int kTopK = MOE_TOP_K;
constexpr int kTokensPerBlock = MOE_TOKENS_PER_WARP * route_warps(kExperts);
constexpr int kRowBytes = kHidden * static_cast<int>(sizeof(Stored));
constexpr bool kWideIntermediate = kIntermediate * sizeof(Stored) % 16 == 0;

struct TokenOfWarp {
  std::int64_t token;
  int segment;
};
__device__ __forceinline__ TokenOfWarp token_of_warp(int segments) {
  const std::int64_t work =
      static_cast<std::int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarpSize;
  return {work / segments, static_cast<int>(work % segments)};
}

template <class Unit>
__device__ __forceinline__ void permute(const Unit* __restrict__ x, std::int64_t tokens,
                                        int segments, const std::int32_t* __restrict__ placed,
                                        const std::int32_t* __restrict__ block_rows,
                                        std::int32_t* __restrict__ dst_row,
                                        Unit* __restrict__ x_perm) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const auto [token, segment] = token_of_warp(segments);
  if (token >= tokens) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const std::int32_t* const rows_of_block = block_rows + token / kTokensPerBlock * kExperts;
  const auto row_of = [&](int slot) {
    const std::int32_t at = placed[token * kTopK + slot];
    return rows_of_block[expert_of(at)] + rank_of(at);
  };
  constexpr std::int64_t kUnits = kRowBytes / sizeof(Unit);
  const Unit* const row = x + token * kUnits;
  if constexpr (kTopK <= kWarpSize) {
    const std::int32_t mine = lane < kTopK ? row_of(lane) : 0;
    if (segment == 0 && lane < kTopK) dst_row[token * kTopK + lane] = mine;
    scatter_row<kScatterUnits>(
        row, kUnits, segment, segments, kTopK,
        [&](int slot) { return __shfl_sync(kAllLanes, mine, slot); }, x_perm);
  } else {
    if (segment == 0) {
      for (int slot = lane; slot < kTopK; slot += kWarpSize) {
        dst_row[token * kTopK + slot] = row_of(slot);
      }
    }
    scatter_row<kScatterUnits>(row, kUnits, segment, segments, kTopK, row_of, x_perm);
  }
}

template <int kWidth>
__device__ __forceinline__ void combine(const Stored* __restrict__ y_perm,
                                        const std::int32_t* __restrict__ dst_row,
                                        const float* __restrict__ topk_weights, std::int64_t tokens,
                                        int segments, Stored* __restrict__ y) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const auto [token, segment] = token_of_warp(segments);
  if (token >= tokens) return;
  combine_row<Stored, kWidth, combine_slots(kTopK, kWidth > 1)>(
      y_perm, dst_row + token * kTopK, 0, topk_weights + token * kTopK, kTopK, kHidden, segment,
      segments, y + token * kHidden);
}

extern "C" {

__global__ void __launch_bounds__(route_warps(kExperts) * kWarpSize, 1)
    moe_route(const float* __restrict__ logits, std::int64_t tokens, Placement out) {
  wait_for_previous_kernel();
  allow_next_kernel();
  route_tokens<kExperts, kTopK, MOE_TOKENS_PER_WARP>(logits, tokens, out);
}

#if MOE_HIDDEN * (4 - 2 * MOE_BF16) % 16 == 0
__global__ void __launch_bounds__(kRowWarps* kWarpSize)
    moe_permute_wide(const uint4* __restrict__ x, std::int64_t tokens, int segments,
                     const std::int32_t* __restrict__ placed,
                     const std::int32_t* __restrict__ block_rows,
                     std::int32_t* __restrict__ dst_row, uint4* __restrict__ x_perm) {
  permute(x, tokens, segments, placed, block_rows, dst_row, x_perm);
}
__global__ void __launch_bounds__(kRowWarps* kWarpSize, 2)
    moe_combine_wide(const Stored* __restrict__ y_perm, const std::int32_t* __restrict__ dst_row,
                     const float* __restrict__ topk_weights, std::int64_t tokens, int segments,
                     Stored* __restrict__ y) {
  combine<kWidest<Stored>>(y_perm, dst_row, topk_weights, tokens, segments, y);
}
#endif
/// For x and y at any address of their element.
__global__ void __launch_bounds__(kRowWarps* kWarpSize)
    moe_permute_narrow(const Stored* __restrict__ x, std::int64_t tokens, int segments,
                       const std::int32_t* __restrict__ placed,
                       const std::int32_t* __restrict__ block_rows,
                       std::int32_t* __restrict__ dst_row, Stored* __restrict__ x_perm) {
  permute(x, tokens, segments, placed, block_rows, dst_row, x_perm);
}
__global__ void __launch_bounds__(kRowWarps* kWarpSize, 2)
    moe_combine_narrow(const Stored* __restrict__ y_perm, const std::int32_t* __restrict__ dst_row,
                       const float* __restrict__ topk_weights, std::int64_t tokens, int segments,
                       Stored* __restrict__ y) {
  combine<1>(y_perm, dst_row, topk_weights, tokens, segments, y);
}

/// In place: act over the gate half.
__global__ void __launch_bounds__(kSwiGluThreads) moe_swiglu(Stored* gate_up, std::int64_t rows) {
  wait_for_previous_kernel();
  allow_next_kernel();
  constexpr int kWidth = kWideIntermediate ? kWidest<Stored> : 1;
  swiglu_of_rows<Stored, kWidth, kSwiGluUnroll, kSwiGluThreads>(gate_up, rows, kIntermediate,
                                                                gate_up, 2 * kIntermediate);
}

}  // extern "C"
}  // namespace moe::cuda
