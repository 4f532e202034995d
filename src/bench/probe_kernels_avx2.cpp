#include <immintrin.h>

#include "bench/probe_kernels.h"

namespace moe {
namespace {

struct Lanes {
  using F = __m256;
  using I = __m256i;
  static constexpr int kFloats = 8;
  static constexpr int kRegisters = 16;
  static F set1(float value) { return _mm256_set1_ps(value); }
  static F multiply_add(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static float sum(F value) {
    return value[0] + value[1] + value[2] + value[3] + value[4] + value[5] + value[6] + value[7];
  }
  static I load(const std::byte* from) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
  }
  static I add(I a, I b) { return _mm256_add_epi64(a, b); }
  static std::uint64_t sum_integers(I value) {
    return static_cast<std::uint64_t>(value[0]) + static_cast<std::uint64_t>(value[1]) +
           static_cast<std::uint64_t>(value[2]) + static_cast<std::uint64_t>(value[3]);
  }
};

}  // namespace
}  // namespace moe

#include "bench/probe_loops_impl.h"

namespace moe {

constinit const ProbeKernels kProbeAvx2 = {.isa = Isa::kAvx2,
                                           .multiply_add = probe_multiply_add,
                                           .multiply_add_flops = kMultiplyAddFlops,
                                           .read = probe_read};

}  // namespace moe
