// Level 05 · graphs — a plan of primitives recorded once, replayed in one parallel region.  builds on 04 (permute)
// Changes   every GEMM that any routing can ask for is made in prepare: one per weight shape and row
//           count of a closed menu, kMinRows..kMaxRows; larger groups are cut into blocks on the
//           menu, smaller ones run as kMinRows rows. Columns are cut into panels that threads own,
//           so forward forks once and meets at 5 barriers.
// Why       a new oneDNN primitive costs tens to hundreds of microseconds and level 04 pays it in
//           forward, for every row count it has not seen; a fork and join costs 1 to 2 us and level
//           04 pays E_hit·(2·panels + 1) of them. Weight bytes and FLOPs are unchanged:
//             weight bytes 3·E_hit·H·I·b     FLOPs 6·T·K·H·I + 2·T·H·E
//           The closer the useful time is to these costs (few tokens, small experts), the more a
//           replay is worth.
// Costs     memory for primitives that may never run, time in prepare to make them, and x_perm read
//           once per panel instead of once.
// Measured  docs/levels/level05_graphs.md
//
//   prepare:  GEMMs m = kMinRows..kMaxRows · (gate|up, down panel), router ─┐   arguments per thread
//   forward:  ┌──────────────── one parallel region, counts looked up ─────┴─────────────────────┐
//             route │ permute │ for (expert, panel): gate|up, swiglu │ for (…): down │ unpermute
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "core/dispatch.h"
#include "core/expert_set.h"
#include "core/level.h"
#include "core/threads.h"
#include "cpu/isa/act_rows.h"
#include "cpu/ops/expert_biases.h"
#include "cpu/ops/gemm_onednn.h"
#include "cpu/ops/packed_experts.h"
#include "cpu/ops/permute.h"
#include "cpu/ops/routed_rows.h"
#include "cpu/ops/router.h"

namespace moe::cpu {
namespace {

// Rows of one GEMM at most; larger groups are cut into equal blocks. At 128, groups a little larger
// than that became two blocks of half the size (docs/levels/level05_graphs.md#what-did-not-help).
constexpr std::int64_t kMaxRows = 256;
// Rows of one expert GEMM at least: a group of 1 to 3 rows runs as 4, the others being rows nobody
// reads. oneDNN's kernels for 1 and 2 rows reach a smaller share of the memory rate than its kernel
// for 4 (docs/levels/level05_graphs.md#why).
constexpr std::int64_t kMinRows = 4;
// Columns of a panel at most: gate|up of 256 rows x 2·512 columns, fp32, is 1 MiB per thread.
constexpr std::int64_t kMaxPanel = 512;

std::int64_t rows_in_block(std::int64_t rows) {
  return std::min(rows, kMaxRows);
}
std::int64_t row_blocks(std::int64_t rows) {
  return (rows + kMaxRows - 1) / kMaxRows;
}

/// Rows of the largest GEMM that a forward of this problem can ask for.
std::int64_t most_rows(const Problem& problem) {
  return std::max(rows_in_block(most_rows_of_expert(problem, problem.shape.tokens)), kMinRows);
}

/// Each thread's gate|up block lies where y_perm will be, T·K·H fp32 that nothing uses before the
/// down projection: a panel of K·H/(2·threads) columns fits there for any row count.
Panels gate_up_panels(const Shape& shape, int threads) {
  return Panels::split(shape.intermediate,
                       std::min(shape.top_k * shape.hidden / 2 / threads, kMaxPanel), threads);
}

Panels down_panels(const Shape& shape, int threads) {
  return Panels::split(shape.hidden, kMaxPanel, threads);
}

ExpertLayouts choose_layouts(const Problem& problem, int threads) {
  const Shape shape = with_shared_slots(problem);
  const std::int64_t expert_rows = std::max<std::int64_t>(shape.routed_rows() / shape.experts, 1);
  return {problem,
          gate_up_panels(shape, threads),
          down_panels(shape, threads),
          rows_in_block(shape.tokens),
          rows_in_block(expert_rows),
          1};
}

/// The GEMMs of one weight layout for m = fewest..most, and each thread's arguments for them.
class Menu {
 public:
  Menu(const onednn::WeightLayout& layout, std::int64_t fewest, std::int64_t most, int threads)
      : fewest_(fewest), calls_(static_cast<std::size_t>(threads)) {
    for (std::int64_t m = fewest; m <= most; ++m) {
      gemms_.emplace_back(layout, m, 1);
      scratch_bytes_ = std::max(scratch_bytes_, gemms_.back().scratch_bytes());
    }
    for (auto& calls : calls_) {
      for (const onednn::Gemm& gemm : gemms_) calls.emplace_back(gemm);
    }
  }

  [[nodiscard]] std::int64_t fewest() const { return fewest_; }
  [[nodiscard]] std::size_t size() const { return gemms_.size(); }
  [[nodiscard]] std::size_t scratch_bytes() const { return scratch_bytes_; }
  [[nodiscard]] onednn::GemmCall& call(int thread, std::int64_t m) {
    return calls_[static_cast<std::size_t>(thread)][static_cast<std::size_t>(m - fewest_)];
  }

 private:
  std::int64_t fewest_;
  std::size_t scratch_bytes_ = 0;
  std::vector<onednn::Gemm> gemms_;                   // [most - fewest + 1]
  std::vector<std::vector<onednn::GemmCall>> calls_;  // [threads][most - fewest + 1]
};

struct Buffers : RoutedRows {
  float* logits = nullptr;  // [T, E]
  // [T·K + kMinRows - 1, H] rows grouped by expert, then rows nobody needs.
  std::byte* x_perm = nullptr;
  std::byte* act = nullptr;  // [T·K + kMinRows - 1, I]
  float* y_perm = nullptr;   // per down panel [T·K, width]
  // Per thread [rows, 2·width], dead before y_perm is written and in the same memory.
  float* gate_up = nullptr;
  std::int64_t gate_up_block = 0;  // elements per thread
  float* few_rows = nullptr;       // per thread [kMinRows, width]: down products of small groups
  std::int64_t few_rows_block = 0;
};

template <class Memory>
Buffers carve(Memory& memory, const Problem& problem, int threads, std::int64_t tokens) {
  const Shape shape = with_shared_slots(problem);
  const std::int64_t routed = tokens * shape.top_k;
  const auto element = static_cast<std::int64_t>(size_of(problem.dtype));
  Buffers b{take_routed_rows(memory, problem, tokens)};
  b.logits = memory.template take<float>(tokens * problem.shape.experts);
  b.x_perm = memory.template take<std::byte>((routed + kMinRows - 1) * shape.hidden * element);
  b.act = memory.template take<std::byte>((routed + kMinRows - 1) * shape.intermediate * element);
  b.gate_up_block = std::max(rows_in_block(most_rows_of_expert(problem, tokens)), kMinRows) * 2 *
                    gate_up_panels(shape, threads).width;
  b.y_perm =
      memory.template take<float>(std::max(routed * shape.hidden, threads * b.gate_up_block));
  b.gate_up = b.y_perm;
  b.few_rows_block = kMinRows * down_panels(shape, threads).width;
  b.few_rows = memory.template take<float>(threads * b.few_rows_block);
  return b;
}

class Graphs final : public Level {
 public:
  [[nodiscard]] Features features() const override { return Features::all(); }
  [[nodiscard]] std::string unsupported(const Problem& problem,
                                        const ExecutionOptions& options) const override {
    return onednn::unavailable(problem.dtype, parse_isa(options.isa));
  }

  [[nodiscard]] MemoryNeeds memory(const Problem& problem,
                                   const ExecutionOptions& options) const override {
    onednn::claim_isa(problem.dtype, parse_isa(options.isa));
    ArenaPlan arena;
    carve(arena, problem, options.threads, problem.shape.tokens);
    const ExpertLayouts layouts = choose_layouts(problem, options.threads);
    const auto primitives = (1 + layouts.gate_up.kinds() + layouts.down.kinds()) *
                            static_cast<std::uint64_t>(most_rows(problem));
    const auto threads = static_cast<std::uint64_t>(options.threads);
    return {.workspace = arena.bytes(),
            .prepared = layouts.packed_bytes(with_shared_slots(problem).experts) +
                        ExpertBiases::bytes(problem) +
                        primitives * (onednn::kGemmBytes + threads * onednn::kGemmCallBytes)};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& options) override {
    onednn::claim_isa(problem.dtype, parse_isa(options.isa));
    problem_ = problem;
    shape_ = with_shared_slots(problem);
    threads_ = options.threads;
    act_rows_ = &act_rows_for(parse_isa(options.isa));
    router_ = {&kernels_for(parse_isa(options.isa)), problem, weights};
    biases_ = ExpertBiases(problem, weights);
    layouts_ = std::make_unique<ExpertLayouts>(choose_layouts(problem, threads_));
    {
      const onednn::ThreadScope scope(threads_);
      weights_ = std::make_unique<PackedExperts>(*layouts_, problem, weights);
    }
    const auto add = [&](const onednn::WeightLayout& layout, std::int64_t fewest) {
      menus_.emplace_back(layout, fewest, most_rows(problem), threads_);
      scratch_bytes_ =
          std::max(scratch_bytes_, round_up(menus_.back().scratch_bytes(), kArenaAlignment));
    };
    add(layouts_->router, 1);  // reads the caller's x, beyond which nothing may be read
    gate_up_menu_ = menus_.size();
    for (std::size_t kind = 0; kind < layouts_->gate_up.kinds(); ++kind) {
      add(layouts_->gate_up.layout(kind), kMinRows);
    }
    down_menu_ = menus_.size();
    for (std::size_t kind = 0; kind < layouts_->down.kinds(); ++kind) {
      add(layouts_->down.layout(kind), kMinRows);
    }
    scratch_ = HostBuffer(scratch_bytes_ * static_cast<std::size_t>(threads_));
  }

  void forward(Context& context, const TensorView& x, const TensorView& y) override {
    const Buffers b = carve(context.arena, problem_, threads_, x.dim(0));
    const std::int64_t tokens = x.dim(0);
    const Shape& shape = shape_;
    std::atomic<int> failure = 0;
#pragma omp parallel num_threads(threads_)
    {
      const Replay replay{
          b, x, y, context.routes, tokens, omp_get_thread_num(), omp_get_num_threads(), &failure};
      route(replay);
#pragma omp barrier
#pragma omp single
      b.group_by_expert(shape, tokens);
      permute(replay);
#pragma omp barrier
      gate_up(replay);
#pragma omp barrier
      down(replay);
#pragma omp barrier
      unpermute(replay);
    }
    onednn::throw_on_failure(failure);
    record(context, tokens, b);
  }

  [[nodiscard]] std::string isa() const override {
    return std::string(name_of(layouts_->down.layout(0).isa()));
  }
  [[nodiscard]] int threads() const override {
    return threads_;
  }
  [[nodiscard]] std::string plan() const override {
    std::size_t primitives = 0;
    for (const Menu& menu : menus_) primitives += menu.size();
    const std::int64_t most = most_rows(problem_);
    const Panels& gate_up = layouts_->gate_up.panels();
    const Panels& down = layouts_->down.panels();
    return fmt::format(
        "{}, {} primitives (experts {} to {} rows, router 1 to {}), {} gate|up panels of {}, {} "
        "down panels of {} columns",
        onednn::version(), primitives, kMinRows, most, most, gate_up.count(), gate_up.width,
        down.count(), down.width);
  }

 private:
  /// What one thread of one replay knows.
  struct Replay {
    const Buffers& b;
    const TensorView& x;
    const TensorView& y;
    const Routes& given;
    std::int64_t tokens;
    int thread;
    int team;
    std::atomic<int>* failure;
  };

  void run(const Replay& replay, std::size_t menu, std::int64_t m, const void* a,
           const onednn::PackedMatrix& w, float* c) {
    std::byte* scratch =
        scratch_.as<std::byte>() + static_cast<std::size_t>(replay.thread) * scratch_bytes_;
    Menu& gemms = menus_[menu];
    const int status = gemms.call(replay.thread, std::max(m, gemms.fewest())).run(a, w, c, scratch);
    if (status != 0) replay.failure->store(status, std::memory_order_relaxed);
  }

  /// body(expert, panel, first row, rows) for this thread's share of the (expert, panel) pairs: every
  /// team-th one. All row blocks of a pair stay with one thread, whose cache keeps the panel.
  template <class Body>
  void for_each_task(const Replay& replay, std::int64_t panels, const Body& body) {
    const std::int64_t* offsets = replay.b.permutation.expert_offsets;
    std::int64_t task = 0;
    for (std::int64_t expert = 0; expert < shape_.experts; ++expert) {
      const std::int64_t rows = offsets[expert + 1] - offsets[expert];
      if (rows == 0) continue;
      for (std::int64_t panel = 0; panel < panels; ++panel, ++task) {
        if (task % replay.team != replay.thread) continue;
        for (std::int64_t block = 0; block < row_blocks(rows); ++block) {
          const Range part = part_of(rows, block, row_blocks(rows));
          body(expert, panel, offsets[expert] + part.begin, part.end - part.begin);
        }
      }
    }
  }

  void route(const Replay& replay) {
    const Shape& shape = shape_;
    const Buffers& b = replay.b;
    const std::int64_t experts = problem_.shape.experts;
    const Range mine = part_of(replay.tokens, replay.thread, replay.team);
    const std::int64_t count = mine.end - mine.begin;
    const std::size_t row = static_cast<std::size_t>(shape.hidden) * size_of(problem_.dtype);
    for (std::int64_t block = 0; block < row_blocks(count); ++block) {
      const Range part = part_of(count, block, row_blocks(count));
      const std::int64_t first = mine.begin + part.begin;
      const std::int64_t rows = part.end - part.begin;
      if (layouts_->routed) {
        run(replay, 0, rows, replay.x.as<std::byte>() + static_cast<std::size_t>(first) * row,
            weights_->router(), b.logits + first * experts);
      }
      choose_experts(router_, replay.x, first, rows, b.logits + first * experts, replay.given,
                     b.slots_from(first, shape.top_k));
    }
  }

  void permute(const Replay& replay) {
    const Shape& shape = shape_;
    const std::int64_t routed = replay.b.permutation.expert_offsets[shape.experts];
    const Range mine = part_of(routed, replay.thread, replay.team);
    const std::size_t element = size_of(problem_.dtype);
    const auto row = static_cast<std::size_t>(shape.hidden) * element;
    permute_rows(replay.x.data, replay.b.permutation.src_row, mine.begin, mine.end, row,
                 replay.b.x_perm);
    if (replay.thread + 1 < replay.team) return;
    // Rows after the last: multiplied when the last group is small, never read. Zero, because what
    // an earlier forward left there may read as denormal numbers.
    const auto after = static_cast<std::size_t>(routed);
    constexpr auto kAfter = static_cast<std::size_t>(kMinRows - 1);
    const auto act_row = static_cast<std::size_t>(shape.intermediate) * element;
    std::memset(replay.b.x_perm + after * row, 0, kAfter * row);
    std::memset(replay.b.act + after * act_row, 0, kAfter * act_row);
  }

  void gate_up(const Replay& replay) {
    const Shape& shape = shape_;
    const Panels& panels = layouts_->gate_up.panels();
    float* block = replay.b.gate_up + replay.thread * replay.b.gate_up_block;
    with_element_type(problem_.dtype, [&]<class Element>() {
      const auto* x_perm = reinterpret_cast<const Element*>(replay.b.x_perm);
      auto* act = reinterpret_cast<Element*>(replay.b.act);
      for_each_task(
          replay, panels.count(),
          [&](std::int64_t expert, std::int64_t panel, std::int64_t first, std::int64_t rows) {
            run(replay, gate_up_menu_ + layouts_->gate_up.kind_of(panel), rows,
                x_perm + first * shape.hidden, weights_->gate_up(expert, panel), block);
            ActBlock sums{.sums = block,
                          .rows = rows,
                          .columns = panels.width_of(panel),
                          .step = ActivationStep::of(problem_.activation),
                          .gate_bias = biases_.gate(expert, panels.first(panel)),
                          .up_bias = biases_.up(expert, panels.first(panel))};
            if (replay.b.row_scale != nullptr) sums.row_scale = replay.b.row_scale + first;
            (*act_rows_)(sums, act + first * shape.intermediate + panels.first(panel),
                         shape.intermediate);
          });
    });
  }

  void down(const Replay& replay) {
    const Shape& shape = shape_;
    const Panels& panels = layouts_->down.panels();
    const std::int64_t routed = replay.tokens * shape.top_k;
    const auto row = static_cast<std::size_t>(shape.intermediate) * size_of(problem_.dtype);
    float* few_rows = replay.b.few_rows + replay.thread * replay.b.few_rows_block;
    for_each_task(
        replay, panels.count(),
        [&](std::int64_t expert, std::int64_t panel, std::int64_t first, std::int64_t rows) {
          const std::int64_t width = panels.width_of(panel);
          float* out = replay.b.y_perm + routed * panels.first(panel) + first * width;
          // The rows after a small group belong to the next expert: only its own are copied out.
          const bool few = rows < kMinRows;
          run(replay, down_menu_ + layouts_->down.kind_of(panel), rows,
              replay.b.act + static_cast<std::size_t>(first) * row, weights_->down(expert, panel),
              few ? few_rows : out);
          if (few) std::copy_n(few_rows, rows * width, out);
          biases_.add_down(expert, panels.first(panel), width, rows, out);
        });
  }

  void unpermute(const Replay& replay) {
    const Shape& shape = shape_;
    const Panels& panels = layouts_->down.panels();
    const std::int64_t routed = replay.tokens * shape.top_k;
    // (panel, token) pairs, so that one token still occupies several threads.
    const Range mine = part_of(panels.count() * replay.tokens, replay.thread, replay.team);
    with_element_type(problem_.dtype, [&]<class Element>() {
      for (std::int64_t panel = mine.begin / replay.tokens; panel * replay.tokens < mine.end;
           ++panel) {
        const std::int64_t first = std::max(mine.begin - panel * replay.tokens, std::int64_t{0});
        const std::int64_t end = std::min(mine.end - panel * replay.tokens, replay.tokens);
        unpermute_rows(replay.b.y_perm + routed * panels.first(panel), replay.b.permutation.dst_row,
                       replay.b.topk_weights, first, end, shape.top_k, panels.width_of(panel),
                       replay.y.as<Element>() + panels.first(panel), shape.hidden);
      }
    });
  }

  void record(Context& context, std::int64_t tokens, const Buffers& b) const;

  Problem problem_;
  Shape shape_;  // with the shared expert's parts
  int threads_ = 1;
  const ActRows* act_rows_ = nullptr;
  RouterSetup router_;
  ExpertBiases biases_;
  std::unique_ptr<ExpertLayouts> layouts_;
  std::unique_ptr<PackedExperts> weights_;
  std::vector<Menu> menus_;  // router, then gate|up per kind of panel, then down per kind of panel
  std::size_t gate_up_menu_ = 0;
  std::size_t down_menu_ = 0;
  HostBuffer scratch_;  // per thread, the library's
  std::size_t scratch_bytes_ = 0;
};

void Graphs::record(Context& context, std::int64_t tokens, const Buffers& b) const {
  if (context.trace == nullptr) return;
  const Shape& shape = shape_;
  const std::int64_t routed = tokens * shape.top_k;
  context.record("replay", static_cast<std::uint64_t>(routed * shape.hidden) * sizeof(float),
                 [&] { return fmt::format("{} threads, {} barriers, {}", threads_, 5, plan()); });
  for (std::int64_t expert = 0; expert < shape.experts; ++expert) {
    const std::int64_t rows =
        b.permutation.expert_offsets[expert + 1] - b.permutation.expert_offsets[expert];
    if (rows == 0) continue;
    context.record(
        "replay_expert", static_cast<std::uint64_t>(rows * shape.hidden) * sizeof(float), [&] {
          return fmt::format("expert {} rows {} in {} blocks x {} gate|up panels, {} down panels",
                             expert, rows, row_blocks(rows), layouts_->gate_up.panels().count(),
                             layouts_->down.panels().count());
        });
  }
}

}  // namespace

std::unique_ptr<Level> make_level05_graphs() {
  return std::make_unique<Graphs>();
}

}  // namespace moe::cpu
