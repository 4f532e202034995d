// SwiGLU of one element, and of stored rows.
#pragma once

#include <cstdint>

#include "cuda/device/element.cuh"

namespace moe::cuda {

/// silu(v) = v / (1 + exp(-v)). The special-function unit's exp and division err by a few units in
/// the last place of fp32: invisible after rounding to bf16, too much for fp32.
template <class Element>
__device__ __forceinline__ float silu(float value) {
  if constexpr (sizeof(Element) == sizeof(float)) {
    return value / (1.0F + expf(-value));
  } else {
    // Two instructions of the special-function unit. exp(-v) is infinite below v = -88 and its
    // reciprocal 0, which is the limit of silu there.
    constexpr float kLog2E = 1.4426950408889634F;
    float power;
    float reciprocal;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-kLog2E * value));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(1.0F + power));
    return value * reciprocal;
  }
}

/// act[r,i] = silu(gate_up[r,i]) · gate_up[r,I+i]. One thread kUnroll vectors of gate and of up, all
/// of them in flight before the first is used; blocks of kThreads. Vectors are numbered through all
/// rows, so that narrow rows share a block.
template <class Element, int kWidth, int kUnroll, int kThreads>
__device__ __forceinline__ void swiglu_of_rows(const Element* gate_up, std::int64_t rows,
                                               std::int64_t intermediate, Element* act,
                                               std::int64_t act_stride) {
  using Vector = Vec<Element, kWidth>;
  const std::int64_t vectors_per_row = intermediate / kWidth;
  const std::int64_t first =
      static_cast<std::int64_t>(blockIdx.x) * kThreads * kUnroll + threadIdx.x;
  Vector gate[kUnroll];
  Vector up[kUnroll];
  Element* out[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const std::int64_t vector = first + u * kThreads;
    const std::int64_t row = vector / vectors_per_row;
    out[u] = nullptr;
    if (row >= rows) continue;
    const std::int64_t column = (vector - row * vectors_per_row) * kWidth;
    const Element* const gate_at = gate_up + row * 2 * intermediate + column;
    gate[u] = *reinterpret_cast<const Vector*>(gate_at);
    up[u] = *reinterpret_cast<const Vector*>(gate_at + intermediate);
    out[u] = act + row * act_stride + column;
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    if (out[u] == nullptr) continue;
    Vector result;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      result.set(i, silu<Element>(gate[u].get(i)) * up[u].get(i));
    }
    *reinterpret_cast<Vector*>(out[u]) = result;
  }
}

}  // namespace moe::cuda
