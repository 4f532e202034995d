// Which rows a block of a grouped product owns, found on the device from expert_offsets.
#pragma once

#include <cstdint>

#include "cuda/device/warp.cuh"

namespace moe::cuda {

/// A tile of routed rows of one expert, and the block's place among the blocks of that expert.
struct RowTile {
  int expert = -1;      // -1: this block has nothing to do
  int first = 0;        // routed row where the tile starts
  int rows = 0;         // rows of the expert from there on, at most the tile's height
  int column_tile = 0;  // which columns
};

/// Blocks are numbered expert by expert: expert e has ceil(rows / kHeight) row tiles for each of
/// `column_tiles` column tiles. Within an expert row tiles follow each other first, so that blocks
/// which read the same weights run at the same time. The whole block calls it; `offsets` is shared
/// memory for experts + 1 numbers.
template <int kHeight>
__device__ __forceinline__ RowTile find_row_tile(const std::int32_t* expert_offsets, int experts,
                                                 int column_tiles, int* offsets) {
  __shared__ RowTile found;
  for (int e = static_cast<int>(threadIdx.x); e <= experts; e += static_cast<int>(blockDim.x)) {
    offsets[e] = __ldcg(expert_offsets + e);
  }
  if (threadIdx.x == 0) found = RowTile();
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    const auto tiles_of = [&](int expert) {
      return (offsets[expert + 1] - offsets[expert] + kHeight - 1) / kHeight;
    };
    const int lane = static_cast<int>(threadIdx.x);
    const int wanted = static_cast<int>(blockIdx.x) / column_tiles;
    const int per_lane = (experts + kWarpSize - 1) / kWarpSize;
    const int begin = min(lane * per_lane, experts);
    const int end = min(begin + per_lane, experts);
    int mine = 0;
    for (int expert = begin; expert < end; ++expert) mine += tiles_of(expert);
    const int upto = warp_inclusive_scan(mine);
    if (wanted >= upto - mine && wanted < upto) {
      int before = upto - mine;  // row tiles of the experts before this one
      int expert = begin;
      while (before + tiles_of(expert) <= wanted) before += tiles_of(expert++);
      const int place = static_cast<int>(blockIdx.x) - before * column_tiles;
      const int row_tiles = tiles_of(expert);
      found.expert = expert;
      found.first = offsets[expert] + place % row_tiles * kHeight;
      found.rows = min(offsets[expert + 1] - found.first, kHeight);
      found.column_tile = place / row_tiles;
    }
  }
  __syncthreads();
  return found;
}

}  // namespace moe::cuda
