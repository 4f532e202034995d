// The biases of all experts where the products are a library's, which takes none.
#pragma once

#include <cstdint>
#include <vector>

#include "core/expert_set.h"

namespace moe::cpu {

/// A copy of them; empty for a problem without. Experts beyond the routed ones have none.
class ExpertBiases {
 public:
  ExpertBiases() = default;
  ExpertBiases(const Problem& problem, const Weights& weights) : shape_(problem.shape) {
    if (!problem.expert_bias) return;
    const auto copy = [](const TensorView& from) {
      return std::vector<float>(from.as<const float>(), from.as<const float>() + from.elements());
    };
    if (problem.activation.gated()) gate_ = copy(weights.gate_bias);
    up_ = copy(weights.up_bias);
    down_ = copy(weights.down_bias);
  }

  static std::uint64_t bytes(const Problem& problem) {
    if (!problem.expert_bias) return 0;
    const Shape& shape = problem.shape;
    const std::int64_t columns =
        (problem.activation.gated() ? 2 : 1) * shape.intermediate + shape.hidden;
    return static_cast<std::uint64_t>(shape.experts * columns) * sizeof(float);
  }

  /// From `column` on; null where there is none.
  [[nodiscard]] const float* gate(std::int64_t expert, std::int64_t column) const {
    return within(gate_, expert, shape_.intermediate, column);
  }
  [[nodiscard]] const float* up(std::int64_t expert, std::int64_t column) const {
    return within(up_, expert, shape_.intermediate, column);
  }
  /// Adds the bias of columns first..first+columns to rows[count, columns].
  void add_down(std::int64_t expert, std::int64_t first, std::int64_t columns, std::int64_t count,
                float* rows) const {
    const float* bias = within(down_, expert, shape_.hidden, first);
    if (bias == nullptr) return;
    for (std::int64_t row = 0; row < count; ++row, rows += columns) {
      for (std::int64_t column = 0; column < columns; ++column) rows[column] += bias[column];
    }
  }

 private:
  [[nodiscard]] const float* within(const std::vector<float>& biases, std::int64_t expert,
                                    std::int64_t columns, std::int64_t column) const {
    if (biases.empty() || expert >= shape_.experts) return nullptr;
    return biases.data() + expert * columns + column;
  }

  Shape shape_;
  std::vector<float> gate_, up_, down_;  // [E,I], [E,I], [E,H]
};

}  // namespace moe::cpu
