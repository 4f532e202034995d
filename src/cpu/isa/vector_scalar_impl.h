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
  static constexpr std::int64_t kLanes = 4;
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
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  /// b where the comparison is unordered, as the x86 instructions do.
  static F max(F a, F b) { return a > b ? a : b; }
  static F min(F a, F b) { return a < b ? a : b; }
  static F sqrt(F value) {
    return F{__builtin_sqrtf(value[0]), __builtin_sqrtf(value[1]), __builtin_sqrtf(value[2]),
             __builtin_sqrtf(value[3])};
  }
  static float sum(F value) { return (value[0] + value[1]) + (value[2] + value[3]); }

  /// Four bf16 as fp32.
  static F load_bf16(const void* from) {
    std::uint16_t bits[4];
    std::memcpy(bits, from, sizeof(bits));
    return as_float(U{bits[0], bits[1], bits[2], bits[3]} << 16);
  }

  /// value·2^n with n in the low bits of `shifted`, for results in the normal range.
  static F add_exponent(F value, F shifted) {
    return as_float(as_bits(value) + (as_bits(shifted) << 23));
  }
  /// To the nearest bf16, ties to even; NaN stays NaN.
  static F round_to_bf16(F value) {
    const U bits = as_bits(value);
    const U rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) & 0xffff0000U;
    return as_float((bits & 0x7fffffffU) > 0x7f800000U ? (bits & 0xffff0000U) | 0x400000U
                                                       : rounded);
  }

  /// Pairs of bf16, one pair per lane.
  using Pairs = U;
  static Pairs load_pairs(const void* from) {
    U value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  static F even(Pairs pairs) { return as_float(pairs << 16); }
  static F odd(Pairs pairs) { return as_float(pairs & 0xffff0000U); }

  static F as_float(U bits) { return std::bit_cast<F>(bits); }
  static U as_bits(F value) { return std::bit_cast<U>(value); }
};

}  // namespace
}  // namespace moe::cpu
