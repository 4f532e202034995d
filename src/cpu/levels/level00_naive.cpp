// Level 00 · naive — token by token, expert by expert, the textbook loops.
// Builds on nothing.
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
#include <cmath>
#include <vector>

#include "core/dispatch.h"
#include "core/level.h"

namespace moe::cpu {
namespace {

/// The textbook dot product: one accumulator, in order.
template <class Element>
float dot_in_order(const Element* a, const Element* b, std::int64_t n) {
  float sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += to_float(a[i]) * to_float(b[i]);
  return sum;
}

/// Experts and weights of one token: softmax over all, K times the largest not yet taken,
/// renormalise.
void choose_experts(std::vector<float>& probability, std::vector<std::int64_t>& chosen,
                    std::vector<float>& weight) {
  float largest = -INFINITY;
  for (const float logit : probability) {
    if (logit > largest) largest = logit;
  }
  for (float& value : probability) value = std::exp(value - largest);
  float sum = 0;
  for (std::size_t slot = 0; slot < chosen.size(); ++slot) {
    std::size_t best = 0;
    for (std::size_t expert = 1; expert < probability.size(); ++expert) {
      if (probability[expert] > probability[best]) best = expert;
    }
    chosen[slot] = static_cast<std::int64_t>(best);
    weight[slot] = probability[best];
    sum += weight[slot];
    probability[best] = -1;  // taken
  }
  for (float& value : weight) value /= sum;
}

template <class Element>
void forward_naive(const Shape& shape, const Weights& weights, const TensorView& x,
                   const TensorView& y) {
  const std::int64_t hidden = shape.hidden;
  const std::int64_t intermediate = shape.intermediate;
  std::vector<float> logits(static_cast<std::size_t>(shape.experts));
  std::vector<std::int64_t> chosen(static_cast<std::size_t>(shape.top_k));
  std::vector<float> chosen_weight(chosen.size());
  std::vector<Element> act(static_cast<std::size_t>(intermediate));
  std::vector<float> sum(static_cast<std::size_t>(hidden));

  for (std::int64_t token = 0; token < x.dim(0); ++token) {
    const Element* row = x.as<const Element>() + token * hidden;
    for (std::int64_t expert = 0; expert < shape.experts; ++expert) {
      logits[static_cast<std::size_t>(expert)] =
          dot_in_order(row, weights.router.as<const Element>() + expert * hidden, hidden);
    }
    choose_experts(logits, chosen, chosen_weight);
    std::fill(sum.begin(), sum.end(), 0.0F);
    for (std::size_t slot = 0; slot < chosen.size(); ++slot) {
      const std::int64_t matrix = chosen[slot] * intermediate * hidden;
      const Element* gate = weights.gate.as<const Element>() + matrix;
      const Element* up = weights.up.as<const Element>() + matrix;
      const Element* down = weights.down.as<const Element>() + matrix;
      for (std::int64_t i = 0; i < intermediate; ++i) {
        const float g = dot_in_order(row, gate + i * hidden, hidden);
        const float u = dot_in_order(row, up + i * hidden, hidden);
        act[static_cast<std::size_t>(i)] = from_float<Element>(g / (1.0F + std::exp(-g)) * u);
      }
      for (std::int64_t h = 0; h < hidden; ++h) {
        sum[static_cast<std::size_t>(h)] +=
            chosen_weight[slot] * dot_in_order(act.data(), down + h * intermediate, intermediate);
      }
    }
    Element* out = y.as<Element>() + token * hidden;
    for (std::int64_t h = 0; h < hidden; ++h)
      out[h] = from_float<Element>(sum[static_cast<std::size_t>(h)]);
  }
}

class Naive final : public Level {
 public:
  [[nodiscard]] MemoryNeeds memory(const Problem& problem, const ExecutionOptions&) const override {
    const Shape& shape = problem.shape;
    const auto vectors =
        static_cast<std::uint64_t>(shape.experts + shape.hidden) * sizeof(float) +
        static_cast<std::uint64_t>(shape.top_k) * (sizeof(std::int64_t) + sizeof(float)) +
        static_cast<std::uint64_t>(shape.intermediate) * size_of(problem.dtype);
    return {.transient = vectors};
  }

  void prepare(const Problem& problem, const Weights& weights, const ExecutionOptions&) override {
    problem_ = problem;
    weights_ = weights;
  }

  void forward(Context& context, const TensorView& x, const TensorView& y) override {
    with_element_type(problem_.dtype, [&]<class Element>() {
      forward_naive<Element>(problem_.shape, weights_, x, y);
    });
    context.record("token_loop", y.bytes(), [&] {
      return fmt::format("{} tokens x {} experts, dot products in order", x.dim(0),
                         problem_.shape.top_k);
    });
  }

  [[nodiscard]] std::string isa() const override { return "scalar"; }
  [[nodiscard]] int threads() const override { return 1; }

 private:
  Problem problem_;
  Weights weights_;
};

}  // namespace

std::unique_ptr<Level> make_level00_naive() {
  return std::make_unique<Naive>();
}

}  // namespace moe::cpu
