// Stored element types in kernels, and 16-byte vectors of them. Compiled by nvcc and by NVRTC.
#pragma once

#include <cstdint>

#if !defined(__CUDACC_RTC__)
#include <cuda_bf16.h>

#include <initializer_list>

#include "moe/config.h"
#endif

namespace moe::cuda {

#if defined(__CUDACC_RTC__)
/// NVRTC works where no header of the toolkit is installed.
struct Bf16 {
  unsigned short bits;
};
#else
using Bf16 = __nv_bfloat16;
#endif
static_assert(sizeof(Bf16) == 2, "stored as the upper half of a float");

/// Rounds to nearest even. PTX ISA: cvt.
__device__ __forceinline__ unsigned bf16_bits(float value) {
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

__device__ __forceinline__ float to_float(float value) {
  return value;
}
__device__ __forceinline__ float to_float(Bf16 value) {
  return __uint_as_float(static_cast<unsigned>(reinterpret_cast<const unsigned short&>(value))
                         << 16);
}

template <class Element>
__device__ __forceinline__ Element from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ Bf16 from_float<Bf16>(float value) {
  const auto bits = static_cast<unsigned short>(bf16_bits(value));
  return reinterpret_cast<const Bf16&>(bits);
}

/// kCount elements moved by one instruction, read and written as fp32. They stay packed in 32-bit
/// words until they are used: as an array of bf16 each would take a register of its own.
template <class Element, int kCount>
struct alignas(sizeof(Element) * kCount) Vec {
  static constexpr int kPerWord = 4 / static_cast<int>(sizeof(Element));
  static_assert(kCount % kPerWord == 0, "whole words");
  unsigned words[kCount / kPerWord];

  __device__ __forceinline__ float get(int i) const {
    const unsigned word = words[i / kPerWord];
    if constexpr (kPerWord == 1) return __uint_as_float(word);
    return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000U);
  }
  /// In ascending order of i: the lower half of a word clears the upper one.
  __device__ __forceinline__ void set(int i, float value) {
    unsigned& word = words[i / kPerWord];
    if constexpr (kPerWord == 1) {
      word = __float_as_uint(value);
    } else {
      const unsigned bits = bf16_bits(value);
      word = i % 2 == 0 ? bits : word | bits << 16;
    }
  }
};
template <class Element>
struct Vec<Element, 1> {
  Element element;
  __device__ __forceinline__ float get(int) const { return to_float(element); }
  __device__ __forceinline__ void set(int, float value) { element = from_float<Element>(value); }
};

/// Elements in 16 bytes, the widest access of one thread.
template <class Element>
inline constexpr int kWidest = 16 / static_cast<int>(sizeof(Element));

#if !defined(__CUDACC_RTC__)  // what follows is for launchers
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
#endif

}  // namespace moe::cuda
