// Activations of one element whose result is rounded to bf16.
#pragma once

#include "cuda/device/activation_step.h"

namespace moe::cuda {

/// PTX ISA, min.NaN: NaN when one of them is, as in comparisons that let it through.
__device__ __forceinline__ float min_or_nan(float a, float b) {
  float least;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(least) : "f"(a), "f"(b));
  return least;
}
/// PTX ISA, max.NaN
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(a), "f"(b));
  return most;
}

/// The formula of ActivationStep, with the special-function unit's exp and reciprocal: their errors are
/// invisible after rounding to bf16. An infinite exp gives a reciprocal of 0, the limit.
__device__ __forceinline__ float gated(const ActivationStep& step, float gate, float up) {
  constexpr float kLog2E = 1.4426950408889634F;
  const float g = min_or_nan(gate, step.limit);
  const float u = max_or_nan(min_or_nan(up, step.limit), -step.limit) + step.up_offset;
  float power;
  float reciprocal;
  asm("ex2.approx.ftz.f32 %0, %1;"
      : "=f"(power)
      : "f"(-kLog2E * g * fmaf(step.cubic * g, g, step.linear)));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(1.0F + power));
  return g * reciprocal * u;
}

/// max(up, 0)²
__device__ __forceinline__ float relu2(float up) {
  const float above = max_or_nan(up, 0.0F);
  return above * above;
}

}  // namespace moe::cuda
