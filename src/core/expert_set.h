// The experts of a layer as one sequence: the E routed ones, and after them the shared expert, cut into
// parts of the routed experts' size. A gated or squared unit depends on its own row of gate and up
// alone, so the parts' outputs add up to the whole's, and a level that routes every token to all parts
// has computed the shared expert by the same products as the others.
#pragma once

#include <algorithm>
#include <cstdint>

#include "moe/layer.h"

namespace moe {

/// The problem's shape with the shared expert's parts among experts and choices: E + P and K + P.
[[nodiscard]] Shape with_shared_slots(const Problem& problem);

/// Most rows that one expert can get of `tokens`: given routes may name it more than once a row.
[[nodiscard]] inline std::int64_t most_rows_of_expert(const Problem& problem, std::int64_t tokens) {
  return problem.router.scoring == Scoring::kGiven ? tokens * problem.shape.top_k : tokens;
}

/// Where the matrices of one expert are. Only the last part of a shared expert is narrower than I.
struct ExpertMatrices {
  const std::byte* gate = nullptr;  // [width,H]; null without a gate
  const std::byte* up = nullptr;    // [width,H]
  const std::byte* down = nullptr;  // H rows of `width`, down_stride bytes apart
  std::int64_t width = 0;
  std::int64_t down_stride = 0;
  const float* gate_bias = nullptr;  // [I]; null without biases, like the two below
  const float* up_bias = nullptr;    // [I]
  const float* down_bias = nullptr;  // [H]
};

class ExpertSet {
 public:
  ExpertSet() = default;
  ExpertSet(const Problem& problem, const Weights& weights)
      : problem_(problem), weights_(weights), count_(with_shared_slots(problem).experts) {}

  [[nodiscard]] std::int64_t count() const { return count_; }
  [[nodiscard]] const Problem& problem() const { return problem_; }
  [[nodiscard]] ExpertMatrices at(std::int64_t expert) const {
    const auto element = static_cast<std::int64_t>(size_of(problem_.dtype));
    const std::int64_t hidden = problem_.shape.hidden;
    const std::int64_t intermediate = problem_.shape.intermediate;
    const auto within = [](const TensorView& tensor, std::int64_t bytes) {
      return tensor.data == nullptr ? nullptr : tensor.as<const std::byte>() + bytes;
    };
    ExpertMatrices found;
    if (const std::int64_t part = expert - problem_.shape.experts; part >= 0) {
      const std::int64_t shared = problem_.shared_intermediate;
      const std::int64_t first = part * intermediate;
      found.width = std::min(intermediate, shared - first);
      found.gate = within(weights_.shared_gate, first * hidden * element);
      found.up = within(weights_.shared_up, first * hidden * element);
      found.down = within(weights_.shared_down, first * element);
      found.down_stride = shared * element;
      return found;
    }
    const std::int64_t matrix = expert * intermediate * hidden * element;
    found.width = intermediate;
    found.gate = within(weights_.gate, matrix);
    found.up = within(weights_.up, matrix);
    found.down = within(weights_.down, matrix);
    found.down_stride = intermediate * element;
    if (problem_.expert_bias) {
      if (problem_.activation.gated()) {
        found.gate_bias = weights_.gate_bias.as<const float>() + expert * intermediate;
      }
      found.up_bias = weights_.up_bias.as<const float>() + expert * intermediate;
      found.down_bias = weights_.down_bias.as<const float>() + expert * hidden;
    }
    return found;
  }

 private:
  Problem problem_;
  Weights weights_;
  std::int64_t count_ = 0;
};

}  // namespace moe
