// Level 00 · naive — token by token, expert by expert, the textbook loops.
// Builds on nothing but what every level shares: how a router chooses (cpu/ops/router) and what an
//           activation is (cpu/ops/activation).
// Changes   nothing: this is the definition of the layer written down as loops.
// Why       it is the baseline that every speedup is measured against, so it has to be a fair one:
//           weights are contiguous along the reduction (stored [out, in]), each loop reads memory
//           in order, and nothing is slowed down on purpose.
//             FLOPs         6·T·K·H·I + 2·T·H·E
//             weight bytes  3·T·K·H·I·b + T·E·H·b: every routed row reads its expert's matrices
// Costs     one thread, and one chain of dependent additions per output: an fp32 add takes 3 to 4
//           cycles and no two of a chain overlap, so a core does about 2 FLOPs in that time where
//           its FMA units could do 100 to 200. Compilers may not reorder the sum by themselves.
// Measured  docs/levels/level00_naive.md
//
//   for each token:  x[H] ─▶ logits[E] ─▶ top-k ─▶ for each of K experts:
//                    gate[i], up[i] ─▶ act[i] = silu(gate)·up ─▶ y += weight · down·act
#include <algorithm>
#include <vector>

#include "core/dispatch.h"
#include "core/expert_set.h"
#include "core/level.h"
#include "cpu/ops/activation.h"
#include "cpu/ops/router.h"

namespace moe::cpu {
namespace {

/// The textbook dot product: one accumulator, in order.
template <class Element>
float dot_in_order(const Element* a, const Element* b, std::int64_t n) {
  float sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += to_float(a[i]) * to_float(b[i]);
  return sum;
}

/// What a forward works on, one token at a time.
template <class Element>
struct Scratch {
  explicit Scratch(const Problem& problem)
      : logits(static_cast<std::size_t>(problem.shape.experts)),
        chosen(static_cast<std::size_t>(with_shared_slots(problem).top_k)),
        weights(chosen.size()),
        input_weights(problem.router.weight_on_input ? chosen.size() : 0),
        act(static_cast<std::size_t>(problem.shape.intermediate)),
        sum(static_cast<std::size_t>(problem.shape.hidden)) {}

  static std::uint64_t bytes(const Problem& problem) {
    const auto slots = static_cast<std::uint64_t>(with_shared_slots(problem).top_k);
    return static_cast<std::uint64_t>(problem.shape.experts + problem.shape.hidden) *
               sizeof(float) +
           slots *
               (sizeof(std::int32_t) + (problem.router.weight_on_input ? 2 : 1) * sizeof(float)) +
           static_cast<std::uint64_t>(problem.shape.intermediate) * sizeof(Element);
  }

  std::vector<float> logits;         // [E]
  std::vector<std::int32_t> chosen;  // [K'], the shared expert's parts behind the router's K
  std::vector<float> weights;        // [K']
  std::vector<float> input_weights;  // [K'] where weights multiply the input
  std::vector<Element> act;          // [I]
  std::vector<float> sum;            // [H]
};

/// Adds what one expert makes of a token's row.
template <class Element>
void add_expert(const Problem& problem, const ExpertMatrices& expert, const Element* row,
                float weight, float input_weight, Scratch<Element>& scratch) {
  const ActivationStep step = ActivationStep::of(problem.activation);
  const std::int64_t hidden = problem.shape.hidden;
  const auto project = [&](const std::byte* matrix, const float* bias, std::int64_t i) {
    if (matrix == nullptr) return 0.0F;
    const Element* weights = reinterpret_cast<const Element*>(matrix) + i * hidden;
    return input_weight * dot_in_order(row, weights, hidden) + (bias != nullptr ? bias[i] : 0.0F);
  };
  for (std::int64_t i = 0; i < expert.width; ++i) {
    const float gate = project(expert.gate, expert.gate_bias, i);
    const float up = project(expert.up, expert.up_bias, i);
    scratch.act[static_cast<std::size_t>(i)] = from_float<Element>(activate(step, gate, up));
  }
  for (std::int64_t h = 0; h < hidden; ++h) {
    const auto* down = reinterpret_cast<const Element*>(expert.down + h * expert.down_stride);
    const float bias = expert.down_bias != nullptr ? expert.down_bias[h] : 0.0F;
    scratch.sum[static_cast<std::size_t>(h)] +=
        weight * (dot_in_order(scratch.act.data(), down, expert.width) + bias);
  }
}

template <class Element>
void forward_naive(const RouterSetup& router, const ExpertSet& experts, const Routes& given,
                   const TensorView& x, const TensorView& y) {
  const Problem& problem = router.problem;
  const std::int64_t hidden = problem.shape.hidden;
  const bool routed = problem.router.scoring != Scoring::kGiven;
  Scratch<Element> scratch(problem);
  const bool on_input = !scratch.input_weights.empty();
  for (std::int64_t token = 0; token < x.dim(0); ++token) {
    const Element* row = x.as<const Element>() + token * hidden;
    for (std::int64_t expert = 0; routed && expert < problem.shape.experts; ++expert) {
      scratch.logits[static_cast<std::size_t>(expert)] =
          dot_in_order(row, router.weights.router.as<const Element>() + expert * hidden, hidden);
    }
    choose_experts(router, x, token, 1, scratch.logits.data(), given,
                   {scratch.chosen.data(), scratch.weights.data(),
                    on_input ? scratch.input_weights.data() : nullptr});
    std::fill(scratch.sum.begin(), scratch.sum.end(), 0.0F);
    for (std::size_t slot = 0; slot < scratch.chosen.size(); ++slot) {
      if (scratch.chosen[slot] < 0) continue;
      add_expert(problem, experts.at(scratch.chosen[slot]), row, scratch.weights[slot],
                 on_input ? scratch.input_weights[slot] : 1.0F, scratch);
    }
    Element* out = y.as<Element>() + token * hidden;
    for (std::int64_t h = 0; h < hidden; ++h)
      out[h] = from_float<Element>(scratch.sum[static_cast<std::size_t>(h)]);
  }
}

class Naive final : public Level {
 public:
  [[nodiscard]] Features features() const override { return Features::all(); }
  [[nodiscard]] MemoryNeeds memory(const Problem& problem, const ExecutionOptions&) const override {
    std::uint64_t vectors = 0;
    with_element_type(problem.dtype,
                      [&]<class Element>() { vectors = Scratch<Element>::bytes(problem); });
    return {.transient = vectors};
  }

  void prepare(const Problem& problem, const Weights& weights, const ExecutionOptions&) override {
    router_ = {&kernels_for(Isa::kScalar), problem, weights};
    experts_ = ExpertSet(problem, weights);
  }

  void forward(Context& context, const TensorView& x, const TensorView& y) override {
    with_element_type(router_.problem.dtype, [&]<class Element>() {
      forward_naive<Element>(router_, experts_, context.routes, x, y);
    });
    context.record("token_loop", y.bytes(), [&] {
      return fmt::format("{} tokens x {} experts, dot products in order", x.dim(0),
                         with_shared_slots(router_.problem).top_k);
    });
  }

  [[nodiscard]] std::string isa() const override { return "scalar"; }
  [[nodiscard]] int threads() const override { return 1; }

 private:
  RouterSetup router_;
  ExpertSet experts_;
};

}  // namespace

std::unique_ptr<Level> make_level00_naive() {
  return std::make_unique<Naive>();
}

}  // namespace moe::cpu
