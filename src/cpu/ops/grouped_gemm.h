// Grouped GEMM on packed blocks and panels: one product per expert with rows, cut into tasks that
// threads take from one counter.
#pragma once

#include <atomic>
#include <cstdint>
#include <iterator>

#include "cpu/isa/gemm_tile.h"
#include "cpu/ops/pack.h"

namespace moe::cpu {

/// How the products of experts with about the same number of rows are executed.
struct TileChoice {
  TileShape shape;
  std::int64_t chunk = 0;     ///< depth per pass over the blocks; 0 = whole depth
  bool prefetch = false;      ///< fetch the next chunk or panel into L2 while computing this one
  std::int64_t row_part = 0;  ///< most rows of a task; 0 = all rows of the expert
  /// Tasks per thread that a phase is cut into. The last ones leave other threads idle, so each
  /// should be a small part of the whole; many small ones break up the streams of panels.
  std::int64_t tasks_per_thread = 24;
  bool operator==(const TileChoice&) const = default;
};

/// Depth whose part of a panel is about `bytes`: a multiple of depth_multiple, at least one.
[[nodiscard]] std::int64_t chunk_depth(const GemmKernels& kernels, DType dtype, std::int64_t bytes);

/// One choice per range of rows per expert. Ranges follow the tile heights: what is best changes
/// where one more pass over a panel is needed.
class TileChoices {
 public:
  /// Upper ends of the ranges; the last range has none.
  static constexpr std::int64_t kUpper[] = {1, 2, 4, 6, 8, 12, 16, 24, 36, 48, 72, 144, 288};
  static constexpr int kRanges = static_cast<int>(std::size(kUpper)) + 1;

  /// The heuristic: docs/levels/level06_compiled.md derives it.
  static TileChoices defaults(const GemmKernels& kernels, DType dtype);

  [[nodiscard]] static int range_of(std::int64_t rows) {
    int range = 0;
    while (range < kRanges - 1 && rows > kUpper[range]) ++range;
    return range;
  }
  [[nodiscard]] const TileChoice& of(std::int64_t rows) const { return choices[range_of(rows)]; }
  /// First and last number of rows in a range; the last range ends nowhere.
  [[nodiscard]] static constexpr std::int64_t first_row_of(int range) {
    return range == 0 ? 1 : kUpper[range - 1] + 1;
  }
  [[nodiscard]] static constexpr std::int64_t last_row_of(int range) {
    return range < kRanges - 1 ? kUpper[range] : INT64_MAX;
  }

  TileChoice choices[kRanges];
};

/// The rows of one expert as balanced blocks: sizes differ by at most one, none is padded.
[[nodiscard]] constexpr std::int64_t block_count(std::int64_t rows, const TileShape& shape) {
  return rows / shape.rows + (rows % shape.rows != 0 ? 1 : 0);
}

/// Tasks of one expert: (panel group, row part), row parts innermost.
struct ExpertTasks {
  std::int64_t first_task = 0;
  std::int64_t panels_per_task = 0;
  std::int64_t row_parts = 0;
};

/// Rows grouped by expert and how they are cut into blocks.
struct RowGroups {
  const std::int64_t* offsets = nullptr;  ///< [experts+1]
  std::int64_t experts = 0;
  const TileChoices* choices = nullptr;

  [[nodiscard]] std::int64_t rows(std::int64_t expert) const {
    return offsets[expert + 1] - offsets[expert];
  }
};

/// One grouped product: C or act = A · B per expert.
struct GroupedGemm {
  const GemmKernels* kernels = nullptr;
  const PackedMatrices* weights = nullptr;
  RowGroups groups;
  const ExpertTasks* tasks = nullptr;  ///< [experts+1], from plan_tasks
  const void* a = nullptr;             ///< packed blocks, rows in group order
  Epilogue epilogue = Epilogue::kStore;
  float* c = nullptr;  ///< kStore: [rows, c_columns]
  std::int64_t c_columns = 0;
  void* act = nullptr;  ///< kSwiGlu and kAct: packed blocks of depth act_depth
  std::int64_t act_depth = 0;
  ActivationStep step = {};  ///< kAct
  /// [experts][panels][panel columns], added to the sums; null: none.
  const float* bias = nullptr;
  const float* row_scale = nullptr;  ///< [rows], multiplies the sums before that; null: 1
};

/// Fills tasks[experts+1] for `threads` threads.
void plan_tasks(const RowGroups& groups, std::int64_t panels, int threads, ExpertTasks* tasks);

/// Takes tasks from `counter` until none is left. Called by every thread of the team.
void run_tasks(const GroupedGemm& gemm, std::atomic<std::int64_t>& counter);

/// Packs part `index` of `parts` of the rows x[source_row[r],:] (source_row null: x[r,:]) into the
/// blocks of `groups`.
void pack_groups(const GemmKernels& kernels, const RowGroups& groups, const TensorView& x,
                 const std::int64_t* source_row, std::int64_t padded_depth, std::int64_t index,
                 std::int64_t parts, void* out);

}  // namespace moe::cpu
