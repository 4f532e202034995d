// Sixteen fp32 lanes: AVX-512 F, BW, DQ, VL. See vector_scalar_impl.h for the unnamed namespace.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 reports its own _mm512_undefined_*() as uninitialised wherever it is inlined (GCC bug
// 105593), here to the end of the translation unit.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

namespace moe::cpu {
namespace {

struct Vector {
  static constexpr int kLanes = 16;
  using F = __m512;

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float value) { return _mm512_set1_ps(value); }
  static F load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, F value) { _mm512_storeu_ps(to, value); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static float sum(F value) { return _mm512_reduce_add_ps(value); }

  /// Sixteen bf16 as fp32.
  static F load_bf16(const void* from) {
    const __m256i bits = _mm256_loadu_si256(static_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
};

}  // namespace
}  // namespace moe::cpu
