// Dot products of the GEMV-like levels, for the tier whose Vector was included before.
#pragma once

#include <bit>
#include <cstdint>

#include "core/scalar.h"

namespace moe::cpu {
namespace {

inline Vector::F load_lanes(const float* from) {
  return Vector::load(from);
}
inline Vector::F load_lanes(const BFloat16* from) {
  return Vector::load_bf16(from);
}

inline float expand(float value) {
  return value;
}
inline float expand(BFloat16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

/// Eight partial sums: an FMA has a latency of 4 cycles and one or two start per cycle.
template <class Element>
inline float dot_product(const Element* a, const Element* b, std::int64_t n) {
  constexpr int kChains = 8;
  constexpr std::int64_t kStep = Vector::kLanes;
  Vector::F sums[kChains];
#pragma GCC unroll 8
  for (auto& sum : sums) sum = Vector::zero();
  std::int64_t i = 0;
  for (; i + kChains * kStep <= n; i += kChains * kStep) {
#pragma GCC unroll 8
    for (int chain = 0; chain < kChains; ++chain) {
      const std::int64_t at = i + chain * kStep;
      sums[chain] = Vector::fma(load_lanes(a + at), load_lanes(b + at), sums[chain]);
    }
  }
  for (; i + kStep <= n; i += kStep) {
    sums[0] = Vector::fma(load_lanes(a + i), load_lanes(b + i), sums[0]);
  }
#pragma GCC unroll 8
  for (int width = kChains / 2; width >= 1; width /= 2) {
#pragma GCC unroll 8
    for (int chain = 0; chain < width; ++chain) {
      sums[chain] = Vector::add(sums[chain], sums[chain + width]);
    }
  }
  float sum = Vector::sum(sums[0]);
  for (; i < n; ++i) sum += expand(a[i]) * expand(b[i]);
  return sum;
}

inline float dot_f32(const float* a, const float* b, std::int64_t n) {
  return dot_product(a, b, n);
}
inline float dot_bf16_expanded(const BFloat16* a, const BFloat16* b, std::int64_t n) {
  return dot_product(a, b, n);
}

}  // namespace
}  // namespace moe::cpu
