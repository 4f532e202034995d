// Loads of what no kernel changes; PTX ISA, ld.global.nc.
#pragma once

namespace moe::cuda {

/// Begins here and not where the value is used: other volatile instructions keep their places to it.
__device__ __forceinline__ float load_in_place(const float* from) {
  float value;
  asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(value) : "l"(from));
  return value;
}

}  // namespace moe::cuda
