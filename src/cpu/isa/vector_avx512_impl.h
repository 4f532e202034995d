// Sixteen fp32 lanes: AVX-512 F, BW, DQ, VL. See vector_scalar_impl.h for the unnamed namespace.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 reports its own _mm512_undefined_*() as uninitialised wherever it is inlined (GCC bug
// 105593), here to the end of the translation unit.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

namespace moe::cpu {
namespace {

struct Vector {
  static constexpr std::int64_t kLanes = 16;
  using F = __m512;

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float value) { return _mm512_set1_ps(value); }
  static F load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, F value) { _mm512_storeu_ps(to, value); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F sqrt(F value) { return _mm512_sqrt_ps(value); }
  static float sum(F value) { return _mm512_reduce_add_ps(value); }

  /// Sixteen bf16 as fp32.
  static F load_bf16(const void* from) {
    const __m256i bits = _mm256_loadu_si256(static_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }

  /// value·2^n with n in the low bits of `shifted`, for results in the normal range.
  static F add_exponent(F value, F shifted) {
    return as_float(_mm512_add_epi32(as_bits(value), _mm512_slli_epi32(as_bits(shifted), 23)));
  }
  /// To the nearest bf16, ties to even; NaN stays NaN.
  static F round_to_bf16(F value) {
    const Pairs bits = as_bits(value);
    const Pairs upper = _mm512_set1_epi32(-0x10000);
    const Pairs odd_bit = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const Pairs half = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd_bit);
    const Pairs rounded = _mm512_and_epi32(_mm512_add_epi32(bits, half), upper);
    return as_float(_mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q),
                                         _mm512_and_epi32(bits, upper),
                                         _mm512_set1_epi32(0x400000)));
  }

  /// Pairs of bf16, one pair per lane.
  using Pairs = __m512i;
  static Pairs load_pairs(const void* from) { return _mm512_loadu_si512(from); }
  static F even(Pairs pairs) { return as_float(_mm512_slli_epi32(pairs, 16)); }
  static F odd(Pairs pairs) {
    return as_float(_mm512_and_epi32(pairs, _mm512_set1_epi32(-0x10000)));
  }

  static F as_float(Pairs bits) { return _mm512_castsi512_ps(bits); }
  static Pairs as_bits(F value) { return _mm512_castps_si512(value); }
};

}  // namespace
}  // namespace moe::cpu
