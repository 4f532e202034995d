#include "cuda/ops/permute.h"

#include <cooperative_groups.h>

#include <algorithm>
#include <type_traits>

#include "core/check.h"
#include "cuda/check.h"
#include "cuda/device/element.cuh"
#include "cuda/device/overlap.cuh"
#include "cuda/device/permute.cuh"
#include "cuda/device/warp.cuh"
#include "cuda/launch.h"
#include "cuda/ops/router.h"

namespace moe::cuda {
namespace {

// --- build_permutation ---------------------------------------------------------------------------
constexpr int kSortThreads = 1024;
constexpr int kSortWarps = kSortThreads / kWarpSize;
/// Two steps of every warp: below that a second block costs more (a grid barrier) than it saves.
constexpr std::int64_t kRowsPerBlock = 2 * kSortThreads;

std::int64_t sort_blocks(std::int64_t routed, const DeviceFacts& facts) {
  return std::clamp<std::int64_t>((routed + kRowsPerBlock - 1) / kRowsPerBlock, 1,
                                  facts.multiprocessors);
}

/// Exclusive prefix sum of one value per thread over the whole block.
__device__ __forceinline__ int block_exclusive_scan(int value, int (&warp_totals)[kSortWarps]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int inclusive = warp_inclusive_scan(value);
  if (lane == kWarpSize - 1) warp_totals[warp] = inclusive;
  __syncthreads();
  if (warp == 0) warp_totals[lane] = warp_inclusive_scan(warp_totals[lane]);
  __syncthreads();
  return inclusive - value + (warp > 0 ? warp_totals[warp - 1] : 0);
}

/// Lanes of `active` whose value is the caller's, of `bits` bits. A vote per bit: NOTE that
/// __match_any_sync takes longer on sm_90, where it goes through the distinct values.
__device__ __forceinline__ unsigned lanes_with_same(unsigned active, int value, int bits) {
  unsigned same = active;
  for (int bit = 0; bit < bits; ++bit) {
    const bool set = (value >> bit & 1) != 0;
    const unsigned votes = __ballot_sync(active, set);
    same &= set ? votes : ~votes;
  }
  return same;
}

/// Thread e < experts: the count of expert e in the blocks before this one, and in all blocks. The
/// other threads of the block help: thread (part, expert) adds up every parts-th block.
__device__ __forceinline__ void add_up_blocks(const std::int32_t* block_counts, int experts,
                                              int& before, int& total) {
  __shared__ int before_me[kSortThreads];
  __shared__ int in_all[kSortThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int parts = kSortThreads / experts;
  before = total = 0;
  if (thread < parts * experts) {
    const int expert = thread % experts;
#pragma unroll 8
    for (int block = thread / experts; block < static_cast<int>(gridDim.x); block += parts) {
      const int count = __ldcg(block_counts + static_cast<std::int64_t>(block) * experts + expert);
      total += count;
      if (block < static_cast<int>(blockIdx.x)) before += count;
    }
  }
  before_me[thread] = before;
  in_all[thread] = total;
  __syncthreads();
  if (thread < experts) {
    for (int part = 1; part < parts; ++part) {
      before += before_me[part * experts + thread];
      total += in_all[part * experts + thread];
    }
  } else {
    total = 0;
  }
}

/// Stable counting sort. Block b owns a contiguous range of routed rows, and so does each of its
/// warps; counts live per warp, so that a rank never depends on which warp came first.
///   1 each warp: rank of its rows among its own rows of that expert  -> dst_row, warp_counts
///   2 each block: warps before me, and the block's count per expert  -> block_counts
///   3 (grid barrier) blocks before me, experts before mine           -> base
///   4 each warp: dst_row += base + warps before me
__global__ void __launch_bounds__(kSortThreads, 1)
    build_permutation_kernel(const std::int32_t* __restrict__ topk_idx, std::int64_t routed,
                             int experts, std::int32_t* block_counts,
                             std::int32_t* __restrict__ expert_offsets,
                             std::int32_t* __restrict__ dst_row) {
  extern __shared__ int warp_counts[];  // [kSortWarps][experts]
  __shared__ int base[kMaxExperts];
  __shared__ int warp_totals[kSortWarps];
  static_assert(kMaxExperts <= kSortThreads, "one thread an expert in step 3");
  static_assert(kSortWarps == kWarpSize, "one warp scans the totals of all");
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;

  const std::int64_t all_warps = static_cast<std::int64_t>(gridDim.x) * kSortWarps;
  const std::int64_t rows_per_warp =
      ((routed + all_warps - 1) / all_warps + kWarpSize - 1) / kWarpSize * kWarpSize;
  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * kSortWarps + warp) * rows_per_warp;
  const std::int64_t end = min(first + rows_per_warp, routed);

  const int expert_bits = 32 - __clz(experts - 1);
  int* const my_counts = warp_counts + warp * experts;
  for (int expert = lane; expert < experts; expert += kWarpSize) my_counts[expert] = 0;
  __syncwarp();
  for (std::int64_t step = first; step < end; step += kWarpSize) {
    const std::int64_t row = step + lane;
    const int expert = row < end ? topk_idx[row] : -1;
    const unsigned active = __ballot_sync(kAllLanes, expert >= 0);
    if (expert >= 0) {
      const unsigned peers = lanes_with_same(active, expert, expert_bits);
      const int rank = __popc(peers & ((1U << lane) - 1));
      const int before = my_counts[expert];
      dst_row[row] = before + rank;
      __syncwarp(active);
      if (rank == 0) my_counts[expert] = before + __popc(peers);
    }
    __syncwarp();
  }
  __syncthreads();

  int total = 0;  // of this thread's expert; 0 in threads without one
  if (const int expert = thread; expert < experts) {
    int sum = 0;
#pragma unroll 8
    for (int w = 0; w < kSortWarps; ++w) {
      const int count = warp_counts[w * experts + expert];
      warp_counts[w * experts + expert] = sum;
      sum += count;
    }
    total = sum;
    if (gridDim.x > 1) {
      block_counts[static_cast<std::int64_t>(blockIdx.x) * experts + expert] = sum;
    }
  }
  int before = 0;
  if (gridDim.x > 1) {
    cooperative_groups::this_grid().sync();
    add_up_blocks(block_counts, experts, before, total);
  }
  const int offset = block_exclusive_scan(total, warp_totals);
  if (thread < experts) {
    base[thread] = offset + before;
    if (blockIdx.x == 0) {
      expert_offsets[thread] = offset;
      if (thread == experts - 1) expert_offsets[experts] = offset + total;
    }
  }
  __syncthreads();

  for (std::int64_t row = first + lane; row < end; row += kWarpSize) {
    const int expert = topk_idx[row];
    if (expert < 0) {
      dst_row[row] = -1;
    } else {
      dst_row[row] += base[expert] + my_counts[expert];
    }
  }
}

// --- permute_rows --------------------------------------------------------------------------------
constexpr int kCopyWarps = 8;

/// One warp a (token, segment of columns).
template <class Unit, int kUnroll, Slots kSlots>
__global__ void __launch_bounds__(kCopyWarps* kWarpSize)
    permute_rows_kernel(const Unit* __restrict__ x, const std::int32_t* __restrict__ dst_row,
                        std::int64_t tokens, int top_k, std::int64_t units_per_row, int segments,
                        Unit* __restrict__ x_perm) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const std::int64_t work = static_cast<std::int64_t>(blockIdx.x) * kCopyWarps +
                            static_cast<int>(threadIdx.x) / kWarpSize;
  const std::int64_t token = work / segments;
  if (token >= tokens) return;
  scatter_row<kUnroll, kSlots>(
      x + token * units_per_row, units_per_row, static_cast<int>(work % segments), segments, top_k,
      [&](int slot) { return dst_row[token * top_k + slot]; }, x_perm);
}

template <class Element, int kWidth, int kUnroll>
__global__ void __launch_bounds__(kCopyWarps* kWarpSize)
    permute_scaled_rows_kernel(const Element* __restrict__ x,
                               const std::int32_t* __restrict__ dst_row,
                               const float* __restrict__ topk_weights, std::int64_t tokens,
                               int top_k, std::int64_t hidden, int segments,
                               Element* __restrict__ x_perm) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const std::int64_t work = static_cast<std::int64_t>(blockIdx.x) * kCopyWarps +
                            static_cast<int>(threadIdx.x) / kWarpSize;
  const std::int64_t token = work / segments;
  if (token >= tokens) return;
  scatter_scaled_row<Element, kWidth, kUnroll>(
      x + token * hidden, hidden, static_cast<int>(work % segments), segments, top_k,
      topk_weights + token * top_k, [&](int slot) { return dst_row[token * top_k + slot]; },
      x_perm);
}

// --- unpermute_rows ------------------------------------------------------------------------------
/// One warp a (token, segment of columns).
template <class Element, int kWidth, int kSlots, class Extras>
__global__ void __launch_bounds__(kCopyWarps* kWarpSize, 2)
    unpermute_rows_kernel(const Element* __restrict__ y_perm,
                          const std::int32_t* __restrict__ dst_row,
                          const float* __restrict__ topk_weights, Extras extras,
                          std::int64_t tokens, int top_k, std::int64_t hidden, int segments,
                          bool only_rows_are_new, Element* __restrict__ y) {
  if (!only_rows_are_new) wait_for_previous_kernel();
  const std::int64_t work = static_cast<std::int64_t>(blockIdx.x) * kCopyWarps +
                            static_cast<int>(threadIdx.x) / kWarpSize;
  const std::int64_t token = work / segments;
  if (token >= tokens) return;
  const std::int64_t first = token * top_k;
  if constexpr (Extras::kAny) extras.topk_idx += first;
  combine_row<Element, kWidth, kSlots>(
      y_perm, dst_row == nullptr ? nullptr : dst_row + first, first,
      Extras::kAny && topk_weights == nullptr ? nullptr : topk_weights + first, top_k, hidden,
      static_cast<int>(work % segments), segments, y + token * hidden, extras, [only_rows_are_new] {
        if (only_rows_are_new) wait_for_previous_kernel();
        allow_next_kernel();
      });
}

unsigned blocks_of_warps(std::int64_t warps) {
  return static_cast<unsigned>((warps + kCopyWarps - 1) / kCopyWarps);
}

}  // namespace

std::int64_t permutation_scratch(std::int64_t routed, std::int64_t experts,
                                 const DeviceFacts& facts) {
  // route_rows(): at least 8 tokens a block, counts of 8 experts at a time.
  const std::int64_t route_blocks = std::min<std::int64_t>((routed + 7) / 8, facts.multiprocessors);
  return std::max(sort_blocks(routed, facts) * experts, route_blocks * ((experts + 7) / 8 * 8));
}

void build_permutation(const std::int32_t* topk_idx, std::int64_t routed, std::int64_t experts,
                       const Permutation& permutation, const DeviceFacts& facts,
                       cudaStream_t stream) {
  MOE_INTERNAL_CHECK(experts <= kMaxExperts, "experts={} exceeds {}", experts, kMaxExperts);
  MOE_INTERNAL_CHECK(routed <= INT32_MAX, "{} routed rows exceed 32-bit row numbers", routed);
  const dim3 grid(static_cast<unsigned>(sort_blocks(routed, facts)));
  const auto shared = static_cast<std::size_t>(kSortWarps * experts) * sizeof(int);
  constexpr std::size_t kAllowedWithoutAsking = 32 << 10;  // 48 KiB less the static arrays
  if (shared > kAllowedWithoutAsking) {
    MOE_CUDA_CHECK(cudaFuncSetAttribute(build_permutation_kernel,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shared)));
  }
  auto expert_count = static_cast<int>(experts);
  Permutation views = permutation;
  void* arguments[] = {
      &topk_idx,     &routed, &expert_count, &views.block_counts, &views.expert_offsets,
      &views.dst_row};
  if (grid.x == 1) {
    MOE_CUDA_CHECK(cudaLaunchKernel(build_permutation_kernel, grid, dim3(kSortThreads), arguments,
                                    shared, stream));
  } else {
    // Cooperative: the grid barrier needs every block resident, one on each multiprocessor at most.
    MOE_CUDA_CHECK(cudaLaunchCooperativeKernel(build_permutation_kernel, grid, dim3(kSortThreads),
                                               arguments, shared, stream));
  }
  MOE_CUDA_CHECK_LAUNCH("build_permutation_kernel");
}

int segments_per_token(std::int64_t tokens, std::int64_t row, std::int64_t segment) {
  constexpr std::int64_t kWarpsWanted = 4096;  // about what a Hopper GPU keeps resident, halved
  const std::int64_t most = (row + segment - 1) / segment;
  return static_cast<int>(std::clamp<std::int64_t>((kWarpsWanted + tokens - 1) / tokens, 1, most));
}

void permute_rows(const void* x, const std::int32_t* dst_row, std::int64_t tokens,
                  std::int64_t top_k, std::int64_t row_bytes, void* x_perm, cudaStream_t stream,
                  Slots slots) {
  const auto launch = [&]<class Unit>() {
    constexpr int kUnroll = 4;
    const auto kernel = slots == Slots::kAll ? permute_rows_kernel<Unit, kUnroll, Slots::kAll>
                                             : permute_rows_kernel<Unit, kUnroll, Slots::kSome>;
    const std::int64_t units = row_bytes / static_cast<std::int64_t>(sizeof(Unit));
    const int segments = segments_per_token(tokens, units, kUnroll * kWarpSize);
    launch_overlapping("permute_rows_kernel", kernel, dim3(blocks_of_warps(tokens * segments)),
                       dim3(kCopyWarps * kWarpSize), 0, stream, static_cast<const Unit*>(x),
                       dst_row, tokens, static_cast<int>(top_k), units, segments,
                       static_cast<Unit*>(x_perm));
  };
  if (in_widest_vectors(row_bytes, {x, x_perm})) {
    launch.template operator()<uint4>();
  } else {
    launch.template operator()<std::uint16_t>();  // every element type is a multiple of it
  }
}

void permute_scaled_rows(DType dtype, const void* x, const std::int32_t* dst_row,
                         const float* topk_weights, std::int64_t tokens, std::int64_t top_k,
                         std::int64_t hidden, void* x_perm, cudaStream_t stream) {
  with_device_type(dtype, [&]<class Element>() {
    const auto launch = [&]<int kWidth>() {
      constexpr int kUnroll = 4;
      const int segments = segments_per_token(tokens, hidden / kWidth, kUnroll * kWarpSize);
      launch_overlapping("permute_scaled_rows_kernel",
                         permute_scaled_rows_kernel<Element, kWidth, kUnroll>,
                         dim3(blocks_of_warps(tokens * segments)), dim3(kCopyWarps * kWarpSize), 0,
                         stream, static_cast<const Element*>(x), dst_row, topk_weights, tokens,
                         static_cast<int>(top_k), hidden, segments, static_cast<Element*>(x_perm));
    };
    if (in_widest_vectors(hidden * static_cast<std::int64_t>(sizeof(Element)), {x, x_perm})) {
      launch.template operator()<kWidest<Element>>();
    } else {
      launch.template operator()<1>();
    }
  });
}

void unpermute_rows(DType dtype, const void* y_perm, const std::int32_t* dst_row,
                    const float* topk_weights, std::int64_t tokens, std::int64_t top_k,
                    std::int64_t hidden, void* y, cudaStream_t stream, const CombineExtras& extras,
                    bool only_rows_are_new) {
  with_device_type(dtype, [&]<class Element>() {
    const auto launch_with = [&]<int kWidth, int kSlots>(const auto& extras_if_any) {
      using Extras = std::decay_t<decltype(extras_if_any)>;
      const int segments =
          segments_per_token(tokens, hidden / kWidth, kCombineLoads / kSlots * kWarpSize);
      launch_overlapping(
          "unpermute_rows_kernel", unpermute_rows_kernel<Element, kWidth, kSlots, Extras>,
          dim3(blocks_of_warps(tokens * segments)), dim3(kCopyWarps * kWarpSize), 0, stream,
          static_cast<const Element*>(y_perm), dst_row, topk_weights, extras_if_any, tokens,
          static_cast<int>(top_k), hidden, segments, only_rows_are_new, static_cast<Element*>(y));
    };
    const auto launch = [&]<int kWidth, int kSlots>() {
      if (extras.topk_idx != nullptr) {
        launch_with.template operator()<kWidth, kSlots>(extras);
      } else {
        launch_with.template operator()<kWidth, kSlots>(NoCombineExtras{});
      }
    };
    const std::int64_t row_bytes = hidden * static_cast<std::int64_t>(sizeof(Element));
    if (!in_widest_vectors(row_bytes, {y_perm, y, extras.row_bias})) {
      launch.template operator()<1, combine_slots(8, false)>();
    } else if (top_k <= 2) {
      launch.template operator()<kWidest<Element>, 2>();
    } else if (top_k <= 4) {
      launch.template operator()<kWidest<Element>, 4>();
    } else {
      launch.template operator()<kWidest<Element>, 8>();
    }
  });
}

}  // namespace moe::cuda
