// Level 03 · memefficient — weights read in place, a small arena, no allocation in forward.
// Builds on 02.
// Changes   the gather is gone: a routed row multiplies with its expert's matrices where they lie.
//           Tokens pass through in chunks of C = min(T, kChunkTokens), all scratch comes from an
//           arena that was allocated once, and the weighted sum over the K experts is taken as the
//           down products are made, so y_rows does not exist. SwiGLU stays fused (level 02).
// Why       nothing that can be streamed is stored, so it runs at any T:
//             weight bytes    02: 3·T·K·H·I·b read, written, read again  03: 3·T·K·H·I·b read
//             scratch bytes   02: T·K·H·I·b                              03: C·(E·4 + K·(8 + I·b))
//           FLOPs are unchanged.
// Costs     every routed row still reads all of its expert's weights: with m rows per expert the
//           same matrix comes from memory m times, and a matrix-vector product does 2 FLOPs per
//           weight read. Level 04 reads it once.
// Measured  docs/levels/level03_memefficient.md
//
//   for each chunk of tokens:  route ─▶ act[C·K,I] = swiglu(gate_e·x, up_e·x)
//                              ─▶ y[t] = Σ_k w_k·(down_e·act)
#include <algorithm>
#include <array>

#include "core/dispatch.h"
#include "core/expert_set.h"
#include "core/level.h"
#include "cpu/ops/activation.h"
#include "cpu/ops/router.h"
#include "cpu/ops/row_blocks.h"

namespace moe::cpu {
namespace {

/// Enough rows that the barriers between the three steps of a chunk cost nothing beside the chunk's
/// weight reads (at the lab's shape 32·2 rows read 1.6 GB), few enough that the scratch stays in
/// L2.
constexpr std::int64_t kChunkTokens = 32;

template <class Element>
struct Scratch {
  float* logits = nullptr;           // [C,E]
  std::int32_t* topk_idx = nullptr;  // [C,K]
  float* topk_weights = nullptr;     // [C,K]
  float* input_weights = nullptr;    // [C,K] where weights multiply the input
  Element* act = nullptr;            // [C·K,I]

  /// The one description of the arena: run on an ArenaPlan it yields the size, on an Arena the
  /// blocks.
  template <class Memory>
  static Scratch carve(Memory& memory, const Problem& problem) {
    const Shape shape = with_shared_slots(problem);
    const std::int64_t tokens = std::min(shape.tokens, kChunkTokens);
    Scratch scratch;
    scratch.logits = memory.template take<float>(tokens * problem.shape.experts);
    scratch.topk_idx = memory.template take<std::int32_t>(tokens * shape.top_k);
    scratch.topk_weights = memory.template take<float>(tokens * shape.top_k);
    if (problem.router.weight_on_input) {
      scratch.input_weights = memory.template take<float>(tokens * shape.top_k);
    }
    scratch.act = memory.template take<Element>(tokens * shape.top_k * shape.intermediate);
    return scratch;
  }
};

class MemEfficient final : public Level {
 public:
  [[nodiscard]] Features features() const override { return Features::all(); }
  [[nodiscard]] MemoryNeeds memory(const Problem& problem, const ExecutionOptions&) const override {
    ArenaPlan plan;
    with_element_type(problem.dtype,
                      [&]<class Element>() { Scratch<Element>::carve(plan, problem); });
    return {.workspace = plan.bytes()};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    problem_ = problem;
    shape_ = with_shared_slots(problem);
    threads_ = execution.threads;
    kernels_ = &kernels_for(parse_isa(execution.isa));
    router_ = {kernels_, problem, weights};
    experts_ = ExpertSet(problem, weights);
  }

  void forward(Context& context, const TensorView& x, const TensorView& y) override {
    with_element_type(problem_.dtype, [&]<class Element>() {
      const auto scratch = Scratch<Element>::carve(context.arena, problem_);
      for (std::int64_t first = 0; first < x.dim(0); first += kChunkTokens) {
        run_chunk(context, scratch, x, y, first, std::min(kChunkTokens, x.dim(0) - first));
      }
    });
  }

  [[nodiscard]] std::string isa() const override {
    return std::string(name_of(kernels_->used_for(problem_.dtype)));
  }
  [[nodiscard]] int threads() const override { return threads_; }

 private:
  template <class Element>
  void run_chunk(Context& context, const Scratch<Element>& scratch, const TensorView& x,
                 const TensorView& y, std::int64_t first_token, std::int64_t tokens) {
    const Shape& shape = shape_;
    const std::int64_t hidden = shape.hidden;
    const std::int64_t intermediate = shape.intermediate;
    route(router_, x, first_token, tokens, threads_, scratch.logits, context.routes,
          {scratch.topk_idx, scratch.topk_weights, scratch.input_weights});
    context.record("route", static_cast<std::uint64_t>(tokens * shape.top_k) * sizeof(float),
                   [&] { return fmt::format("tokens {}..{}", first_token, first_token + tokens); });

    const Element* inputs = x.as<const Element>() + first_token * hidden;
    const ActivationStep step = ActivationStep::of(problem_.activation);
    for_each_row_block(
        tokens * shape.top_k, intermediate, threads_,
        [&](std::int64_t row, std::int64_t begin, std::int64_t end) {
          if (scratch.topk_idx[row] < 0) return;
          const ExpertMatrices expert = experts_.at(scratch.topk_idx[row]);
          const Element* input = inputs + row / shape.top_k * hidden;
          const float scale = scratch.input_weights == nullptr ? 1.0F : scratch.input_weights[row];
          const auto project = [&](const std::byte* matrix, const float* bias, std::int64_t i) {
            if (matrix == nullptr) return 0.0F;
            const auto* weights = reinterpret_cast<const Element*>(matrix) + i * hidden;
            return scale * dot<Element>(*kernels_, weights, input, hidden) +
                   (bias != nullptr ? bias[i] : 0.0F);
          };
          for (std::int64_t i = begin; i < std::min(end, expert.width); ++i) {
            const float g = project(expert.gate, expert.gate_bias, i);
            const float u = project(expert.up, expert.up_bias, i);
            scratch.act[row * intermediate + i] = from_float<Element>(activate(step, g, u));
          }
        });
    context.record(
        "in_place_product_act",
        static_cast<std::uint64_t>(tokens * shape.top_k * intermediate) * sizeof(Element),
        [&] { return fmt::format("{} rows, weights in place", tokens * shape.top_k); });

    Element* outputs = y.as<Element>() + first_token * hidden;
    for_each_row_block(
        tokens, hidden, threads_, [&](std::int64_t token, std::int64_t begin, std::int64_t end) {
          std::array<float, kColumnBlock> sum{};
          for (std::int64_t slot = 0; slot < shape.top_k; ++slot) {
            const std::int64_t row = token * shape.top_k + slot;
            if (scratch.topk_idx[row] < 0) continue;
            const ExpertMatrices expert = experts_.at(scratch.topk_idx[row]);
            for (std::int64_t h = begin; h < end; ++h) {
              const auto* down =
                  reinterpret_cast<const Element*>(expert.down + h * expert.down_stride);
              const float value =
                  dot<Element>(*kernels_, down, scratch.act + row * intermediate, expert.width) +
                  (expert.down_bias != nullptr ? expert.down_bias[h] : 0.0F);
              sum[static_cast<std::size_t>(h - begin)] += scratch.topk_weights[row] * value;
            }
          }
          for (std::int64_t h = begin; h < end; ++h) {
            outputs[token * hidden + h] =
                from_float<Element>(sum[static_cast<std::size_t>(h - begin)]);
          }
        });
    context.record("in_place_product_combine",
                   static_cast<std::uint64_t>(tokens * hidden) * sizeof(Element),
                   [&] { return fmt::format("{} tokens, {} experts each", tokens, shape.top_k); });
  }

  Problem problem_;
  Shape shape_;  // with the shared expert's parts
  RouterSetup router_;
  ExpertSet experts_;
  const Kernels* kernels_ = nullptr;
  int threads_ = 1;
};

}  // namespace

std::unique_ptr<Level> make_level03_memefficient() {
  return std::make_unique<MemEfficient>();
}

}  // namespace moe::cpu
