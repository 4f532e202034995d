// Interface of the GEMM micro-kernels ("tiles"): a packed block of rows times packed panels of
// columns. Which rows and panels is the business of ops/grouped_gemm; how to multiply them is here.
//
//   A, a block of `rows` rows, whole depth            B, a panel of 2·lanes columns, whole depth
//     kColumns  fp32 [depth][rows]                      fp32 [depth][2·lanes]
//     kPairs    bf16 [depth/2][rows][2]                 bf16 [depth/2][2·lanes][2]
//     kRows     bf16 [rows][depth]
//
// A tile multiplies one block with one or two adjacent panels. Panels of gate and up weights hold
// `lanes` gate columns and then the `lanes` up columns of the same indices, so that SwiGLU needs
// nothing but the tile's own registers.
#pragma once

#include <cstdint>

#include "cpu/isa/activation_step.h"

namespace moe::cpu {

/// How a block of rows is stored, see above. Columns of a block stay adjacent: one base register
/// reaches every row, and rows at a power-of-two stride cannot compete for one cache set.
enum class RowLayout : std::uint8_t { kColumns, kPairs, kRows };

enum class Epilogue : std::uint8_t {
  kStore,   ///< fp32 rows of C
  kSwiGlu,  ///< silu(gate)*up in the compute dtype, as the block of rows that the next GEMM reads
  kAct,     ///< the same for TileArgs::step; without a gate matrix all columns of a panel are up
};

struct TileArgs {
  const void* a = nullptr;          ///< block, whole depth
  const void* b = nullptr;          ///< first panel, whole depth
  std::int64_t b_panel_stride = 0;  ///< bytes from one panel to the next
  std::int64_t depth = 0;           ///< padded to GemmKernels::depth_multiple
  std::int64_t k_begin = 0;         ///< this call adds k_begin <= k < k_end; both are multiples
  std::int64_t k_end = 0;           ///< of depth_multiple
  std::int64_t rows = 0;            ///< rows of the block
  /// [rows][panels][2·lanes]: sums kept between the calls for k_end < depth and k_begin > 0.
  float* partial = nullptr;
  /// Tiles with prefetch touch prefetch[0..] by prefetch_advance bytes per step of depth, the same
  /// in every panel.
  const char* prefetch = nullptr;
  std::int64_t prefetch_advance = 0;

  Epilogue epilogue = Epilogue::kStore;
  float* c = nullptr;           ///< kStore: C of the first row and column
  std::int64_t c_stride = 0;    ///< kStore: elements between rows of C
  std::int64_t columns = 0;     ///< kStore: valid columns; more are computed, not stored
  void* act = nullptr;          ///< kSwiGlu and kAct: block of the next GEMM
  std::int64_t act_column = 0;  ///< column of the first lane
  std::int64_t act_depth = 0;   ///< padded depth of that block

  ActivationStep step;               ///< kAct
  const float* bias = nullptr;       ///< [panels][2·lanes], added to the sums; null: none
  const float* row_scale = nullptr;  ///< [rows], multiplies the sums before that; null: 1

  /// Whether the sums begin with the bias, which then costs nothing; a row's scale comes before it.
  [[nodiscard]] bool begins_with_bias() const { return bias != nullptr && row_scale == nullptr; }
  /// Whether the sums need more than the two plain epilogues.
  [[nodiscard]] bool adjusted() const { return epilogue == Epilogue::kAct || row_scale != nullptr; }
};

/// What the sums begin with where there is no bias: [2 panels][2·16 lanes].
alignas(64) inline constexpr float kNoBias[64] = {};

using TileFunction = void (*)(const TileArgs&);

/// Most rows of a block and panels side by side that keep all sums in registers.
struct TileShape {
  int rows = 0;
  int panels = 0;
  bool operator==(const TileShape&) const = default;
};

/// Cache lines of the prefetch target touched per step of depth and panel: 0 (none), 1 or 2.
inline constexpr int kMaxPrefetchLines = 2;

/// The GEMM kernels of one tier for one dtype.
struct GemmKernels {
  RowLayout row_layout = RowLayout::kColumns;
  int lanes = 0;           ///< half a panel
  int depth_multiple = 1;  ///< depth is padded to this with zeros
  int depth_step = 1;      ///< depth of one step of the inner loop
  const TileShape* shapes = nullptr;
  int shape_count = 0;
  /// The tile for blocks of exactly `rows` rows.
  TileFunction (*tile)(TileShape shape, int rows, int prefetch_lines) = nullptr;

  [[nodiscard]] int panel_columns() const { return 2 * lanes; }
};

}  // namespace moe::cpu
