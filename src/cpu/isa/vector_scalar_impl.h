// Four fp32 lanes in GCC's generic vectors: what baseline x86-64 compiles to SSE2, no intrinsics.
//
// Every *_impl.h puts its code into an unnamed namespace: the same template compiled with other
// flags in another tier must not be merged with this one by the linker.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace moe::cpu {
namespace {

struct Vector {
  static constexpr int kLanes = 4;
  using F = float __attribute__((vector_size(16)));
  using U = std::uint32_t __attribute__((vector_size(16)));

  static F zero() { return F{0, 0, 0, 0}; }
  static F set1(float value) { return F{value, value, value, value}; }
  static F load(const float* from) {
    F value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  static void store(float* to, F value) { std::memcpy(to, &value, sizeof(value)); }
  /// a*b + c; rounded twice here, once on tiers with FMA.
  static F fma(F a, F b, F c) { return a * b + c; }
  static F add(F a, F b) { return a + b; }
  static float sum(F value) { return (value[0] + value[1]) + (value[2] + value[3]); }

  /// Four bf16 as fp32.
  static F load_bf16(const void* from) {
    std::uint16_t bits[4];
    std::memcpy(bits, from, sizeof(bits));
    return as_float(U{bits[0], bits[1], bits[2], bits[3]} << 16);
  }

  static F as_float(U bits) { return std::bit_cast<F>(bits); }
};

}  // namespace
}  // namespace moe::cpu
