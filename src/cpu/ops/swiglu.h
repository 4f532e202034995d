// SwiGLU of one element, for the levels that compute it outside a vector kernel.
#pragma once

#include <cmath>

namespace moe::cpu {

/// silu(gate) * up with silu(v) = v / (1 + exp(-v)).
inline float swiglu(float gate, float up) {
  return gate / (1.0F + std::exp(-gate)) * up;
}

}  // namespace moe::cpu
