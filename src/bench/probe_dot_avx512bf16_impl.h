// Probe of vdpbf16ps: two bf16 products per lane, added to an fp32 sum. For the tier whose Lanes was
// included before.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace moe {
namespace {

// Latency 6 at one or two starts per cycle.
constexpr int kDotChains = 16;
constexpr double kDotFlops = 4.0 * 16 * kDotChains;

float probe_dot_bf16(std::int64_t iterations) {
  volatile int one = 0x3f803f80;  // two bf16 of 1.0
  const auto a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(one));
  __m512 chains[kDotChains];
#pragma GCC unroll 16
  for (int chain = 0; chain < kDotChains; ++chain) {
    chains[chain] = _mm512_set1_ps(static_cast<float>(chain));
  }
  for (std::int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
    for (__m512& chain : chains) chain = _mm512_dpbf16_ps(chain, a, a);
  }
  float sum = 0;
#pragma GCC unroll 16
  for (const __m512 chain : chains) sum += Lanes::sum(chain);
  return sum;
}

}  // namespace
}  // namespace moe
