// bf16 on vdpbf16ps: one step is a pair of k, both products of a lane in one instruction. Denormal
// inputs count as zero in hardware.
#pragma once

#include "cpu/isa/gemm_impl.h"

namespace moe::cpu {
namespace {

struct StepBf16Native {
  static constexpr int kDepth = 2;
  static constexpr RowLayout kLayout = RowLayout::kPairs;
  static constexpr bool kRoundToBf16 = true;
  template <int kRows, int kPanels>
  static void multiply(Vector::F (&sums)[kRows][2 * kPanels], const float* a,
                       const char* const (&b)[kPanels]) {
    __m512bh columns[2 * kPanels];
#pragma GCC unroll 8
    for (int v = 0; v < 2 * kPanels; ++v) {
      columns[v] =
          reinterpret_cast<__m512bh>(Vector::load_pairs(b[v / 2] + v % 2 * Vector::kLanes * 4));
    }
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const auto pair = reinterpret_cast<__m512bh>(Vector::set1(a[row]));
#pragma GCC unroll 8
      for (int v = 0; v < 2 * kPanels; ++v) {
        sums[row][v] = _mm512_dpbf16_ps(sums[row][v], pair, columns[v]);
      }
    }
  }
};

}  // namespace
}  // namespace moe::cpu
