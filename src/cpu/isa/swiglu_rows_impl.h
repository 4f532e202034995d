// Body of swiglu_rows_*.cpp: plain C++ that the compiler vectorises for the including file's tier.
// Everything sits in an unnamed namespace, so that no tier's code can be linked in place of
// another's.
#pragma once

#include <cstdint>

#include "cpu/isa/swiglu_rows.h"

namespace moe::cpu {
namespace {

/// exp(v) for |v| <= 87, the clamp below included: 2^n · p(r), v = n·ln2 + r, |r| <= ln2/2.
inline float exp_polynomial(float v) {
  constexpr float kLimit = 87.0F;  // exp(87) is below the largest float, exp(-87) a normal number
  v = v < kLimit ? v : kLimit;
  v = v > -kLimit ? v : -kLimit;
  // Adding 1.5·2^23 rounds to an integer in the low bits of the mantissa (round to nearest mode).
  constexpr float kRound = 12582912.0F;
  const float shifted = v * 1.44269504F + kRound;
  const float n = shifted - kRound;
  // ln2 in two parts: n·0.693359375 is exact for |n| < 2^13.
  const float r = (v - n * 0.693359375F) + n * 2.12194440e-4F;
  // Taylor coefficients 1/i!: the rest r^7/7! is below 1.2e-7 at |r| = ln2/2.
  float p = 1.0F / 720.0F;
  p = p * r + 1.0F / 120.0F;
  p = p * r + 1.0F / 24.0F;
  p = p * r + 1.0F / 6.0F;
  p = p * r + 0.5F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  const auto exponent = static_cast<std::uint32_t>(static_cast<std::int32_t>(n) + 127) << 23;
  return p * __builtin_bit_cast(float, exponent);
}

inline void store(float value, float& out) {
  out = value;
}
inline void store(float value, BFloat16& out) {
  // core/scalar.h's rounding without its branch; written here because an inline function shared
  // between tiers may be linked from any of them.
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  const std::uint32_t quiet = (bits >> 16) | 0x40U;
  out.bits = static_cast<std::uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? quiet : rounded);
}

template <class Element>
void swiglu_rows(const float* gate_up, std::int64_t rows, std::int64_t columns, Element* act,
                 std::int64_t act_stride) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* gate = gate_up + row * 2 * columns;
    const float* up = gate + columns;
    Element* __restrict out = act + row * act_stride;
    for (std::int64_t i = 0; i < columns; ++i) {
      store(gate[i] / (1.0F + exp_polynomial(-gate[i])) * up[i], out[i]);
    }
  }
}

}  // namespace
