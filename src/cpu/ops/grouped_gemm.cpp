#include "cpu/ops/grouped_gemm.h"

#include <algorithm>
#include <array>

#include "core/threads.h"

namespace moe::cpu {
namespace {

/// A product with fewer rows takes as long as reading its weights: the knee between the DRAM read
/// rate and the peak of the tiles, in rows per expert.
constexpr std::int64_t kKneeRows = 12;
/// From the heuristic of TileChoices::defaults.
constexpr std::int64_t kChunkBytes = 16384;
constexpr std::int64_t kManyRows = 72;
constexpr std::int64_t kRowPart = 512;
/// Sums kept between chunks of the depth live on the stack of the task.
constexpr std::int64_t kPartialRows = 72;
constexpr std::int64_t kPartialColumns = 64;
/// Blocks that share the prefetch of one chunk: later blocks find it fetched.
constexpr std::int64_t kPrefetchBlocks = 8;

struct Task {
  std::int64_t expert = 0;
  Range panels;
  Range blocks;
};

/// Turns ascending task numbers into tasks; `expert` only moves forward.
class TaskCursor {
 public:
  explicit TaskCursor(const GroupedGemm& gemm) : gemm_(gemm) {}

  [[nodiscard]] std::int64_t count() const { return gemm_.tasks[gemm_.groups.experts].first_task; }

  Task at(std::int64_t number) {
    while (gemm_.tasks[expert_ + 1].first_task <= number) ++expert_;
    const ExpertTasks& tasks = gemm_.tasks[expert_];
    const std::int64_t local = number - tasks.first_task;
    const std::int64_t first_panel = local / tasks.row_parts * tasks.panels_per_task;
    const std::int64_t rows = gemm_.groups.rows(expert_);
    const std::int64_t blocks = block_count(rows, gemm_.groups.choices->of(rows).shape);
    return {.expert = expert_,
            .panels = {first_panel,
                       std::min(first_panel + tasks.panels_per_task, gemm_.weights->panels())},
            .blocks = part_of(blocks, local % tasks.row_parts, tasks.row_parts)};
  }

 private:
  const GroupedGemm& gemm_;
  std::int64_t expert_ = 0;
};

/// The blocks of one task times `panels` adjacent panels, chunk by chunk. `next` is the panel that
/// this thread reads afterwards.
void multiply_panels(const GroupedGemm& gemm, const Task& task, std::int64_t panel, int panels,
                     const char* next) {
  const GemmKernels& kernels = *gemm.kernels;
  const PackedMatrices& weights = *gemm.weights;
  const std::int64_t rows = gemm.groups.rows(task.expert);
  const std::int64_t first_row = gemm.groups.offsets[task.expert];
  const TileChoice& choice = gemm.groups.choices->of(rows);
  const std::int64_t blocks = block_count(rows, choice.shape);
  const std::int64_t depth = weights.depth();
  const std::int64_t row_bytes = depth * row_element_bytes(kernels.row_layout);
  const std::int64_t act_row_bytes = gemm.act_depth * row_element_bytes(kernels.row_layout);
  const std::int64_t bytes_per_k = weights.panel_bytes() / depth;
  const std::int64_t column = panel * kernels.panel_columns();
  const TileShape shape{choice.shape.rows, panels};
  const std::int64_t chunk = choice.chunk == 0 ? depth : std::min(choice.chunk, depth);

  TileArgs tile;
  tile.b = weights.panel(task.expert, panel);
  tile.b_panel_stride = weights.panel_bytes();
  tile.depth = depth;
  tile.epilogue = gemm.epilogue;
  tile.c_stride = gemm.c_columns;
  tile.columns = gemm.c_columns - column;
  const bool ungated =
      gemm.epilogue == Epilogue::kAct && gemm.step.kind == ActivationStep::Kind::kReLU2;
  tile.act_column = panel * (ungated ? kernels.panel_columns() : kernels.lanes);
  tile.step = gemm.step;
  if (gemm.bias != nullptr) {
    tile.bias = gemm.bias + (task.expert * weights.panels() + panel) * kernels.panel_columns();
  }
  tile.act_depth = gemm.act_depth;

  alignas(64) std::array<float, static_cast<std::size_t>(kPartialRows * kPartialColumns)> partial;
  // All blocks at once unless their sums must be kept between chunks.
  const std::int64_t group =
      chunk == depth ? task.blocks.end - task.blocks.begin : kPartialRows / choice.shape.rows;
  for (std::int64_t begin = task.blocks.begin; begin < task.blocks.end; begin += group) {
    const std::int64_t end = std::min(begin + group, task.blocks.end);
    const std::int64_t sharing = std::min(end - begin, kPrefetchBlocks);
    for (std::int64_t k = 0; k < depth; k += chunk) {
      tile.k_begin = k;
      tile.k_end = std::min(k + chunk, depth);
      const char* target =
          tile.k_end < depth ? static_cast<const char*>(tile.b) + tile.k_end * bytes_per_k : next;
      const std::int64_t share_bytes = (tile.k_end - k) * bytes_per_k / sharing;
      tile.prefetch_advance = kernels.depth_step * bytes_per_k / sharing;
      for (std::int64_t block = begin; block < end; ++block) {
        const Range in_block = part_of(rows, block, blocks);
        const std::int64_t row = first_row + in_block.begin;
        tile.rows = in_block.end - in_block.begin;
        tile.a = static_cast<const char*>(gemm.a) + row * row_bytes;
        tile.partial =
            partial.data() + (block - begin) * choice.shape.rows * panels * kernels.panel_columns();
        if (gemm.epilogue == Epilogue::kStore) {
          tile.c = gemm.c + row * gemm.c_columns + column;
        } else {
          tile.act = static_cast<char*>(gemm.act) + row * act_row_bytes;
        }
        if (gemm.row_scale != nullptr) tile.row_scale = gemm.row_scale + row;
        int lines = 0;
        if (choice.prefetch && target != nullptr && block - begin < sharing) {
          tile.prefetch = target + (block - begin) * share_bytes;
          lines = sharing == 1 ? 2 : 1;
        } else {
          tile.prefetch_advance = 0;
        }
        kernels.tile(shape, static_cast<int>(tile.rows), lines)(tile);
      }
    }
  }
}

}  // namespace

std::int64_t chunk_depth(const GemmKernels& kernels, DType dtype, std::int64_t bytes) {
  const std::int64_t depth = bytes / PackedMatrices::panel_bytes_for(kernels, dtype, 1);
  return std::max<std::int64_t>(depth / kernels.depth_multiple, 1) * kernels.depth_multiple;
}

TileChoices TileChoices::defaults(const GemmKernels& kernels, DType dtype) {
  const TileShape* end = kernels.shapes + kernels.shape_count;
  const TileShape tall = *kernels.shapes;
  const TileShape* found =
      std::find_if(kernels.shapes, end, [](const TileShape& shape) { return shape.panels == 2; });
  const TileShape two_panels = found != end ? *found : TileShape{};
  TileChoices result;
  for (int range = 0; range < kRanges; ++range) {
    TileChoice& choice = result.choices[range];
    choice.shape = tall;
    // One pass over the weights is bound by DRAM: two panels read two streams, and the hardware
    // prefetcher alone keeps up.
    if (last_row_of(range) <= two_panels.rows) choice.shape = two_panels;
    // More than one pass: the passes after the first find the panel in L2, and the time they take
    // is there for fetching what comes next.
    choice.prefetch = first_row_of(range) > tall.rows;
    // Two passes: in chunks of half an L1, so that fetching spreads over both.
    if (choice.prefetch && last_row_of(range) <= std::int64_t{2} * tall.rows) {
      choice.chunk = chunk_depth(kernels, dtype, kChunkBytes);
    }
    // Many passes: two panels side by side halve the reading of A. Only where they keep as many
    // sums in registers as one.
    if (2 * two_panels.rows >= tall.rows && first_row_of(range) > kManyRows) {
      choice.shape = two_panels;
    }
    // A of a row part stays in L2 and L3 while the panels pass.
    if (first_row_of(range) > kManyRows) choice.row_part = kRowPart;
  }
  return result;
}

void plan_tasks(const RowGroups& groups, std::int64_t panels, int threads, ExpertTasks* tasks) {
  // Cost of a panel in rows, not less than the knee.
  const auto cost = [&](std::int64_t rows) { return std::max(rows, kKneeRows); };
  std::int64_t total = 0;
  for (std::int64_t expert = 0; expert < groups.experts; ++expert) {
    if (groups.rows(expert) > 0) total += cost(groups.rows(expert)) * panels;
  }
  std::int64_t first_task = 0;
  for (std::int64_t expert = 0; expert < groups.experts; ++expert) {
    const std::int64_t rows = groups.rows(expert);
    ExpertTasks& mine = tasks[expert];
    mine = {first_task, panels, 1};
    if (rows == 0) {
      continue;  // first_task of the next expert is the same: no task
    }
    const TileChoice& choice = groups.choices->of(rows);
    const std::int64_t blocks = block_count(rows, choice.shape);
    const std::int64_t target =
        std::max<std::int64_t>(total / (choice.tasks_per_thread * threads), 1);
    if (choice.row_part > 0) mine.row_parts = (rows + choice.row_part - 1) / choice.row_part;
    const std::int64_t width = choice.shape.panels;
    const std::int64_t part_rows = cost((rows + mine.row_parts - 1) / mine.row_parts);
    mine.panels_per_task =
        std::clamp(target / part_rows / width * width, width, std::max(panels, width));
    // One panel group is still too much for one task: cut the rows.
    const std::int64_t wanted_parts =
        part_rows * mine.panels_per_task / std::max<std::int64_t>(target, kKneeRows * width);
    mine.row_parts = std::clamp(mine.row_parts * wanted_parts, mine.row_parts, blocks);
    mine.row_parts = std::min(mine.row_parts, blocks);
    first_task += (panels + mine.panels_per_task - 1) / mine.panels_per_task * mine.row_parts;
  }
  tasks[groups.experts] = {first_task, 0, 0};
}

void run_tasks(const GroupedGemm& gemm, std::atomic<std::int64_t>& counter) {
  TaskCursor cursor(gemm);
  const std::int64_t count = cursor.count();
  std::int64_t number = counter.fetch_add(1, std::memory_order_relaxed);
  if (number >= count) return;
  Task task = cursor.at(number);
  while (number < count) {
    const TileChoice& choice = gemm.groups.choices->of(gemm.groups.rows(task.expert));
    Task next_task;
    for (std::int64_t panel = task.panels.begin; panel < task.panels.end;) {
      const auto panels =
          static_cast<int>(std::min<std::int64_t>(choice.shape.panels, task.panels.end - panel));
      const std::int64_t after = panel + panels;
      const char* next = nullptr;
      if (after < task.panels.end) {
        next = gemm.weights->panel(task.expert, after);
      } else {
        // The next task is taken before the last panels of this one, so that they can fetch its
        // first panel; not earlier, so that no thread sits on work that another could do.
        number = counter.fetch_add(1, std::memory_order_relaxed);
        if (number < count) {
          next_task = cursor.at(number);
          next = gemm.weights->panel(next_task.expert, next_task.panels.begin);
        }
      }
      multiply_panels(gemm, task, panel, panels, next);
      panel = after;
    }
    task = next_task;
  }
}

void pack_groups(const GemmKernels& kernels, const RowGroups& groups, const TensorView& x,
                 const std::int64_t* source_row, std::int64_t padded_depth, std::int64_t index,
                 std::int64_t parts, void* out) {
  const std::int64_t depth = x.dim(1);
  const std::int64_t x_row_bytes = depth * static_cast<std::int64_t>(size_of(x.dtype));
  const std::int64_t row_bytes = padded_depth * row_element_bytes(kernels.row_layout);
  // Blocks that start inside this part's rows are this part's.
  const Range mine = part_of(groups.offsets[groups.experts], index, parts);
  for (std::int64_t expert = 0; expert < groups.experts; ++expert) {
    const std::int64_t rows = groups.rows(expert);
    const std::int64_t first_row = groups.offsets[expert];
    if (rows == 0 || first_row + rows <= mine.begin || first_row >= mine.end) continue;
    const std::int64_t blocks = block_count(rows, groups.choices->of(rows).shape);
    for (std::int64_t block = 0; block < blocks; ++block) {
      const Range in_block = part_of(rows, block, blocks);
      const std::int64_t begin = first_row + in_block.begin;
      if (begin < mine.begin || begin >= mine.end) continue;
      std::array<const void*, kMaxPackedRows> pointers{};
      const auto count = static_cast<int>(in_block.end - in_block.begin);
      for (int row = 0; row < count; ++row) {
        const std::int64_t source = source_row == nullptr ? begin + row : source_row[begin + row];
        pointers[static_cast<std::size_t>(row)] = x.as<const char>() + source * x_row_bytes;
      }
      pack_rows(kernels.row_layout, x.dtype, pointers.data(), count, depth, padded_depth,
                static_cast<char*>(out) + begin * row_bytes);
    }
  }
}

}  // namespace moe::cpu
