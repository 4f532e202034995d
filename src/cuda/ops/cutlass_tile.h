// How the output of CUTLASS's grouped GEMM is cut into tiles: a choice of the host, without CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace moe::cuda {

/// What is multiplied: C[e] = A[e] · W[e]^T for groups e of rows of A; W is [groups, n, k].
struct CutlassGemmSpec {
  std::int64_t groups = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  std::int64_t a_stride = 0;  ///< elements between rows of A
  std::int64_t c_stride = 0;  ///< elements between rows of C
};

/// The kernels there are, smallest tile first. Cooperative: two warpgroups halve the features of one
/// tile. Pingpong: each has a tile of its own, and stores it while the other multiplies.
enum class CutlassTile : std::uint8_t {
  kCooperative256x128,
  kCooperative256x192,
  kPingpong128x192,
};
inline constexpr CutlassTile kCutlassTiles[] = {CutlassTile::kCooperative256x128,
                                                CutlassTile::kCooperative256x192,
                                                CutlassTile::kPingpong128x192};
/// Tiles of a cluster, side by side in n: they fetch the rows once for both.
inline constexpr int kCutlassCluster = 2;
[[nodiscard]] int features_of(CutlassTile tile);  ///< columns of C
[[nodiscard]] int rows_of(CutlassTile tile);      ///< rows of A and C
/// "cooperative 256x128", features x rows.
[[nodiscard]] std::string_view name_of(CutlassTile tile);

/// What the choice wants to know of the device.
struct TileMachine {
  int multiprocessors = 0;
  std::size_t l2_bytes = 0;
};

/// Σ ⌈m_e / tile_rows⌉ over all groups, as expected when `rows` rows fall on the groups by chance.
[[nodiscard]] double expected_row_tiles(std::int64_t groups, std::int64_t rows, int tile_rows);

/// Cycles that the products of `rows` rows are expected to take with `tile`.
[[nodiscard]] double expected_cycles(const CutlassGemmSpec& spec, std::int64_t rows,
                                     CutlassTile tile, const TileMachine& machine);

/// Bytes of weights that all multiprocessors together read while they work on one tile each.
[[nodiscard]] double weights_side_by_side(const CutlassGemmSpec& spec, std::int64_t rows,
                                          CutlassTile tile, const TileMachine& machine);

/// The smallest cooperative tile that holds a typical group, if one does; else the tile with the fewest
/// expected cycles, pingpong only where the weights side by side stay in L2. What a group really got,
/// the host does not know.
[[nodiscard]] CutlassTile choose_cutlass_tile(const CutlassGemmSpec& spec, std::int64_t rows,
                                              const TileMachine& machine);

}  // namespace moe::cuda
