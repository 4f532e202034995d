// An activation as the vector kernels take it: all gated ones are one formula with four numbers.
#pragma once

#include <cmath>
#include <cstdint>

#include "moe/config.h"

namespace moe::cpu {

/// act from gate g and up u:
///   kSwiGlu  g·sigmoid(g)·u
///   kGated   g'·sigmoid(g'·(linear + cubic·g'²))·(u' + up_offset), g' = min(g, limit) and u' = u between
///            -limit and limit. GeGLU is one of them: (1 + tanh(v))/2 = sigmoid(2v).
///   kReLU2   max(u, 0)²
struct ActivationStep {
  enum class Kind : std::uint8_t { kSwiGlu, kGated, kReLU2 };
  Kind kind = Kind::kSwiGlu;
  float linear = 1;
  float cubic = 0;
  float limit = 0;
  float up_offset = 0;

  static ActivationStep of(const Activation& activation) {
    constexpr float kGeluLinear = 1.59576912F;   // 2·sqrt(2/pi)
    constexpr float kGeluCubic = 0.0713548163F;  // 0.044715 times that
    ActivationStep step{.limit = activation.limit};
    switch (activation.kind) {
      case Activation::Kind::kSwiGLU:
        if (activation == Activation{}) return step;
        step.kind = Kind::kGated;
        step.linear = activation.alpha;
        step.up_offset = activation.up_offset;
        return step;
      case Activation::Kind::kGeGLU:
        step.kind = Kind::kGated;
        step.linear = kGeluLinear;
        step.cubic = kGeluCubic;
        return step;
      case Activation::Kind::kReLU2:
        step.kind = Kind::kReLU2;
        return step;
    }
    return step;
  }
};

}  // namespace moe::cpu
