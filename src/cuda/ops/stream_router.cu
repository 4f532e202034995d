#include "cuda/ops/stream_router.h"

#include <algorithm>

#include "core/check.h"
#include "cuda/check.h"
#include "cuda/device/overlap.cuh"
#include "cuda/device/stream_choose.cuh"
#include "cuda/device/weight_stream.cuh"
#include "cuda/launch.h"
#include "cuda/ops/router.h"

namespace moe::cuda {
namespace {

/// Experts of a block. Eight rather than the sixteen of a whole fragment: twice as many blocks read
/// the router's weights, of which there are few.
constexpr int kExpertsPerBlock = 8;
/// Warps of a block, which divide the reduction. The last block of a tile of tokens has a token a warp: a
/// row of logits takes kPerLane registers of a lane.
template <int kPerLane>
constexpr int kWarps = kPerLane <= 8 ? 32 : 16;

template <bool kAligned>
using RouterStream = WeightStream<64, 4, kAligned, true>;

struct Sizes {
  int tokens, hidden, experts, top_k, token_tiles;
};

/// Whether this block is the last of `blocks` to come here; then everything that the others wrote before
/// is visible, and `counter` is 0 again. All threads of the block call it.
__device__ __forceinline__ bool is_last_of(unsigned* counter, unsigned blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1U) == blocks - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

/// A block has eight experts and kTiles tiles of tokens; its warps divide the reduction. The last block
/// of the same tokens chooses for them; the last of these makes the lists.
template <int kPerLane, int kTiles, bool kAligned>
__global__ void __launch_bounds__(kWarps<kPerLane>* kWarpSize)
    stream_router_kernel(const Bf16* __restrict__ x, const Bf16* __restrict__ router,
                         const Sizes sizes, const __grid_constant__ StreamRouting out) {
  extern __shared__ __align__(128) std::byte shared[];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  const int first_expert = static_cast<int>(blockIdx.x) / sizes.token_tiles * kExpertsPerBlock;
  const int token_tile = static_cast<int>(blockIdx.x) % sizes.token_tiles;
  const int first_token = token_tile * kTiles * kStreamTokens;

  using Stream = RouterStream<kAligned>;
  Stream stream(shared + warp * Stream::kRingBytes);
  WeightRows weights;
  weights.low = router + static_cast<std::int64_t>(first_expert) * sizes.hidden;
  weights.low_rows = min(sizes.experts - first_expert, kExpertsPerBlock);
  weights.depth = sizes.hidden;
  stream.start(weights, ChunkRange::of_part(sizes.hidden, Stream::kChunk, warp, kWarps<kPerLane>));
  wait_for_previous_kernel();
  allow_next_kernel();

  unsigned rows[kTiles];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const int token = min(first_token + tile * kStreamTokens + lane / 4, sizes.tokens - 1);
    rows[tile] = static_cast<unsigned>(token) * static_cast<unsigned>(sizes.hidden);
  }
  float sums[kTiles][4] = {};
  stream.multiply(x, rows, sums);
  __syncthreads();  // the sums go where weights were

  auto* const partial = reinterpret_cast<float*>(shared);  // [warps][kTiles][lanes][2]
  constexpr int kPlane = kTiles * kWarpSize * 2;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    reinterpret_cast<float2*>(partial + warp * kPlane + tile * kWarpSize * 2)[lane] =
        make_float2(sums[tile][0], sums[tile][1]);
  }
  __syncthreads();
  if (thread < kPlane) {
    float logit = 0;
#pragma unroll 8
    for (int w = 0; w < kWarps<kPerLane>; ++w) logit += partial[w * kPlane + thread];
    const int of_lane = thread / 2 % kWarpSize;
    const int expert = first_expert + of_lane / 4;
    const int token =
        first_token + thread / (2 * kWarpSize) * kStreamTokens + of_lane % 4 * 2 + thread % 2;
    if (expert < sizes.experts && token < sizes.tokens) {
      out.logits[token * sizes.experts + expert] = logit;
    }
  }
  const auto token_tiles = static_cast<unsigned>(sizes.token_tiles);
  if (!is_last_of(out.arrivals + 1 + token_tile, gridDim.x / token_tiles)) return;
  choose_for_tokens<kPerLane, kWarps<kPerLane>>(
      out.logits, first_token, min(first_token + kTiles * kStreamTokens, sizes.tokens),
      sizes.experts, sizes.top_k, out.topk_idx, out.topk_weights);
  if (sizes.token_tiles == 1) {
    __syncthreads();
  } else if (!is_last_of(out.arrivals, token_tiles)) {
    return;
  }
  list_experts<kWarps<kPerLane>, kStreamTokens>(
      sizes.tokens, sizes.experts, sizes.top_k,
      {out.topk_idx, out.topk_weights, out.slots, out.active}, shared);
}

template <int kPerLane, int kTiles, bool kAligned>
void launch(const void* x, const void* router, Sizes sizes, const StreamRouting& out,
            cudaStream_t stream) {
  constexpr int kTokens = kTiles * kStreamTokens;
  sizes.token_tiles = (sizes.tokens + kTokens - 1) / kTokens;
  const int expert_tiles = (sizes.experts + kExpertsPerBlock - 1) / kExpertsPerBlock;
  const std::size_t partial_bytes =
      std::size_t{kWarps<kPerLane>} * kTiles * kWarpSize * 2 * sizeof(float);
  const std::size_t ring_bytes = std::size_t{kWarps<kPerLane>} * RouterStream<kAligned>::kRingBytes;
  const std::size_t shared =
      std::max({ring_bytes, partial_bytes, choose_bytes(sizes.tokens, sizes.experts)});
  const auto kernel = stream_router_kernel<kPerLane, kTiles, kAligned>;
  MOE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared)));
  launch_overlapping("stream_router_kernel", kernel,
                     dim3(static_cast<unsigned>(expert_tiles * sizes.token_tiles)),
                     dim3(kWarps<kPerLane> * kWarpSize), shared, stream,
                     static_cast<const Bf16*>(x), static_cast<const Bf16*>(router), sizes, out);
}

}  // namespace

void stream_router(const void* x, const void* router, std::int64_t tokens, std::int64_t hidden,
                   std::int64_t experts, std::int64_t top_k, const StreamRouting& out,
                   cudaStream_t stream) {
  static_assert(kMostStreamTokens * kMaxExperts < 1 << 20, "rows in list_experts()'s scan");
  static_assert(kStreamArrivals > kMostStreamTokens / kStreamTokens, "a counter a tile of tokens");
  MOE_INTERNAL_CHECK(tokens >= 1 && tokens <= kMostStreamTokens && experts <= kMaxExperts,
                     "tokens={} (1 to {}), experts={} (at most {})", tokens, kMostStreamTokens,
                     experts, kMaxExperts);
  const Sizes sizes{.tokens = static_cast<int>(tokens),
                    .hidden = static_cast<int>(hidden),
                    .experts = static_cast<int>(experts),
                    .top_k = static_cast<int>(top_k),
                    .token_tiles = 0};
  const bool aligned = in_widest_vectors(hidden * 2, {x, router});
  with_stream_registers_for(experts, [&]<int kPerLane>() {
    if (!aligned) {
      launch<kPerLane, 1, false>(x, router, sizes, out, stream);
    } else if (tokens <= kStreamTokens) {
      launch<kPerLane, 1, true>(x, router, sizes, out, stream);
    } else {
      launch<kPerLane, 2, true>(x, router, sizes, out, stream);
    }
  });
}

}  // namespace moe::cuda
