// SwiGLU of one element.
#pragma once

namespace moe::cuda {

/// silu(v) = v / (1 + exp(-v)). The special-function unit's exp and division err by a few units in
/// the last place of fp32: invisible after rounding to bf16, too much for fp32.
template <class Element>
__device__ __forceinline__ float silu(float value) {
  if constexpr (sizeof(Element) == sizeof(float)) {
    return value / (1.0F + expf(-value));
  } else {
    // __fdividef yields 0 where the denominator exceeds 2^126, which is the limit of silu there.
    return __fdividef(value, 1.0F + __expf(-value));
  }
}

}  // namespace moe::cuda
