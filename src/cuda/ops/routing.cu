#include "cuda/ops/routing.h"

#include <cooperative_groups.h>

#include <algorithm>

#include "core/check.h"
#include "core/expert_set.h"
#include "cuda/check.h"
#include "cuda/device/choose_row.cuh"
#include "cuda/device/overlap.cuh"
#include "cuda/device/route_counts.cuh"
#include "cuda/device/top_k.cuh"
#include "cuda/device/warp.cuh"
#include "cuda/launch.h"
#include "cuda/ops/router.h"

namespace moe::cuda {
namespace {

/// Of a block, at most: a row of logits takes kPerLane registers of a lane, and while one is worked
/// on the next one is on its way.
template <int kPerLane>
inline constexpr int kMostWarps = kPerLane <= 8 ? 32 : 16;
/// Fewer tokens than multiprocessors hold warps go to smaller blocks on more of them.
constexpr int kLeastWarps = 8;

/// Top-k and a stable counting sort. Warps own contiguous ranges of tokens and count for themselves,
/// so that no rank depends on which warp came first.
///   1 each warp: choices of its tokens, ranks among its own rows of an expert  -> dst_row
///   2 each block: warps before mine, and the block's count per expert          -> block_counts
///   3 (grid barrier) blocks before mine, experts before mine                   -> base
///   4 each warp: dst_row = base + warps before mine + rank
template <int kPerLane, class Count, bool kPlain>
__global__ void __launch_bounds__(kMostWarps<kPerLane>* kWarpSize, 1)
    route_rows_kernel(const RouterRule rule, const SharedSlots shared_slots,
                      const float* __restrict__ logits, std::int64_t tokens, int tokens_per_warp,
                      int experts, int top_k, std::int32_t* __restrict__ topk_idx,
                      float* __restrict__ topk_weights, Count* block_counts,
                      std::int32_t* __restrict__ expert_offsets, std::int32_t* dst_row) {
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ Candidates candidates[kMostWarps<kPerLane>];
  const int threads = static_cast<int>(blockDim.x);
  const int warps = threads / kWarpSize;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  const int all_experts = experts + shared_slots.count;
  const int all_slots = top_k + shared_slots.count;
  const int pitch = (all_experts + 7) / 8 * 8;
  const RouteCounts<Count> counts(shared, warps, pitch);
  Count* const mine = counts.of_warp + warp * counts.warp_pitch(pitch);
  for (int expert = lane; expert < pitch; expert += kWarpSize) mine[expert] = 0;
  for (int i = thread; i < pitch * static_cast<int>(sizeof(Count)) / 2; i += threads) {
    counts.words[i] = 0;
  }
  __syncwarp();
  wait_for_previous_kernel();
  allow_next_kernel();

  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * warps + warp) * tokens_per_warp;
  const std::int64_t end = min(first + tokens_per_warp, tokens);
  float next[kPerLane];
  if (first < end) load_logits(logits + first * experts, lane, experts, next);
  for (std::int64_t token = first; token < end; ++token) {
    float row[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) row[i] = next[i];
    if (token + 1 < end) load_logits(logits + (token + 1) * experts, lane, experts, next);
    const std::int64_t slot = token * all_slots;
    const CountChoice<Count> sink{topk_idx + slot, topk_weights + slot, dst_row + slot, mine};
    if constexpr (kPlain) {
      softmax_top_k_of_row(row, lane, experts, top_k, candidates[warp], sink);
    } else {
      choose_of_row(rule, logits + token * experts, row, lane, experts, top_k, candidates[warp],
                    sink);
    }
    for (int part = lane; part < shared_slots.count; part += kWarpSize) {
      sink.choose(top_k + part, experts + part, shared_slots.weight_of(token));
    }
    __syncwarp();
  }
  const std::int64_t slots = end * all_slots;
  const std::int64_t my_slot = first * all_slots + lane;
  int placed = my_slot < slots ? dst_row[my_slot] : 0;  // on its way during the barrier
  __syncthreads();

  add_up_warps(counts, pitch,
               gridDim.x > 1 ? block_counts + static_cast<std::int64_t>(blockIdx.x) * pitch
                             : const_cast<Count*>(counts.in_total));
  if (gridDim.x > 1) {
    cooperative_groups::this_grid().sync();
    add_up_blocks(block_counts, pitch, counts);
  }
  __syncthreads();
  add_up_experts(all_experts, counts, expert_offsets);
  __syncthreads();

  for (std::int64_t slot = my_slot; slot < slots; slot += kWarpSize) {
    if (slot != my_slot) placed = dst_row[slot];
    const int expert = placed & ((1 << kPlacedExpertBits) - 1);
    dst_row[slot] = counts.base[expert] + mine[expert] + (placed >> kPlacedExpertBits);
  }
}

template <int kPerLane, class Count>
void launch(const RouterRule& rule, const SharedSlots& shared_slots, const float* logits,
            std::int64_t tokens, std::int64_t experts, std::int64_t top_k, std::int32_t* topk_idx,
            float* topk_weights, const Permutation& permutation, const DeviceFacts& facts,
            cudaStream_t stream) {
  const auto divide_up = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  const std::int64_t per_block = divide_up(tokens, facts.multiprocessors);
  const std::int64_t warps =
      std::clamp<std::int64_t>((per_block + 3) / 4 * 4, kLeastWarps, kMostWarps<kPerLane>);
  const std::int64_t per_warp = divide_up(tokens, warps * facts.multiprocessors);
  MOE_INTERNAL_CHECK(per_warp < std::int64_t{1} << (31 - kPlacedExpertBits), "{} tokens a warp",
                     per_warp);
  const auto blocks = static_cast<unsigned>(divide_up(tokens, per_warp * warps));
  const std::size_t shared = RouteCounts<Count>::bytes(
      static_cast<int>(warps), (static_cast<int>(experts) + shared_slots.count + 7) / 8 * 8);
  const auto kernel = rule.plain() ? route_rows_kernel<kPerLane, Count, true>
                                   : route_rows_kernel<kPerLane, Count, false>;
  MOE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared)));
  launch_overlapping("route_rows_kernel", blocks > 1 ? GridBarrier::kYes : GridBarrier::kNo, kernel,
                     dim3(blocks), dim3(static_cast<unsigned>(warps) * kWarpSize), shared, stream,
                     rule, shared_slots, logits, tokens, static_cast<int>(per_warp),
                     static_cast<int>(experts), static_cast<int>(top_k), topk_idx, topk_weights,
                     reinterpret_cast<Count*>(permutation.block_counts), permutation.expert_offsets,
                     permutation.dst_row);
}

}  // namespace

void route_rows(const float* logits, std::int64_t tokens, std::int64_t experts, std::int64_t top_k,
                std::int32_t* topk_idx, float* topk_weights, const Permutation& permutation,
                const DeviceFacts& facts, cudaStream_t stream, const RouterRule& rule,
                const SharedSlots& shared_slots) {
  const std::int64_t all_experts = experts + shared_slots.count;
  MOE_INTERNAL_CHECK(rule.plain() || top_k <= kMostRuleChoices, "top_k={} exceeds {}", top_k,
                     kMostRuleChoices);
  MOE_INTERNAL_CHECK(all_experts <= kMaxExperts, "experts={} exceeds {}", all_experts, kMaxExperts);
  MOE_INTERNAL_CHECK(tokens * (top_k + shared_slots.count) <= INT32_MAX,
                     "{} tokens of {} slots exceed 32-bit row numbers", tokens,
                     top_k + shared_slots.count);
  with_registers_for(experts, [&]<int kPerLane>() {
    const auto go = [&]<class Count>() {
      launch<kPerLane, Count>(rule, shared_slots, logits, tokens, experts, top_k, topk_idx,
                              topk_weights, permutation, facts, stream);
    };
    if (tokens <= UINT16_MAX) {
      go.template operator()<std::uint16_t>();
    } else {
      go.template operator()<std::uint32_t>();
    }
  });
}

LayerRouter::LayerRouter(const Problem& problem, const Weights& weights, const DeviceFacts& facts)
    : problem_(problem),
      shape_(with_shared_slots(problem)),
      rule_(RouterRule::of(problem.router, weights)),
      facts_(facts) {}

SharedSlots LayerRouter::shared_slots(const RoutingInputs& in) const {
  return {static_cast<int>(shape_.top_k - problem_.shape.top_k), in.shared_weights};
}

void LayerRouter::choose(const RoutingInputs& in, std::int64_t tokens, std::int32_t* topk_idx,
                         float* topk_weights, cudaStream_t stream) const {
  const Shape& shape = problem_.shape;
  if (problem_.router.scoring == Scoring::kGiven) {
    take_routes(in.routes, tokens, shape.experts, shape.top_k, topk_idx, topk_weights, stream,
                shared_slots(in));
  } else {
    choose_experts(rule_, in.logits, tokens, shape.experts, shape.top_k, topk_idx, topk_weights,
                   stream, shared_slots(in));
  }
}

void LayerRouter::route(const RoutingInputs& in, std::int64_t tokens, std::int32_t* topk_idx,
                        float* topk_weights, const Permutation& permutation,
                        cudaStream_t stream) const {
  const Shape& shape = problem_.shape;
  if (problem_.router.scoring == Scoring::kGiven) {
    choose(in, tokens, topk_idx, topk_weights, stream);
    build_permutation(topk_idx, tokens * shape_.top_k, shape_.experts, permutation, facts_, stream);
  } else {
    route_rows(in.logits, tokens, shape.experts, shape.top_k, topk_idx, topk_weights, permutation,
               facts_, stream, rule_, shared_slots(in));
  }
}

}  // namespace moe::cuda
