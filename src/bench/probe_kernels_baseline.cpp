#include "bench/probe_kernels.h"

namespace moe {
namespace {

// GCC's vector types compile to the 16-byte registers that every x86-64 has (and to NEON elsewhere).
// Without FMA instructions the compiler emits a multiplication and an addition.
struct Lanes {
  using F = float __attribute__((vector_size(16)));
  using I = std::uint64_t __attribute__((vector_size(16)));
  static constexpr int kFloats = 4;
  static constexpr int kRegisters = 16;
  static F set1(float value) { return F{value, value, value, value}; }
  static F multiply_add(F a, F b, F c) { return a * b + c; }
  static float sum(F value) { return value[0] + value[1] + value[2] + value[3]; }
  static I load(const std::byte* from) { return *reinterpret_cast<const I*>(from); }
  static I add(I a, I b) { return a + b; }
  static std::uint64_t sum_integers(I value) { return value[0] + value[1]; }
};

}  // namespace
}  // namespace moe

#include "bench/probe_loops_impl.h"

namespace moe {

constinit const ProbeKernels kProbeBaseline = {.isa = Isa::kScalar,
                                               .multiply_add = probe_multiply_add,
                                               .multiply_add_flops = kMultiplyAddFlops,
                                               .read = probe_read};

}  // namespace moe
