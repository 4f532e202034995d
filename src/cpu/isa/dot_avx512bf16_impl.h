// bf16 dot product on vdpbf16ps: two products per lane and instruction, fp32 sums.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/scalar.h"

namespace moe::cpu {
namespace {

inline __m512bh load_pairs(const BFloat16* from) {
  return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from));
}

/// Eight partial sums hide the latency of vdpbf16ps. Denormal inputs count as zero in hardware.
inline float dot_bf16_native(const BFloat16* a, const BFloat16* b, std::int64_t n) {
  constexpr int kChains = 8;
  constexpr std::int64_t kStep = 32;
  __m512 sums[kChains];
#pragma GCC unroll 8
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  std::int64_t i = 0;
  for (; i + kChains * kStep <= n; i += kChains * kStep) {
#pragma GCC unroll 8
    for (int chain = 0; chain < kChains; ++chain) {
      const std::int64_t at = i + chain * kStep;
      sums[chain] = _mm512_dpbf16_ps(sums[chain], load_pairs(a + at), load_pairs(b + at));
    }
  }
  for (; i < n; i += kStep) {
    const std::int64_t left = n - i;
    const __mmask32 mask = left >= kStep ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
    const auto a_pairs = reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(mask, a + i));
    const auto b_pairs = reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(mask, b + i));
    sums[0] = _mm512_dpbf16_ps(sums[0], a_pairs, b_pairs);
  }
#pragma GCC unroll 8
  for (int width = kChains / 2; width >= 1; width /= 2) {
#pragma GCC unroll 8
    for (int chain = 0; chain < width; ++chain) {
      sums[chain] = _mm512_add_ps(sums[chain], sums[chain + width]);
    }
  }
  return _mm512_reduce_add_ps(sums[0]);
}

}  // namespace
}  // namespace moe::cpu
