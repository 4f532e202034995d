// Eight fp32 lanes: AVX2 and FMA. See vector_scalar_impl.h for the unnamed namespace.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace moe::cpu {
namespace {

struct Vector {
  static constexpr std::int64_t kLanes = 8;
  using F = __m256;

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float value) { return _mm256_set1_ps(value); }
  static F load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, F value) { _mm256_storeu_ps(to, value); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F sqrt(F value) { return _mm256_sqrt_ps(value); }
  static float sum(F value) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }

  /// Eight bf16 as fp32.
  static F load_bf16(const void* from) {
    const __m128i bits = _mm_loadu_si128(static_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }

  /// value·2^n with n in the low bits of `shifted`, for results in the normal range.
  static F add_exponent(F value, F shifted) {
    return as_float(_mm256_add_epi32(as_bits(value), _mm256_slli_epi32(as_bits(shifted), 23)));
  }
  /// To the nearest bf16, ties to even; NaN stays NaN.
  static F round_to_bf16(F value) {
    const Pairs bits = as_bits(value);
    const Pairs upper = _mm256_set1_epi32(-0x10000);
    const Pairs odd_bit = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const Pairs half = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd_bit);
    const Pairs rounded = _mm256_and_si256(_mm256_add_epi32(bits, half), upper);
    return _mm256_blendv_ps(
        as_float(rounded),
        as_float(_mm256_or_si256(_mm256_and_si256(bits, upper), _mm256_set1_epi32(0x400000))),
        _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  }

  /// Pairs of bf16, one pair per lane.
  using Pairs = __m256i;
  static Pairs load_pairs(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
  }
  static F even(Pairs pairs) { return as_float(_mm256_slli_epi32(pairs, 16)); }
  static F odd(Pairs pairs) {
    return as_float(_mm256_and_si256(pairs, _mm256_set1_epi32(-0x10000)));
  }

  static F as_float(Pairs bits) { return _mm256_castsi256_ps(bits); }
  static Pairs as_bits(F value) { return _mm256_castps_si256(value); }
};

}  // namespace
}  // namespace moe::cpu
