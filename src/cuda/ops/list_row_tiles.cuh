// The list of row tiles (row_tiles.h), made by the blocks of a grid: what the kernels that make it
// share.
#pragma once

#include "cuda/device/warp.cuh"
#include "cuda/ops/row_tiles.h"
#include "cuda/ops/tile_order.h"

namespace moe::cuda {

/// Shared memory of list_row_tiles(), for at most kMost experts.
template <int kMost>
struct TileListScratch {
  int key[kMost];    // of expert e: larger goes first, no two equal
  int tiles[kMost];  // of expert e
  int begin[kMost];  // its first routed row
  int rows[kMost];
};

/// The list by all blocks of a grid together, each of which knows all experts: thread e brings the first
/// routed row and the number of rows of expert e; `total` rows are of all. A warp takes an expert, counts
/// the tiles of those that go before it and writes its own. Experts with several tiles go first, then those with
/// one; large tiles first, but of the experts with one
/// tile the light ones: their weights arrive while others multiply, and the end is none of small tiles that
/// all wait for memory. By whole blocks of at least `experts` threads,
/// a multiple of 32.
template <int kMost>
__device__ __forceinline__ void list_row_tiles(TileListScratch<kMost>& shared, int experts,
                                               int begin, int rows, int total, int largest_tile,
                                               const RowTiles& out) {
  // In a key.
  constexpr int kSeveral = 1 << 30;
  constexpr int kLight = 1 << 29;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  if (thread < experts) {
    const RowSplit split(rows, largest_tile);
    const int kind = split.tiles > 1                                ? kSeveral
                     : is_light(rows, largest_tile, total, experts) ? kLight
                                                                    : 0;
    shared.key[thread] = kind + split.largest() * kMost + (kMost - 1 - thread);
    shared.tiles[thread] = split.tiles;
    shared.begin[thread] = begin;
    shared.rows[thread] = rows;
  }
  __syncthreads();
  const int first = warp * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
  const int step = static_cast<int>(blockDim.x / kWarpSize * gridDim.x);
  for (int expert = first; expert < experts; expert += step) {
    const int key = shared.key[expert];
    int before = 0;   // tiles of experts that go before this one
    int several = 0;  // tiles of experts that have more than one
    int all = 0;
    for (int other = lane; other < experts; other += kWarpSize) {
      const int tiles = shared.tiles[other];
      before += shared.key[other] > key ? tiles : 0;
      several += tiles > 1 ? tiles : 0;
      all += tiles;
    }
    before = __reduce_add_sync(kAllLanes, before);
    several = __reduce_add_sync(kAllLanes, several);
    all = __reduce_add_sync(kAllLanes, all);
    const RowSplit split(shared.rows[expert], largest_tile);
    for (int i = lane; i < split.tiles; i += kWarpSize) {
      const int first_row = split.first_row(i);
      const int tile_rows = split.tile_rows(i);
      const int at = before + i;
      out.tiles[at] = {.expert = expert,
                       .first_row = shared.begin[expert] + first_row,
                       .rows = tile_rows,
                       .valid = min(tile_rows, split.rows - first_row),
                       .index = i,
                       .tiles = split.tiles};
      if (out.ready != nullptr) out.ready[at] = 0;
      if (out.finished != nullptr) out.finished[at] = 0;
    }
    if (expert == 0) {
      if (lane == 0) {
        out.count[RowTiles::kTiles] = all;
        out.count[RowTiles::kSeveral] = several;
      }
      if (lane < RowTiles::kTickets) out.tickets[lane] = 0;
    }
  }
}

}  // namespace moe::cuda
