// A gated activation as kernels take it: all of them are one formula with four numbers.
#pragma once

#include <limits>

#include "moe/config.h"

namespace moe::cuda {

/// g'·sigmoid(g'·(linear + cubic·g'²))·(u' + up_offset) of gate g and up u, g' = min(g, limit) and u' = u
/// between -limit and limit. GeGLU is one of them: (1 + tanh(v))/2 = sigmoid(2v).
struct ActivationStep {
  float linear = 1;
  float cubic = 0;
  float limit = std::numeric_limits<float>::infinity();
  float up_offset = 0;

  /// Of an activation with a gate.
  static ActivationStep of(const Activation& activation) {
    constexpr float kGeluLinear = 1.59576912F;   // 2·sqrt(2/pi)
    constexpr float kGeluCubic = 0.0713548163F;  // 0.044715 times that
    if (activation.kind == Activation::Kind::kGeGLU) {
      return {.linear = kGeluLinear, .cubic = kGeluCubic};
    }
    return {
        .linear = activation.alpha, .limit = activation.limit, .up_offset = activation.up_offset};
  }
};

}  // namespace moe::cuda
