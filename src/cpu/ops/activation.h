// The activation of one element, for the levels that compute it outside a vector kernel.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/isa/activation_step.h"

namespace moe::cpu {

/// silu(gate) * up with silu(v) = v / (1 + exp(-v)).
inline float swiglu(float gate, float up) {
  return gate / (1.0F + std::exp(-gate)) * up;
}

/// Any of them (cpu/isa/activation_step.h); without a gate matrix `gate` is not read.
inline float activate(const ActivationStep& step, float gate, float up) {
  switch (step.kind) {
    case ActivationStep::Kind::kSwiGlu:
      return swiglu(gate, up);
    case ActivationStep::Kind::kGated: {
      // Comparisons that let NaN through.
      const float g = gate > step.limit ? step.limit : gate;
      const float u = (up > step.limit    ? step.limit
                       : up < -step.limit ? -step.limit
                                          : up) +
                      step.up_offset;
      return g / (1.0F + std::exp(-g * (step.linear + step.cubic * g * g))) * u;
    }
    case ActivationStep::Kind::kReLU2:
      return up < 0 ? 0.0F : up * up;
  }
  return 0;
}

}  // namespace moe::cpu
