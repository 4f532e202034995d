// The table of instruction-set-specific kernels: one table per tier, chosen once per layer.
//
// Each tier lives in its own translation unit with its own compiler flags (cmake/IsaFlags.cmake);
// nothing outside those files may contain instructions above baseline x86-64.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/scalar.h"
#include "cpu/isa/gemm_tile.h"
#include "moe/config.h"

namespace moe::cpu {

struct Kernels {
  Isa isa = Isa::kScalar;
  /// sum a[i]*b[i] in fp32, several partial sums.
  float (*dot_f32)(const float* a, const float* b, std::int64_t n) = nullptr;
  float (*dot_bf16)(const BFloat16* a, const BFloat16* b, std::int64_t n) = nullptr;
  GemmKernels gemm_f32;
  GemmKernels gemm_bf16;
  /// y[columns] = sum over `count` slots of weights[i]·y_perm[dst_row[i],:], in slot order; a
  /// dst_row below 0 is skipped. Rows of y_perm are row_stride apart.
  void (*combine_f32)(const float* y_perm, std::int64_t row_stride, const std::int64_t* dst_row,
                      const float* weights, std::int64_t count, std::int64_t columns,
                      float* y) = nullptr;
  void (*combine_bf16)(const float* y_perm, std::int64_t row_stride, const std::int64_t* dst_row,
                       const float* weights, std::int64_t count, std::int64_t columns,
                       BFloat16* y) = nullptr;
  /// Router scores in place of n logits: 1/(1 + exp(-v)), sqrt(log(1 + exp(v))).
  void (*sigmoid)(float* values, std::int64_t n) = nullptr;
  void (*sqrt_softplus)(float* values, std::int64_t n) = nullptr;
  /// Sum of exp(values[i] - largest) over n.
  float (*sum_of_exponentials)(const float* values, std::int64_t n, float largest) = nullptr;

  [[nodiscard]] const GemmKernels& gemm(DType dtype) const {
    return dtype == DType::kF32 ? gemm_f32 : gemm_bf16;
  }
  /// The tier whose instructions really run for `dtype`: BF16 tiers compute fp32 with AVX-512F.
  [[nodiscard]] Isa used_for(DType dtype) const {
    return dtype == DType::kF32 && isa > Isa::kAvx512f ? Isa::kAvx512f : isa;
  }
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
