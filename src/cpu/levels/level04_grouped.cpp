// Level 04 · grouped — permute tokens by expert, then one GEMM per non-empty expert.   builds on 03
// (arena) Changes   routed rows of one expert become contiguous, so its weights are read once for
// all of them. Why       weight bytes  03: 3·T·K·H·I·b    04: 3·E_hit·H·I·b    FLOPs 6·T·K·H·I +
// 2·T·H·E (unchanged)
//           m ≈ T·K/E rows now share each weight: FLOPs per weight byte grow from 2/b to 2·m/b.
// Costs     permute and unpermute move T·K·H·(2·b + 2·4) bytes; weights are kept a second time in
// the
//           library's layout; 2 GEMMs and one SwiGLU pass per expert, each a fork and a join of all
//           threads; and a new oneDNN primitive (code generation included) whenever an expert
//           brings an m that this layer has not seen: with routing, that is most of the first steps
//           → level 05.
// Measured  docs/levels/level04_grouped.md
//
//   x[T,H] ─permute─▶ x_perm[TK,H] ─gate_up─▶ block ─swiglu─▶ act[TK,I] ─down─▶ y_perm[TK,H]
//   ─unpermute─▶ y[T,H]
//                     └ e0 ┘└─ e1 ─┘└ e2 ┘    [≤256, 2·panel]
//                     segment e = rows expert_offsets[e] .. expert_offsets[e+1]
#include <omp.h>

#include <algorithm>
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

// Rows of one GEMM at most: enough that weights from DRAM cost less than the arithmetic on them
// (2·256/b FLOPs per byte), few enough that A and the gate|up block stay in the shared cache. It
// also bounds the number of primitives that a layer can come to hold.
constexpr std::int64_t kMaxRows = 256;
// Intermediate columns per gate|up GEMM at most: a block of 256 x 2·2048 fp32 is 4 MiB.
constexpr std::int64_t kMaxPanel = 2048;

/// gate|up of one panel live where y_perm will be, T·K·H fp32 that nothing else uses until the down
/// projection: a panel of K·H/2 columns fits there at any row count.
Panels gate_up_panels(const Shape& shape) {
  return Panels::split(shape.intermediate, std::min(shape.top_k * shape.hidden / 2, kMaxPanel), 1);
}

struct Buffers : RoutedRows {
  float* logits = nullptr;      // [T, E]
  std::byte* x_perm = nullptr;  // [T·K, H] rows grouped by expert
  std::byte* act = nullptr;     // [T·K, I]
  float* gate_up = nullptr;     // [min(T, kMaxRows), 2·panel], dead before y_perm is written
  float* y_perm = nullptr;      // [T·K, H], the same memory
};

template <class Memory>
Buffers carve(Memory& memory, const Problem& problem, std::int64_t tokens) {
  const Shape shape = with_shared_slots(problem);
  const std::int64_t routed = tokens * shape.top_k;
  const auto element = static_cast<std::int64_t>(size_of(problem.dtype));
  Buffers b{take_routed_rows(memory, problem, tokens)};
  b.logits = memory.template take<float>(tokens * problem.shape.experts);
  b.x_perm = memory.template take<std::byte>(routed * shape.hidden * element);
  b.act = memory.template take<std::byte>(routed * shape.intermediate * element);
  const std::int64_t block =
      std::min(most_rows_of_expert(problem, tokens), kMaxRows) * 2 * gate_up_panels(shape).width;
  b.y_perm = memory.template take<float>(std::max(routed * shape.hidden, block));
  b.gate_up = b.y_perm;
  return b;
}

/// Row blocks of at most kMaxRows; their sizes (part_of) differ by one at most.
std::int64_t row_blocks(std::int64_t rows) {
  return (rows + kMaxRows - 1) / kMaxRows;
}

std::int64_t rows_in_block(std::int64_t rows) {
  return std::min(rows, kMaxRows);
}

ExpertLayouts choose_layouts(const Problem& problem, int threads) {
  const Shape shape = with_shared_slots(problem);
  const std::int64_t expert_rows = std::max<std::int64_t>(shape.routed_rows() / shape.experts, 1);
  return {problem,
          gate_up_panels(shape),
          {shape.hidden, shape.hidden},
          rows_in_block(shape.tokens),
          rows_in_block(expert_rows),
          threads};
}

/// The GEMMs made so far for one weight layout, one per row count.
class GemmFamily {
 public:
  GemmFamily(const onednn::WeightLayout& layout, int threads)
      : layout_(&layout), threads_(threads), by_rows_(kMaxRows) {}

  [[nodiscard]] const onednn::WeightLayout& layout() const { return *layout_; }

  struct Entry {
    Entry(const onednn::WeightLayout& layout, std::int64_t m, int threads)
        : gemm(layout, m, threads), call(gemm) {}
    onednn::Gemm gemm;
    onednn::GemmCall call;
  };
  /// The GEMM of m <= kMaxRows rows; `created` tells whether it was made now.
  Entry& at(std::int64_t m, bool& created) {
    std::unique_ptr<Entry>& entry = by_rows_[static_cast<std::size_t>(m - 1)];
    created = entry == nullptr;
    if (created) entry = std::make_unique<Entry>(*layout_, m, threads_);
    return *entry;
  }

 private:
  const onednn::WeightLayout* layout_;
  int threads_;
  std::vector<std::unique_ptr<Entry>> by_rows_;
};

class Grouped final : public Level {
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
    carve(arena, problem, problem.shape.tokens);
    const ExpertLayouts layouts = choose_layouts(problem, options.threads);
    const auto primitives = (2 + layouts.gate_up.kinds()) *
                            static_cast<std::uint64_t>(
                                rows_in_block(most_rows_of_expert(problem, problem.shape.tokens)));
    return {.workspace = arena.bytes(),
            .prepared = layouts.packed_bytes(with_shared_slots(problem).experts) +
                        ExpertBiases::bytes(problem) +
                        primitives * (onednn::kGemmBytes + onednn::kGemmCallBytes)};
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
    const onednn::ThreadScope scope(threads_);
    layouts_ = std::make_unique<ExpertLayouts>(choose_layouts(problem, threads_));
    weights_ = std::make_unique<PackedExperts>(*layouts_, problem, weights);
    router_gemms_ = std::make_unique<GemmFamily>(layouts_->router, threads_);
    down_gemms_ = std::make_unique<GemmFamily>(layouts_->down.layout(0), threads_);
    for (std::size_t kind = 0; kind < layouts_->gate_up.kinds(); ++kind) {
      gate_up_gemms_.emplace_back(layouts_->gate_up.layout(kind), threads_);
    }
  }

  void forward(Context& context, const TensorView& x, const TensorView& y) override {
    const onednn::ThreadScope scope(threads_);
    const Buffers b = carve(context.arena, problem_, x.dim(0));
    route(context, x, b);
    permute(context, x, b);
    for (std::int64_t expert = 0; expert < shape_.experts; ++expert) gate_up(context, expert, b);
    for (std::int64_t expert = 0; expert < shape_.experts; ++expert) down(context, expert, b);
    unpermute(context, y, b);
  }

  [[nodiscard]] std::string isa() const override {
    return std::string(name_of(layouts_->down.layout(0).isa()));
  }
  [[nodiscard]] int threads() const override { return threads_; }
  [[nodiscard]] std::string plan() const override {
    const Panels& panels = layouts_->gate_up.panels();
    return fmt::format(
        "{}, {} threads inside each GEMM, at most {} rows per GEMM, {} gate|up panels of {} "
        "columns",
        onednn::version(), threads_, kMaxRows, panels.count(), panels.width);
  }

 private:
  void run_gemm(Context& context, const char* op, std::int64_t expert, GemmFamily& family,
                std::int64_t m, const void* a, const onednn::PackedMatrix& w, float* c);
  void route(Context& context, const TensorView& x, const Buffers& b);
  void permute(Context& context, const TensorView& x, const Buffers& b);
  void gate_up(Context& context, std::int64_t expert, const Buffers& b);
  void down(Context& context, std::int64_t expert, const Buffers& b);
  void unpermute(Context& context, const TensorView& y, const Buffers& b);

  Problem problem_;
  Shape shape_;  // with the shared expert's parts
  int threads_ = 1;
  const ActRows* act_rows_ = nullptr;
  RouterSetup router_;
  ExpertBiases biases_;
  std::unique_ptr<ExpertLayouts> layouts_;
  std::unique_ptr<PackedExperts> weights_;
  std::unique_ptr<GemmFamily> router_gemms_;
  std::vector<GemmFamily> gate_up_gemms_;  // per kind of panel
  std::unique_ptr<GemmFamily> down_gemms_;
  HostBuffer scratch_;  // the library's, for one GEMM at a time
};

void Grouped::run_gemm(Context& context, const char* op, std::int64_t expert, GemmFamily& family,
                       std::int64_t m, const void* a, const onednn::PackedMatrix& w, float* c) {
  bool created = false;
  GemmFamily::Entry& entry = family.at(m, created);
  if (entry.gemm.scratch_bytes() > scratch_.size())
    scratch_ = HostBuffer(entry.gemm.scratch_bytes());
  onednn::throw_on_failure(entry.call.run(a, w, c, scratch_.data()));
  const std::int64_t n = family.layout().n();
  context.record(op, static_cast<std::uint64_t>(m * n) * sizeof(float), [&] {
    return fmt::format("expert {} m={} n={} k={} {} primitive {}", expert, m, n,
                       family.layout().k(), entry.gemm.implementation(),
                       created ? "created" : "reused");
  });
}

void Grouped::route(Context& context, const TensorView& x, const Buffers& b) {
  const Shape& shape = shape_;
  const std::int64_t tokens = x.dim(0);
  const std::int64_t experts = problem_.shape.experts;
  const std::size_t row = static_cast<std::size_t>(shape.hidden) * size_of(problem_.dtype);
  for (std::int64_t block = 0; layouts_->routed && block < row_blocks(tokens); ++block) {
    const Range rows = part_of(tokens, block, row_blocks(tokens));
    run_gemm(context, "gemm_router", 0, *router_gemms_, rows.end - rows.begin,
             x.as<std::byte>() + static_cast<std::size_t>(rows.begin) * row, weights_->router(),
             b.logits + rows.begin * experts);
  }
#pragma omp parallel for schedule(static) num_threads(threads_)
  for (std::int64_t token = 0; token < tokens; ++token) {
    choose_experts(router_, x, token, 1, b.logits + token * experts, context.routes,
                   b.slots_from(token, shape.top_k));
  }
  b.group_by_expert(shape, tokens);
  context.record("route", static_cast<std::uint64_t>(tokens * shape.top_k) * 8, [&] {
    return fmt::format("{} tokens, top {} of {}", tokens, problem_.shape.top_k, experts);
  });
}

void Grouped::permute(Context& context, const TensorView& x, const Buffers& b) {
  const std::int64_t routed = b.permutation.expert_offsets[shape_.experts];
  const std::size_t row = static_cast<std::size_t>(shape_.hidden) * size_of(problem_.dtype);
#pragma omp parallel num_threads(threads_)
  {
    const Range rows = part_of(routed, omp_get_thread_num(), omp_get_num_threads());
    permute_rows(x.data, b.permutation.src_row, rows.begin, rows.end, row, b.x_perm);
  }
  context.record("permute", static_cast<std::uint64_t>(routed) * row,
                 [&] { return fmt::format("{} rows of {} bytes by expert", routed, row); });
}

void Grouped::gate_up(Context& context, std::int64_t expert, const Buffers& b) {
  const Shape& shape = problem_.shape;
  const Panels& panels = layouts_->gate_up.panels();
  const std::size_t element = size_of(problem_.dtype);
  const std::int64_t segment = b.permutation.expert_offsets[expert];
  const std::int64_t segment_rows = b.permutation.expert_offsets[expert + 1] - segment;
  for (std::int64_t panel = 0; panel < panels.count(); ++panel) {
    const std::int64_t columns = panels.width_of(panel);
    for (std::int64_t block = 0; block < row_blocks(segment_rows); ++block) {
      const Range rows = part_of(segment_rows, block, row_blocks(segment_rows));
      const std::int64_t first = segment + rows.begin;
      const std::int64_t m = rows.end - rows.begin;
      run_gemm(context, "gemm_gate_up", expert, gate_up_gemms_[layouts_->gate_up.kind_of(panel)], m,
               b.x_perm + static_cast<std::size_t>(first * shape.hidden) * element,
               weights_->gate_up(expert, panel), b.gate_up);
      with_element_type(problem_.dtype, [&]<class Element>() {
        Element* act =
            reinterpret_cast<Element*>(b.act) + first * shape.intermediate + panels.first(panel);
        const auto activate = [&](Range part) {
          const std::int64_t sums = part.begin * layouts_->gate_up.matrices() * columns;
          ActBlock rows_of_part{.sums = b.gate_up + sums,
                                .rows = part.end - part.begin,
                                .columns = columns,
                                .step = ActivationStep::of(problem_.activation),
                                .gate_bias = biases_.gate(expert, panels.first(panel)),
                                .up_bias = biases_.up(expert, panels.first(panel))};
          if (b.row_scale != nullptr) rows_of_part.row_scale = b.row_scale + first + part.begin;
          (*act_rows_)(rows_of_part, act + part.begin * shape.intermediate, shape.intermediate);
        };
        // Below a few thousand elements the fork costs more than the work. (An if clause on the
        // region would do the same, but switching team sizes makes libgomp allocate a new team.)
        constexpr std::int64_t kSerialElements = 4096;
        if (m * columns <= kSerialElements) {
          activate({0, m});
        } else {
#pragma omp parallel num_threads(threads_)
          activate(part_of(m, omp_get_thread_num(), omp_get_num_threads()));
        }
      });
      context.record("activation", static_cast<std::uint64_t>(m * columns) * element, [&] {
        return fmt::format("expert {} {} rows x {} columns", expert, m, columns);
      });
    }
  }
}

void Grouped::down(Context& context, std::int64_t expert, const Buffers& b) {
  const Shape& shape = problem_.shape;
  const std::int64_t segment = b.permutation.expert_offsets[expert];
  const std::int64_t segment_rows = b.permutation.expert_offsets[expert + 1] - segment;
  for (std::int64_t block = 0; block < row_blocks(segment_rows); ++block) {
    const Range rows = part_of(segment_rows, block, row_blocks(segment_rows));
    const std::int64_t first = segment + rows.begin;
    run_gemm(context, "gemm_down", expert, *down_gemms_, rows.end - rows.begin,
             b.act + static_cast<std::size_t>(first * shape.intermediate) * size_of(problem_.dtype),
             weights_->down(expert, 0), b.y_perm + first * shape.hidden);
    biases_.add_down(expert, 0, shape.hidden, rows.end - rows.begin,
                     b.y_perm + first * shape.hidden);
  }
}

void Grouped::unpermute(Context& context, const TensorView& y, const Buffers& b) {
  const std::int64_t hidden = problem_.shape.hidden;
  with_element_type(problem_.dtype, [&]<class Element>() {
#pragma omp parallel num_threads(threads_)
    {
      const Range tokens = part_of(y.dim(0), omp_get_thread_num(), omp_get_num_threads());
      unpermute_rows(b.y_perm, b.permutation.dst_row, b.topk_weights, tokens.begin, tokens.end,
                     shape_.top_k, hidden, y.as<Element>(), hidden);
    }
  });
  context.record("unpermute", y.bytes(), [&] {
    return fmt::format("{} tokens, weighted sum of {} rows", y.dim(0), shape_.top_k);
  });
}

}  // namespace

std::unique_ptr<Level> make_level04_grouped() {
  return std::make_unique<Grouped>();
}

}  // namespace moe::cpu
