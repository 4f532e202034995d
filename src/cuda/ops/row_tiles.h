// The list of row tiles of a grouped GEMM, made on the device from expert_offsets.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace moe::cuda {

/// One row tile (tile_order.h), as kernels read it.
struct alignas(8) RowTile {
  std::int32_t expert;
  std::int32_t first_row;  ///< routed row
  std::int32_t rows;       ///< multiple of 16: rows to compute
  std::int32_t valid;      ///< rows to store, rows - 15 to rows
  std::int32_t index;      ///< among the expert's tiles, which follow each other in the list
  std::int32_t tiles;      ///< of this expert
};

/// What kernels know of the rows of one forward. Views: the memory is the caller's.
struct RowTiles {
  RowTile* tiles = nullptr;              ///< most_row_tiles() elements
  std::int32_t* count = nullptr;         ///< [kCounts]: numbers of tiles, see Count
  std::int32_t* tickets = nullptr;       ///< [kTickets] of GEMMs that use the list, of who gathers
  std::int32_t* ready = nullptr;         ///< units of 16 rows gathered so far, for each tile
  std::int32_t* row_to_token = nullptr;  ///< [R] inverse of dst_row: the token of each routed row
  std::int32_t* finished = nullptr;  ///< parts of the first product's output so far, for each tile
  /// Of all tiles; of those of experts that have several, which come first.
  enum Count : std::uint8_t { kTiles, kSeveral, kCounts };
  /// Of either half of a product's features, and of who gathers.
  static constexpr int kTicketsOfProduct = 2;
  static constexpr int kGatherTicket = 2 * kTicketsOfProduct;
  static constexpr int kTickets = kGatherTicket + 1;
};

struct RowTilesInput {
  const std::int32_t* expert_offsets = nullptr;  ///< [E+1]
  std::int64_t experts = 0;                      ///< <= kMaxExperts
  const std::int32_t* dst_row = nullptr;  ///< [T·K], -1: no row; null: no row_to_token is made
  std::int64_t routed = 0;                ///< T·K
  std::int64_t top_k = 1;
  int largest_tile = 0;  ///< rows, a multiple of 16
};

/// Cuts every expert's segment into tiles of at most largest_tile rows, in the order of list_row_tiles.cuh,
/// sets `count`, inverts dst_row, and sets all tickets and as many of `ready` and `finished` as
/// there are tiles to 0. Experts without rows have no tile. One kernel, no host synchronisation.
void build_row_tiles(const RowTilesInput& in, const RowTiles& out, cudaStream_t stream);

}  // namespace moe::cuda
