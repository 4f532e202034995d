#include "cuda/ops/row_tiles.h"

#include <algorithm>

#include "core/check.h"
#include "cuda/check.h"
#include "cuda/device/overlap.cuh"
#include "cuda/launch.h"
#include "cuda/ops/list_row_tiles.cuh"
#include "cuda/ops/router.h"
#include "cuda/ops/tile_order.h"

namespace moe::cuda {
namespace {

constexpr int kThreads = 1024;
static_assert(kMaxExperts <= kThreads, "one thread an expert");

/// row_to_token[dst_row[token, slot]] = token
__device__ __forceinline__ void invert(const RowTilesInput& in, std::int32_t* row_to_token,
                                       std::int64_t first, std::int64_t stride) {
  for (std::int64_t i = first; i < in.routed; i += stride) {
    const std::int32_t row = in.dst_row[i];
    if (row >= 0) row_to_token[row] = static_cast<std::int32_t>(i / in.top_k);
  }
}

/// All blocks invert the permutation and make the list.
__global__ void __launch_bounds__(kThreads) row_tiles_kernel(RowTilesInput in, RowTiles out) {
  __shared__ TileListScratch<kThreads> scratch;
  wait_for_previous_kernel();
  allow_next_kernel();
  const int experts = static_cast<int>(in.experts);
  const int thread = static_cast<int>(threadIdx.x);
  const int begin = thread < experts ? in.expert_offsets[thread] : 0;
  const int rows = thread < experts ? in.expert_offsets[thread + 1] - begin : 0;
  if (in.dst_row != nullptr) {
    invert(in, out.row_to_token, static_cast<std::int64_t>(blockIdx.x) * kThreads + thread,
           static_cast<std::int64_t>(gridDim.x) * kThreads);
  }
  list_row_tiles(scratch, experts, begin, rows, in.expert_offsets[experts], in.largest_tile, out);
}

}  // namespace

void build_row_tiles(const RowTilesInput& in, const RowTiles& out, cudaStream_t stream) {
  MOE_INTERNAL_CHECK(in.experts <= kMaxExperts, "experts={} exceeds {}", in.experts, kMaxExperts);
  MOE_INTERNAL_CHECK(in.largest_tile % kRowUnit == 0 && in.largest_tile > 0,
                     "largest_tile={} is no multiple of {}", in.largest_tile, kRowUnit);
  constexpr std::int64_t kMostBlocks = 64;
  constexpr std::int64_t kRowsPerBlock = 2 * kThreads;
  const std::int64_t blocks =
      in.dst_row == nullptr ? 1
                            : std::clamp<std::int64_t>(
                                  (in.routed + kRowsPerBlock - 1) / kRowsPerBlock, 1, kMostBlocks);
  launch_overlapping("row_tiles_kernel", row_tiles_kernel, dim3(static_cast<unsigned>(blocks)),
                     dim3(kThreads), 0, stream, in, out);
}

}  // namespace moe::cuda
