// The list of row tiles (row_tiles.h), made by one block of threads: what the kernels that make it share.
#pragma once

#include "cuda/device/warp.cuh"
#include "cuda/ops/row_tiles.h"
#include "cuda/ops/tile_order.h"

namespace moe::cuda {

/// An expert in the order of descending tile size.
struct ExpertSegment {
  int expert;
  int begin;  // routed row
  int rows;
};

/// Shared memory of list_row_tiles(), for at most kMost experts.
template <int kMost>
struct TileListScratch {
  int key[kMost];                 // of expert e: larger goes first, no two equal; light ones last
  int before[kMost];              // experts that go before expert e
  ExpertSegment segments[kMost];  // in the order
  int tiles_until[kMost];         // tiles of the places up to and including this one
  int warp_totals[kWarpSize];
  int rows;  // of all experts
};

/// Thread e brings the first routed row and the number of rows of expert e (others: 0, 0). All threads
/// count for every expert how many go before it; the tiles before it are counted by a scan over that
/// order, and then eight threads an expert write its tiles. By a whole block of at least kMost threads,
/// a multiple of 32.
template <int kMost>
__device__ __forceinline__ void list_row_tiles(TileListScratch<kMost>& shared, int experts,
                                               int begin, int rows, int largest_tile,
                                               const RowTiles& out) {
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  const RowSplit mine(rows, largest_tile);
  if (thread == experts - 1) shared.rows = begin + rows;
  __syncthreads();
  const bool light = is_light(rows, largest_tile, shared.rows, experts);
  if (thread < kMost) {
    constexpr int kHeavy = 1 << 30;
    shared.key[thread] = (light ? 0 : kHeavy) + mine.largest() * kMost + (kMost - 1 - thread);
    shared.before[thread] = 0;
    shared.tiles_until[thread] = 0;
  }
  if (warp == 0) shared.warp_totals[lane] = 0;
  __syncthreads();
  const int parts = threads / experts;
  if (thread < parts * experts) {
    const int my_key = shared.key[thread % experts];
    int larger = 0;
#pragma unroll 8
    for (int other = thread / experts; other < experts; other += parts) {
      larger += shared.key[other] > my_key ? 1 : 0;
    }
    atomicAdd(&shared.before[thread % experts], larger);
  }
  __syncthreads();
  if (thread < experts) {
    shared.segments[shared.before[thread]] = {thread, begin, rows};
    shared.tiles_until[shared.before[thread]] = mine.tiles;
  }
  __syncthreads();

  const int inclusive = warp_inclusive_scan(thread < kMost ? shared.tiles_until[thread] : 0);
  if (lane == kWarpSize - 1) shared.warp_totals[warp] = inclusive;
  __syncthreads();
  if (warp == 0) shared.warp_totals[lane] = warp_inclusive_scan(shared.warp_totals[lane]);
  __syncthreads();
  if (thread < kMost) {
    shared.tiles_until[thread] = inclusive + (warp > 0 ? shared.warp_totals[warp - 1] : 0);
  }
  __syncthreads();

  // Those that wait for memory run beside those that multiply.
  const int heavy_experts = __syncthreads_count(thread < experts && !light);
  const int tiles = shared.tiles_until[experts - 1];
  const int heavy_tiles = heavy_experts > 0 ? shared.tiles_until[heavy_experts - 1] : 0;
  const int light_tiles = tiles - heavy_tiles;
  constexpr int kLanes = 8;  // of an expert
  for (int place = thread / kLanes; place < experts; place += threads / kLanes) {
    const ExpertSegment segment = shared.segments[place];
    const RowSplit split(segment.rows, largest_tile);
    const int first_tile = shared.tiles_until[place] - split.tiles;
    for (int i = thread % kLanes; i < split.tiles; i += kLanes) {
      const int first = split.first_row(i);
      const int tile_rows = split.tile_rows(i);
      const int tile = first_tile + i;
      const int at = place < heavy_experts
                         ? place_of_heavy(tile, heavy_tiles, light_tiles)
                         : place_of_light(tile - heavy_tiles, heavy_tiles, light_tiles);
      out.tiles[at] = {segment.expert, segment.begin + first, tile_rows,
                       min(tile_rows, split.rows - first)};
      if (out.ready != nullptr) out.ready[at] = 0;
      if (out.finished != nullptr) out.finished[at] = 0;
    }
  }
  if (thread == 0) *out.count = tiles;
  if (thread < RowTiles::kTickets) out.tickets[thread] = 0;
}

}  // namespace moe::cuda
