// Level 06 · compiled — weights packed once for the instruction set, own tuned kernels, SwiGLU in
// the epilogue.                                                    builds on 05 (plan made before)
// Changes   the library's GEMMs are gone: register-tiled kernels per instruction set (cpu/isa) read
//           weights that prepare() packed into panels; gate and up share a panel, so SwiGLU runs on
//           the sums in registers; the router uses the same kernels; tiles are tuned by rows per
//           expert (cpu/ops/tuner).
// Why       gate and up are never stored: per routed row 2·I·4 bytes less written and read, and one
//           pass less. Tasks are (expert, panel group, row part), not experts: a skewed router costs
//           no idle thread. FLOPs 6·T·K·H·I + 2·T·H·E, unchanged; every weight of an active expert
//           is read from DRAM once: 3·E_active·H·I·b bytes.
// Costs     a second copy of all weights (3·E·H·I·b, zero-padded to whole panels), the time of
//           packing and tuning in prepare.
// Measured  docs/levels/level06_compiled.md
//
//   x[T,H] ─pack─▶ blocks ─router─▶ logits[T,E] ─top-k─▶ idx, weights ─counting sort─▶ permutation
//   x[T,H] ─pack by expert─▶ x_perm[TK,H] ─gate|up, SwiGLU─▶ act[TK,I] ─down─▶ y_perm[TK,H] fp32
//   y_perm ─combine─▶ y[T,H]
#include <omp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "core/expert_set.h"
#include "core/isa.h"
#include "core/level.h"
#include "core/threads.h"
#include "cpu/isa/kernels.h"
#include "cpu/ops/grouped_gemm.h"
#include "cpu/ops/pack.h"
#include "cpu/ops/permute.h"
#include "cpu/ops/routed_rows.h"
#include "cpu/ops/router.h"
#include "cpu/ops/tune_cache.h"
#include "cpu/ops/tuner.h"

namespace moe::cpu {
namespace {

/// Padded sizes: the depth of both products in the packed layouts.
struct Depths {
  std::int64_t hidden = 0;
  std::int64_t intermediate = 0;
};

Depths padded_depths(const GemmKernels& kernels, const Problem& problem) {
  const Shape& shape = problem.shape;
  const std::int64_t multiple = kernels.depth_multiple;
  return {(shape.hidden + multiple - 1) / multiple * multiple,
          PackedMatrices::act_columns_for(kernels, shape.intermediate, problem.activation.gated())};
}

/// Everything forward keeps in the arena, for `tokens` rows.
struct Workspace : RoutedRows {
  std::int64_t* token_offsets = nullptr;  // [2] the router's only group: all tokens
  ExpertTasks* router_tasks = nullptr;    // [2]
  ExpertTasks* gate_up_tasks = nullptr;   // [E+1]
  ExpertTasks* down_tasks = nullptr;      // [E+1]
  std::byte* act = nullptr;               // [T·K, I] packed blocks
  // One region, used in turns: packed tokens and logits, then x_perm, then y_perm.
  std::byte* packed_tokens = nullptr;  // [T, H] packed blocks
  float* logits = nullptr;             // [T, E]
  std::byte* x_perm = nullptr;         // [T·K, H] packed blocks
  float* y_perm = nullptr;             // [T·K, H]
};

template <class AnyArena>
Workspace take_workspace(AnyArena& arena, const GemmKernels& kernels, const Problem& problem) {
  const Shape shape = with_shared_slots(problem);
  const Depths depths = padded_depths(kernels, problem);
  const std::int64_t element = row_element_bytes(kernels.row_layout);
  const std::int64_t routed = shape.routed_rows();
  Workspace space{take_routed_rows(arena, problem, shape.tokens)};
  space.token_offsets = arena.template take<std::int64_t>(2);
  space.router_tasks = arena.template take<ExpertTasks>(2);
  space.gate_up_tasks = arena.template take<ExpertTasks>(shape.experts + 1);
  space.down_tasks = arena.template take<ExpertTasks>(shape.experts + 1);
  space.act = arena.template take<std::byte>(routed * depths.intermediate * element);
  const auto token_bytes = static_cast<std::int64_t>(
      round_up(static_cast<std::size_t>(shape.tokens * depths.hidden * element), kArenaAlignment));
  const std::int64_t region =
      std::max({token_bytes + shape.tokens * problem.shape.experts * 4,
                routed * depths.hidden * element, routed * shape.hidden * 4});
  auto* shared = arena.template take<std::byte>(region);
  space.packed_tokens = shared;
  space.logits = reinterpret_cast<float*>(shared + token_bytes);
  space.x_perm = shared;
  space.y_perm = reinterpret_cast<float*>(shared);
  return space;
}

class Level06Compiled final : public Level {
 public:
  [[nodiscard]] Features features() const override { return Features::all(); }
  [[nodiscard]] MemoryNeeds memory(const Problem& problem,
                                   const ExecutionOptions& options) const override {
    const GemmKernels& kernels = kernels_for(parse_isa(options.isa)).gemm(problem.dtype);
    const Shape shape = with_shared_slots(problem);
    const Depths depths = padded_depths(kernels, problem);
    ArenaPlan plan;
    take_workspace(plan, kernels, problem);
    const auto buffer = [&](std::int64_t matrices, std::int64_t panels, std::int64_t depth) {
      return std::uint64_t{PackedMatrices::buffer_bytes_for(
          matrices, panels, PackedMatrices::panel_bytes_for(kernels, problem.dtype, depth))};
    };
    const std::int64_t gate_up =
        PackedMatrices::gate_up_panels_for(kernels, shape.intermediate, problem.activation.gated());
    const std::int64_t down = PackedMatrices::panels_for(kernels, shape.hidden);
    const std::int64_t router = problem.router.scoring == Scoring::kGiven
                                    ? 0
                                    : PackedMatrices::panels_for(kernels, problem.shape.experts);
    const std::int64_t biases = problem.expert_bias
                                    ? static_cast<std::int64_t>(sizeof(float)) * shape.experts *
                                          (gate_up + down) * kernels.panel_columns()
                                    : 0;
    return {.workspace = plan.bytes(),
            .transient = 0,
            .prepared = buffer(shape.experts, gate_up, depths.hidden) +
                        buffer(shape.experts, down, depths.intermediate) +
                        buffer(1, router, depths.hidden) + static_cast<std::uint64_t>(biases)};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& options) override {
    problem_ = problem;
    shape_ = with_shared_slots(problem);
    threads_ = options.threads;
    kernels_ = &kernels_for(parse_isa(options.isa));
    gemm_ = &kernels_->gemm(problem.dtype);
    const Depths depths = padded_depths(*gemm_, problem);
    router_ = {kernels_, problem, weights};
    if (problem.router.scoring != Scoring::kGiven) {
      TensorView router = weights.router;
      router.rank = 3;
      router.dims = {1, problem.shape.experts, problem.shape.hidden};
      packed_router_ = PackedMatrices::pack(*gemm_, router, depths.hidden, threads_);
    }
    const ExpertSet experts(problem, weights);
    gate_up_ = PackedMatrices::pack_gate_up(*gemm_, experts, depths.hidden, threads_);
    down_ = PackedMatrices::pack_down(*gemm_, experts, depths.intermediate, threads_);
    if (problem.expert_bias) pack_biases(experts);
    choose_tiles(options);
  }

  void forward(Context& context, const TensorView& x, const TensorView& y) override;

  [[nodiscard]] std::string isa() const override {
    return std::string(name_of(kernels_->used_for(problem_.dtype)));
  }
  [[nodiscard]] int threads() const override { return threads_; }
  [[nodiscard]] Tunes tunes() const override { return Tunes::kUnderUniformRouting; }
  [[nodiscard]] std::string plan() const override;

 private:
  /// Biases in the order of the panels' columns, zero where a panel has no column.
  void pack_biases(const ExpertSet& experts);
  /// From the cache, then from the tuner, else from the heuristic.
  void choose_tiles(const ExecutionOptions& options);
  /// Tokens or (token, columns) units of the combine pass of one thread.
  void combine(const Workspace& space, const TensorView& y, std::int64_t index,
               std::int64_t parts) const;

  Problem problem_;
  Shape shape_;  // with the shared expert's parts
  int threads_ = 1;
  const Kernels* kernels_ = nullptr;
  const GemmKernels* gemm_ = nullptr;
  RouterSetup router_;
  PackedMatrices packed_router_;     // [H] x [E]; empty for given routes
  PackedMatrices gate_up_;           // E x [H] x [2·I]; without a gate matrix E x [H] x [I]
  PackedMatrices down_;              // E x [I] x [H]
  std::vector<float> gate_up_bias_;  // [E][panels of gate_up_][columns]; empty without biases
  std::vector<float> down_bias_;     // the same for down_
  TileChoices choices_;
  TunedRanges tuned_;
  std::string provenance_;
  struct alignas(64) Counter {
    std::atomic<std::int64_t> value;
  };
  std::array<Counter, 3> counters_;
};

void Level06Compiled::pack_biases(const ExpertSet& experts) {
  const bool gated = problem_.activation.gated();
  const auto width = static_cast<std::int64_t>(gemm_->panel_columns());
  const std::int64_t half = gated ? gemm_->lanes : width;
  const auto size = [&](const PackedMatrices& matrices) {
    return static_cast<std::size_t>(experts.count() * matrices.panels() * width);
  };
  gate_up_bias_.assign(size(gate_up_), 0.0F);
  down_bias_.assign(size(down_), 0.0F);
  for (std::int64_t number = 0; number < problem_.shape.experts; ++number) {
    const ExpertMatrices expert = experts.at(number);
    float* gate_up = gate_up_bias_.data() + number * gate_up_.panels() * width;
    for (std::int64_t i = 0; i < expert.width; ++i) {
      float* panel = gate_up + i / half * width + i % half;
      if (gated) *panel = expert.gate_bias[i];
      panel[gated ? half : 0] = expert.up_bias[i];
    }
    std::copy_n(expert.down_bias, problem_.shape.hidden,
                down_bias_.data() + number * down_.panels() * width);
  }
}

void Level06Compiled::choose_tiles(const ExecutionOptions& options) {
  const Shape& shape = shape_;
  const TuneCache cache(options.tune_cache, {.cpu = machine_name(),
                                             .isa = std::string(name_of(kernels_->isa)),
                                             .dtype = problem_.dtype,
                                             .threads = threads_,
                                             .hidden = shape.hidden,
                                             .intermediate = shape.intermediate,
                                             .experts = shape.experts,
                                             .top_k = shape.top_k});
  std::optional<TunedRanges> stored;
  if (options.tuning == Tuning::kMissing) stored = cache.load(*gemm_);
  if (stored) tuned_ = *stored;
  const auto start = std::chrono::steady_clock::now();
  const int added = tune({.kernels = gemm_,
                          .gate_up = &gate_up_,
                          .down = &down_,
                          .shape = shape,
                          .dtype = problem_.dtype,
                          .step = ActivationStep::of(problem_.activation),
                          .threads = threads_,
                          .progress = options.progress,
                          .cancel = options.cancel},
                         options.tune_seconds, tuned_);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  provenance_ = fmt::format("cache {}{}; {} ranges tuned now in {:.1f} s",
                            cache.enabled() ? cache.path() : "off",
                            !cache.enabled() ? ""
                            : stored         ? " (read)"
                                             : " (none valid)",
                            added, seconds);
  if (added > 0) {
    const std::string problem = cache.save(tuned_, seconds);
    if (!problem.empty()) provenance_ += "; " + problem;
  }
  choices_ = TileChoices::defaults(*gemm_, problem_.dtype);
  for (int range = 0; range < TileChoices::kRanges; ++range) {
    const TunedRange& entry = tuned_[static_cast<std::size_t>(range)];
    if (entry.tuned) choices_.choices[range] = entry.choice;
  }
}

std::string Level06Compiled::plan() const {
  std::string text = fmt::format("isa {}, panels of {} columns, {} threads; {}\n", isa(),
                                 gemm_->panel_columns(), threads_, provenance_);
  for (int range = 0; range < TileChoices::kRanges; ++range) {
    if (TileChoices::first_row_of(range) > problem_.shape.tokens) break;
    const TileChoice& choice = choices_.choices[range];
    const TunedRange& entry = tuned_[static_cast<std::size_t>(range)];
    text += fmt::format(
        "rows per expert {:>3}..{:<4} tile {}x{} panels, chunk {}, prefetch {}, row part {}, "
        "{} tasks per thread, {}\n",
        TileChoices::first_row_of(range),
        std::min(TileChoices::last_row_of(range), problem_.shape.tokens), choice.shape.rows,
        choice.shape.panels, choice.chunk == 0 ? "whole" : std::to_string(choice.chunk),
        choice.prefetch ? "on" : "off",
        choice.row_part == 0 ? "all" : std::to_string(choice.row_part), choice.tasks_per_thread,
        !entry.tuned ? std::string("heuristic")
        : entry.gain == 1.0
            ? fmt::format("heuristic, confirmed {}", entry.date)
            : fmt::format("tuned {}, {:.2f}x the heuristic", entry.date, entry.gain));
  }
  return text;
}

void Level06Compiled::combine(const Workspace& space, const TensorView& y, std::int64_t index,
                              std::int64_t parts) const {
  constexpr std::int64_t kColumns = 512;  // few tokens still occupy all threads
  const std::int64_t hidden = problem_.shape.hidden;
  const std::int64_t top_k = shape_.top_k;
  const std::int64_t pieces = (hidden + kColumns - 1) / kColumns;
  const Range units = part_of(y.dim(0) * pieces, index, parts);
  for (std::int64_t unit = units.begin; unit < units.end; ++unit) {
    const std::int64_t token = unit / pieces;
    const std::int64_t column = unit % pieces * kColumns;
    const std::int64_t columns = std::min(kColumns, hidden - column);
    const std::int64_t* dst_row = space.permutation.dst_row + token * top_k;
    const float* weights = space.topk_weights + token * top_k;
    const std::int64_t at = token * hidden + column;
    if (y.dtype == DType::kF32) {
      kernels_->combine_f32(space.y_perm + column, hidden, dst_row, weights, top_k, columns,
                            y.as<float>() + at);
    } else {
      kernels_->combine_bf16(space.y_perm + column, hidden, dst_row, weights, top_k, columns,
                             y.as<BFloat16>() + at);
    }
  }
}

void Level06Compiled::forward(Context& context, const TensorView& x, const TensorView& y) {
  Problem problem = problem_;
  problem.shape.tokens = x.dim(0);
  const Shape shape = with_shared_slots(problem);
  const std::int64_t experts = problem.shape.experts;
  const bool has_router = problem.router.scoring != Scoring::kGiven;
  const Depths depths = padded_depths(*gemm_, problem);
  const Workspace space = take_workspace(context.arena, *gemm_, problem);
  for (Counter& counter : counters_) counter.value.store(0, std::memory_order_relaxed);

  space.token_offsets[0] = 0;
  space.token_offsets[1] = shape.tokens;
  const RowGroups token_group{space.token_offsets, 1, &choices_};
  const RowGroups expert_groups{space.permutation.expert_offsets, shape.experts, &choices_};
  if (has_router) plan_tasks(token_group, packed_router_.panels(), threads_, space.router_tasks);
  const GroupedGemm router{.kernels = gemm_,
                           .weights = &packed_router_,
                           .groups = token_group,
                           .tasks = space.router_tasks,
                           .a = space.packed_tokens,
                           .c = space.logits,
                           .c_columns = experts};
  const ActivationStep step = ActivationStep::of(problem.activation);
  const GroupedGemm gate_up{
      .kernels = gemm_,
      .weights = &gate_up_,
      .groups = expert_groups,
      .tasks = space.gate_up_tasks,
      .a = space.x_perm,
      .epilogue = step.kind == ActivationStep::Kind::kSwiGlu ? Epilogue::kSwiGlu : Epilogue::kAct,
      .act = space.act,
      .act_depth = depths.intermediate,
      .step = step,
      .bias = gate_up_bias_.empty() ? nullptr : gate_up_bias_.data(),
      .row_scale = space.row_scale};
  const GroupedGemm down{.kernels = gemm_,
                         .weights = &down_,
                         .groups = expert_groups,
                         .tasks = space.down_tasks,
                         .a = space.act,
                         .c = space.y_perm,
                         .c_columns = shape.hidden,
                         .bias = down_bias_.empty() ? nullptr : down_bias_.data()};

#pragma omp parallel num_threads(threads_)
  {
    const int index = omp_get_thread_num();
    const int parts = omp_get_num_threads();
    if (has_router) {
      pack_groups(*gemm_, token_group, x, nullptr, depths.hidden, index, parts,
                  space.packed_tokens);
#pragma omp barrier
      run_tasks(router, counters_[0].value);
#pragma omp barrier
    }
    const Range tokens = part_of(shape.tokens, index, parts);
    choose_experts(router_, x, tokens.begin, tokens.end - tokens.begin,
                   space.logits + tokens.begin * experts, context.routes,
                   space.slots_from(tokens.begin, shape.top_k));
#pragma omp barrier
#pragma omp single
    {
      space.group_by_expert(shape, shape.tokens);
      plan_tasks(expert_groups, gate_up_.panels(), parts, space.gate_up_tasks);
      plan_tasks(expert_groups, down_.panels(), parts, space.down_tasks);
    }
    pack_groups(*gemm_, expert_groups, x, space.permutation.src_row, depths.hidden, index, parts,
                space.x_perm);
#pragma omp barrier
    run_tasks(gate_up, counters_[1].value);
#pragma omp barrier
    run_tasks(down, counters_[2].value);
#pragma omp barrier
    combine(space, y, index, parts);
  }

  const std::int64_t routed = shape.routed_rows();
  const auto bytes = [](std::int64_t count) { return static_cast<std::uint64_t>(count); };
  context.record("route", bytes(shape.tokens * experts * 4), [&] {
    return fmt::format("packed router gemm m={} n={} k={}", shape.tokens, experts, shape.hidden);
  });
  context.record("permute", bytes(routed * depths.hidden * row_element_bytes(gemm_->row_layout)),
                 [&] { return fmt::format("pack {} rows into blocks by expert", routed); });
  context.record("grouped_gemm",
                 bytes(routed * depths.intermediate * row_element_bytes(gemm_->row_layout)), [&] {
                   return fmt::format("gate|up with the activation in the epilogue, {} tasks",
                                      space.gate_up_tasks[shape.experts].first_task);
                 });
  context.record("grouped_gemm", bytes(routed * shape.hidden * 4), [&] {
    return fmt::format("down, {} tasks", space.down_tasks[shape.experts].first_task);
  });
  context.record("unpermute", y.bytes(), [&] { return fmt::format("combine {} rows", routed); });
}

}  // namespace

std::unique_ptr<Level> make_level06_compiled() {
  return std::make_unique<Level06Compiled>();
}

}  // namespace moe::cpu
