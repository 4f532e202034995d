// Grouped GEMM of our own for sm_90a: one launch multiplies every expert's rows with its weights, with
// the numbers of rows read on the device.
//
//   out[r, :] = epilogue(rows[r, :] · weights[expert of r]^T)      bf16 in and out, fp32 accumulation
//
// The kernel and why it looks as it does: docs/levels/level08_persistent.md.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <memory>
#include <string>

#include "cuda/backend.h"
#include "cuda/device/activation_step.h"
#include "cuda/l2_homes.h"
#include "cuda/ops/row_tiles.h"

namespace moe::cuda {

/// The first two have no biases and are what every other one is measured against.
enum class GemmEpilogue : std::uint8_t {
  kStore,      // out [R, features]
  kSwiGLU,     // gate and up rows in pairs; out [R, features / 2] = silu(gate) · up
  kGated,      // the same with biases and any gated activation: GroupedGemmSpec::activation
  kReLU2,      // out [R, features] = max(sum + bias, 0)²
  kStoreBias,  // out [R, features] = sum + bias
};
/// Whether weights come from pack_gate_up_blocked.
constexpr bool has_pairs(GemmEpilogue epilogue) {
  return epilogue == GemmEpilogue::kSwiGLU || epilogue == GemmEpilogue::kGated;
}
/// Whether it makes act out of x: these kernels can take rows in the tokens' order and tell the next
/// one which of their row tiles are finished.
constexpr bool activates(GemmEpilogue epilogue) {
  return has_pairs(epilogue) || epilogue == GemmEpilogue::kReLU2;
}

/// Sizes that are fixed when weights are packed.
struct GroupedGemmSpec {
  GemmEpilogue epilogue = GemmEpilogue::kStore;
  std::int64_t experts = 0;
  std::int64_t feature_blocks = 0;  // of 128 features (pack_blocked.h)
  std::int64_t k_blocks = 0;        // of 64 elements; rows have 64 · k_blocks columns
  std::int64_t out_columns = 0;     // row length of out, a multiple of 64
  ActivationStep activation = {};   // of kGated
};

/// Tile sizes that the kernel is compiled for, in rows. With 192 it can gather its rows beside the
/// products; with 144 it can, too, four times as many at once, or has a sixth stage in that memory. 320 are
/// the rows of a cluster, whose blocks take half each and share 256 features; there it fetches rows straight
/// from the tokens' order.
inline constexpr int kGatheringTile = 192;
inline constexpr int kDeepTile = 144;
inline constexpr int kCooperativeTile = 320;
/// Fewest blocks of a reduction that cooperating blocks multiply.
inline constexpr int kFewestCooperativeSteps = 3;

/// What is chosen for a shape and its rows. Pure host arithmetic: choose_grouped_gemm().
struct GroupedGemmConfig {
  int largest_tile = 0;    // rows, one of the above; what build_row_tiles() is called with
  int tiles_together = 0;  // of one expert, which take turns on its weights (TileOrder)
  bool by_partition =
      false;  // multiprocessors begin with the half of the features of their partition of L2
  bool weights_read_once =
      false;             // an expert's rows are one tile as a rule: L2 need not keep weights
  bool gathers = false;  // a kernel that activates: rows come in the tokens' order
  [[nodiscard]] bool cooperative() const { return largest_tile == kCooperativeTile; }
  bool operator==(const GroupedGemmConfig&) const = default;
};
/// For at most `rows` routed rows in tiles of `largest_tile`, which are in the experts' order.
[[nodiscard]] GroupedGemmConfig choose_grouped_gemm(const GroupedGemmSpec& spec, std::int64_t rows,
                                                    int largest_tile, const DeviceFacts& facts);
/// Bytes of shared memory that a block of the kernels for such tiles takes.
[[nodiscard]] std::size_t grouped_gemm_shared_bytes(int largest_tile, bool gathers);
/// "tiles of 128x192, up to 11 of an expert together"
[[nodiscard]] std::string to_string(const GroupedGemmConfig& config);

struct GroupedGemmCall {
  void* rows = nullptr;  ///< [capacity, 64 · k_blocks] by expert; 16-byte aligned, better 128
  /// Where the epilogue activates and config.gathers only: [tokens, 64 · k_blocks], 16-byte aligned, read
  /// by row_to_token. Tiles of kCooperativeTile leave `rows` alone, all others fill it from there on the way,
  /// in the order in which they need it. Null: `rows` is complete.
  const void* gather_from = nullptr;
  const void* packed_weights = nullptr;  ///< pack_blocked.h
  L2Homes weight_homes = {};             ///< with which they were packed
  /// [experts, feature_blocks, 128] in the order of the packed rows (pack_blocked.h). Null: none. kStore
  /// and kSwiGLU take none.
  const float* packed_bias = nullptr;
  void* out = nullptr;        ///< [capacity, out_columns], aligned like rows
  std::int64_t capacity = 0;  ///< rows of either that exist; more than all experts have may be read
  RowTiles row_tiles;
  /// RowTiles::kTicketsOfProduct counters that are 0 and that this launch alone uses
  std::int32_t* tickets = nullptr;
  /// Counts in row_tiles.finished what is complete of the output.
  bool announces = false;
  /// Of what this launch reads, the one just before in the stream makes `rows` and nothing else. This one then
  /// begins before that is complete, with weights.
  bool rows_of_previous = false;
  /// With rows_of_previous, announcements() of the launch just before: this one begins with tiles whose rows are
  /// complete. It must not write what that one reads of other rows than those of the same tile. 0: rows of all
  /// tiles are waited for.
  int awaits = 0;
};

/// Rows of the tile list must come from build_row_tiles(config.largest_tile).
class GroupedGemmSm90 {
 public:
  GroupedGemmSm90(const GroupedGemmSpec& spec, const GroupedGemmConfig& config,
                  const DeviceFacts& facts);
  GroupedGemmSm90(GroupedGemmSm90&&) noexcept;
  GroupedGemmSm90& operator=(GroupedGemmSm90&&) noexcept;
  ~GroupedGemmSm90();

  [[nodiscard]] const GroupedGemmConfig& config() const;
  /// What a call that announces adds to row_tiles.finished for each row tile.
  [[nodiscard]] int announcements() const;

  /// Descriptions of the buffers are kept from call to call.
  void run(const GroupedGemmCall& call, cudaStream_t stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moe::cuda
