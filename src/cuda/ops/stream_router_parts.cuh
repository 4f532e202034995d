// The router's kernel of level 09, and its launcher by kind of rule. The kinds are compiled apart:
// stream_router.cu has the plain one, stream_router_rule.cu the others.
#pragma once

#include <algorithm>

#include "cuda/check.h"
#include "cuda/device/overlap.cuh"
#include "cuda/device/stream_choose.cuh"
#include "cuda/device/weight_stream.cuh"
#include "cuda/launch.h"
#include "cuda/ops/stream_router.h"

namespace moe::cuda {

struct RouterSizes {
  int tokens, hidden, experts, top_k, token_tiles;
  int expert_tiles;  // of eight; the shared expert's switch is one more
};

/// What stream_router() was called with.
struct StreamRouterCall {
  const void* x;
  const void* router;
  RouterSizes sizes;
  StreamRouting out;
  StreamBlock block;
  bool aligned;  // rows and addresses are multiples of 16 bytes
  cudaStream_t stream;
};
void stream_router_by_rule(const StreamRouterCall& call);
void stream_router_of_given(const StreamRouterCall& call);

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

/// Whether this block is the last of `blocks` to come here; then everything that the others wrote before
/// is visible, and `counter` is 0 again. All threads of the block call it. One of them has the fences: the
/// barriers hand on what they order.
__device__ __forceinline__ bool is_last_of(unsigned* counter, unsigned blocks) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(counter, 1U) == blocks - 1;
    if (last) *counter = 0;
    __threadfence();
  }
  __syncthreads();
  return last;
}

/// Writes a slot down, and marks it where the block that chooses is the one that lists.
struct MarkedChoice {
  PlainChoice plain;
  ExpertMarks marks;
  bool marked;
  int token;
  int first_slot;  // of the token
  __device__ void choose(int slot, int expert, float weight) const {
    plain.choose(slot, expert, weight);
    if (marked) marks.mark(first_slot + slot, token, expert);
  }
  __device__ void divide(int slot, float sum) const { plain.divide(slot, sum); }
};

/// Experts and weights of the tokens [first, end), shared experts included, by all warps of a block, a
/// token a warp in turn.
template <StreamRule kRule, int kPerLane>
__device__ __forceinline__ void choose_for_tokens(const RouterSizes& sizes,
                                                  const StreamRouting& out,
                                                  const StreamBlock& block, int first, int end,
                                                  const ExpertMarks& marks, bool marked) {
  constexpr int kBlockWarps = kWarps<kPerLane>;
  __shared__ Candidates candidates[kBlockWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int slots = sizes.top_k + block.parts;  // of a token
  for (int token = first + warp; token < end; token += kBlockWarps) {
    const int first_slot = token * slots;
    const MarkedChoice sink{{out.topk_idx + first_slot, out.topk_weights + first_slot},
                            marks,
                            marked,
                            token,
                            first_slot};
    choose_of_token<kRule, kPerLane>(block, out.logits + token * sizes.experts, token,
                                     sizes.experts, sizes.top_k, candidates[warp], sink);
    for (int part = lane; part < block.parts; part += kWarpSize) {
      sink.choose(sizes.top_k + part, sizes.experts + part,
                  shared_weight(block, out.switch_logits + token));
    }
    __syncwarp();
  }
}

/// A block has eight experts and kTiles tiles of tokens; its warps divide the reduction. The last block
/// of the same tokens chooses for them; the last of these makes the lists.
template <StreamRule kRule, int kPerLane, int kTiles, bool kAligned>
__global__ void __launch_bounds__(kWarps<kPerLane>* kWarpSize)
    stream_router_kernel(const Bf16* __restrict__ x, const Bf16* __restrict__ router,
                         const RouterSizes sizes, const __grid_constant__ StreamRouting out,
                         const __grid_constant__ StreamBlock block) {
  extern __shared__ __align__(128) std::byte shared[];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  const int first_expert = static_cast<int>(blockIdx.x) / sizes.token_tiles * kExpertsPerBlock;
  const int token_tile = static_cast<int>(blockIdx.x) % sizes.token_tiles;
  const int first_token = token_tile * kTiles * kStreamTokens;

  using Stream = RouterStream<kAligned>;
  Stream stream(shared + warp * Stream::kRingBytes);
  const bool is_switch = first_expert >= sizes.expert_tiles * kExpertsPerBlock;
  WeightRows weights;
  weights.depth = weights.stride = sizes.hidden;
  if (is_switch) {
    weights.low = static_cast<const Bf16*>(block.shared_switch);
    weights.low_rows = weights.low == nullptr ? 0 : 1;
  } else {
    weights.low = router + static_cast<std::int64_t>(first_expert) * sizes.hidden;
    weights.low_rows = min(sizes.experts - first_expert, kExpertsPerBlock);
  }
  ChunkRange range = ChunkRange::of_part(sizes.hidden, Stream::kChunk, warp, kWarps<kPerLane>);
  if (weights.low_rows == 0)
    range.count = 0;  // given routes, no switch: there is nothing to multiply
  stream.start(weights, range);
  // Of the logits that a thread adds up below: of_lane is the lane that has their sums.
  const int of_lane = thread / 2 % kWarpSize;
  const int of_block = of_lane / 4;  // expert
  const float bias = block.router_bias != nullptr && of_block < weights.low_rows && !is_switch
                         ? __ldg(block.router_bias + first_expert + of_block)
                         : 0.0F;
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
    float logit = bias;
#pragma unroll 8
    for (int w = 0; w < kWarps<kPerLane>; ++w) logit += partial[w * kPlane + thread];
    const int token =
        first_token + thread / (2 * kWarpSize) * kStreamTokens + of_lane % 4 * 2 + thread % 2;
    if (of_block < weights.low_rows && token < sizes.tokens) {
      float* const to =
          is_switch ? out.switch_logits + token : out.logits + token * sizes.experts + first_expert;
      to[of_block] = logit;
    }
  }
  const auto token_tiles = static_cast<unsigned>(sizes.token_tiles);
  if (!is_last_of(out.arrivals + 1 + token_tile, gridDim.x / token_tiles)) return;
  constexpr int kThreads = kWarps<kPerLane> * kWarpSize;
  const int experts = sizes.experts + block.parts;
  const int slots = sizes.top_k + block.parts;
  const bool one_tile = sizes.token_tiles == 1;  // this block lists
  const ExpertMarks marks(shared, experts, sizes.tokens, one_tile);
  if (one_tile) {
    marks.clear(experts, kThreads);
    __syncthreads();
  }
  choose_for_tokens<kRule, kPerLane>(sizes, out, block, first_token,
                                     min(first_token + kTiles * kStreamTokens, sizes.tokens), marks,
                                     one_tile);
  if (!one_tile) {
    if (!is_last_of(out.arrivals, token_tiles)) return;
    marks.clear(experts, kThreads);
    __syncthreads();
    for (int slot = thread; slot < sizes.tokens * slots; slot += kThreads) {
      marks.mark(slot, slot / slots, __ldcg(out.topk_idx + slot));
    }
  }
  __syncthreads();
  list_experts<kWarps<kPerLane>, kStreamTokens>(
      sizes.tokens, experts, slots,
      most_active(sizes.tokens, sizes.experts, sizes.top_k, block.parts), marks,
      {out.topk_idx, out.slots, out.active});
}

template <StreamRule kRule, int kPerLane, int kTiles, bool kAligned>
void launch_router(const StreamRouterCall& call) {
  RouterSizes sizes = call.sizes;
  constexpr int kTokens = kTiles * kStreamTokens;
  sizes.token_tiles = (sizes.tokens + kTokens - 1) / kTokens;
  sizes.expert_tiles =
      kRule == StreamRule::kGiven ? 0 : (sizes.experts + kExpertsPerBlock - 1) / kExpertsPerBlock;
  // Given routes have a block a tile of tokens even where there is no switch.
  const bool one_more = kRule == StreamRule::kGiven || call.block.shared_switch != nullptr;
  const int row_tiles = sizes.expert_tiles + (one_more ? 1 : 0);
  const std::size_t partial_bytes =
      std::size_t{kWarps<kPerLane>} * kTiles * kWarpSize * 2 * sizeof(float);
  const std::size_t ring_bytes = std::size_t{kWarps<kPerLane>} * RouterStream<kAligned>::kRingBytes;
  const int slots_kept =
      sizes.token_tiles == 1 ? sizes.tokens * (sizes.top_k + call.block.parts) : 0;
  const std::size_t shared =
      std::max({ring_bytes, partial_bytes,
                ExpertMarks::bytes(sizes.experts + call.block.parts, sizes.tokens, slots_kept)});
  const auto kernel = stream_router_kernel<kRule, kPerLane, kTiles, kAligned>;
  MOE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared)));
  launch_overlapping(
      "stream_router_kernel", kernel, dim3(static_cast<unsigned>(row_tiles * sizes.token_tiles)),
      dim3(kWarps<kPerLane> * kWarpSize), shared, call.stream, static_cast<const Bf16*>(call.x),
      static_cast<const Bf16*>(call.router), sizes, call.out, call.block);
}

/// Tiles and alignment at run time.
template <StreamRule kRule, int kPerLane>
void launch_router(const StreamRouterCall& call) {
  if (!call.aligned) {
    launch_router<kRule, kPerLane, 1, false>(call);
  } else if (call.sizes.tokens <= kStreamTokens) {
    launch_router<kRule, kPerLane, 1, true>(call);
  } else {
    launch_router<kRule, kPerLane, 2, true>(call);
  }
}

}  // namespace

}  // namespace moe::cuda
