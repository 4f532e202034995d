// Stored element types in kernels, and 16-byte vectors of them.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <initializer_list>

#include "moe/config.h"

namespace moe::cuda {

__device__ __forceinline__ float to_float(float value) {
  return value;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

template <class Element>
__device__ __forceinline__ Element from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

/// kCount elements moved by one instruction.
template <class Element, int kCount>
struct alignas(sizeof(Element) * kCount) Vec {
  Element at[kCount];
};

/// Elements in 16 bytes, the widest access of one thread.
template <class Element>
inline constexpr int kWidest = 16 / static_cast<int>(sizeof(Element));

/// Calls body.operator()<float>() or body.operator()<__nv_bfloat16>().
template <class Body>
void with_device_type(DType dtype, Body&& body) {
  if (dtype == DType::kF32) {
    body.template operator()<float>();
  } else {
    body.template operator()<__nv_bfloat16>();
  }
}

/// Whether rows of `row_bytes` bytes at these addresses can be moved in 16-byte vectors.
inline bool in_widest_vectors(std::int64_t row_bytes,
                              std::initializer_list<const void*> addresses) {
  bool possible = row_bytes % 16 == 0;
  for (const void* address : addresses) {
    possible = possible && reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
  }
  return possible;
}

}  // namespace moe::cuda
