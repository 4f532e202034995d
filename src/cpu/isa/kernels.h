// The table of instruction-set-specific kernels: one table per tier, chosen once per layer.
//
// Each tier lives in its own translation unit with its own compiler flags (cmake/IsaFlags.cmake);
// nothing outside those files may contain instructions above baseline x86-64.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/scalar.h"

namespace moe::cpu {

struct Kernels {
  Isa isa = Isa::kScalar;
  /// sum a[i]*b[i] in fp32, several partial sums.
  float (*dot_f32)(const float* a, const float* b, std::int64_t n) = nullptr;
  float (*dot_bf16)(const BFloat16* a, const BFloat16* b, std::int64_t n) = nullptr;
};

/// The table of the highest tier not above `ceiling` that this build and machine have.
[[nodiscard]] const Kernels& kernels_for(Isa ceiling);

template <class Element>
inline float dot(const Kernels& kernels, const Element* a, const Element* b, std::int64_t n);
template <>
inline float dot(const Kernels& kernels, const float* a, const float* b, std::int64_t n) {
  return kernels.dot_f32(a, b, n);
}
template <>
inline float dot(const Kernels& kernels, const BFloat16* a, const BFloat16* b, std::int64_t n) {
  return kernels.dot_bf16(a, b, n);
}

/// One table per translation unit; constant-initialised, so that no start-up code runs above the
/// baseline. Use kernels_for().
extern const Kernels kKernelsScalar;
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512f;
extern const Kernels kKernelsAvx512bf16;
extern const Kernels kKernelsAmx;

}  // namespace moe::cpu
