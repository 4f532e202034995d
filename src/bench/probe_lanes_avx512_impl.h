// Registers of the AVX-512 tiers, for their probe loops.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace moe {
namespace {

struct Lanes {
  using F = __m512;
  using I = __m512i;
  static constexpr int kFloats = 16;
  static constexpr int kRegisters = 32;
  static F set1(float value) { return _mm512_set1_ps(value); }
  static F multiply_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static float sum(F value) {
    float sum = 0;
    for (int lane = 0; lane < kFloats; ++lane) sum += value[lane];
    return sum;
  }
  static I load(const std::byte* from) { return _mm512_load_si512(from); }
  static I add(I a, I b) { return _mm512_add_epi64(a, b); }
  static std::uint64_t sum_integers(I value) {
    std::uint64_t sum = 0;
    for (int lane = 0; lane < 8; ++lane) sum += static_cast<std::uint64_t>(value[lane]);
    return sum;
  }
};

}  // namespace
}  // namespace moe
