#include "cuda/ops/row_tiles.h"

#include <algorithm>

#include "core/check.h"
#include "cuda/check.h"
#include "cuda/device/overlap.cuh"
#include "cuda/device/warp.cuh"
#include "cuda/launch.h"
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
    row_to_token[in.dst_row[i]] = static_cast<std::int32_t>(i / in.top_k);
  }
}

/// An expert in the order of descending tile size.
struct Segment {
  int expert;
  int begin;  // routed row
  int rows;
};

/// Block 0 makes the list, the others invert the permutation. All its threads count for every expert
/// how many go before it; the tiles before it are counted by a scan over that order, and then eight
/// threads an expert write its tiles.
__global__ void __launch_bounds__(kThreads) row_tiles_kernel(RowTilesInput in, RowTiles out) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const std::int32_t* const expert_offsets = in.expert_offsets;
  const int experts = static_cast<int>(in.experts);
  const int largest_tile = in.largest_tile;
  if (blockIdx.x > 0) {
    invert(in, out.row_to_token, static_cast<std::int64_t>(blockIdx.x - 1) * kThreads + threadIdx.x,
           static_cast<std::int64_t>(gridDim.x - 1) * kThreads);
    return;
  }
  __shared__ int key[kThreads];           // of expert e: larger goes first, no two equal
  __shared__ int before[kThreads];        // experts that go before expert e
  __shared__ Segment segments[kThreads];  // in the order
  __shared__ int tiles_until[kThreads];   // tiles of the places up to and including this one
  __shared__ int warp_totals[kWarpSize];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;

  const int begin = thread < experts ? expert_offsets[thread] : 0;
  const int rows = thread < experts ? expert_offsets[thread + 1] - begin : 0;
  const RowSplit mine(rows, largest_tile);
  key[thread] = mine.largest() * kThreads + (kThreads - 1 - thread);
  before[thread] = 0;
  tiles_until[thread] = 0;
  __syncthreads();
  const int parts = kThreads / experts;
  if (thread < parts * experts) {
    const int my_key = key[thread % experts];
    int larger = 0;
#pragma unroll 8
    for (int other = thread / experts; other < experts; other += parts) {
      larger += key[other] > my_key ? 1 : 0;
    }
    atomicAdd(&before[thread % experts], larger);
  }
  __syncthreads();
  if (thread < experts) {
    segments[before[thread]] = {thread, begin, rows};
    tiles_until[before[thread]] = mine.tiles;
  }
  __syncthreads();

  const int inclusive = warp_inclusive_scan(tiles_until[thread]);
  if (lane == kWarpSize - 1) warp_totals[warp] = inclusive;
  __syncthreads();
  if (warp == 0) warp_totals[lane] = warp_inclusive_scan(warp_totals[lane]);
  __syncthreads();
  tiles_until[thread] = inclusive + (warp > 0 ? warp_totals[warp - 1] : 0);
  __syncthreads();

  constexpr int kLanes = 8;  // of an expert
  for (int place = thread / kLanes; place < experts; place += kThreads / kLanes) {
    const Segment segment = segments[place];
    const RowSplit split(segment.rows, largest_tile);
    const int first_tile = tiles_until[place] - split.tiles;
    for (int i = thread % kLanes; i < split.tiles; i += kLanes) {
      const int first = split.first_row(i);
      const int tile_rows = split.tile_rows(i);
      out.tiles[first_tile + i] = {segment.expert, segment.begin + first, tile_rows,
                                   min(tile_rows, split.rows - first)};
      if (out.ready != nullptr) out.ready[first_tile + i] = 0;
      if (out.finished != nullptr) out.finished[first_tile + i] = 0;
    }
  }
  if (thread == 0) *out.count = tiles_until[experts - 1];
  if (thread < RowTiles::kTickets) out.tickets[thread] = 0;
}

}  // namespace

void build_row_tiles(const RowTilesInput& in, const RowTiles& out, cudaStream_t stream) {
  MOE_INTERNAL_CHECK(in.experts <= kMaxExperts, "experts={} exceeds {}", in.experts, kMaxExperts);
  MOE_INTERNAL_CHECK(in.largest_tile % kRowUnit == 0 && in.largest_tile > 0,
                     "largest_tile={} is no multiple of {}", in.largest_tile, kRowUnit);
  constexpr std::int64_t kMostBlocks = 64;
  constexpr std::int64_t kRowsPerBlock = 2 * kThreads;
  const std::int64_t inverting =
      in.dst_row == nullptr
          ? 0
          : std::min((in.routed + kRowsPerBlock - 1) / kRowsPerBlock, kMostBlocks);
  launch_overlapping("row_tiles_kernel", row_tiles_kernel,
                     dim3(static_cast<unsigned>(1 + inverting)), dim3(kThreads), 0, stream, in,
                     out);
}

}  // namespace moe::cuda
