// SwiGLU over rows of a gate|up block, one translation unit per instruction-set tier.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/scalar.h"

namespace moe::cpu {

/// act[r,i] = silu(gate[r,i]) · up[r,i] for `rows` rows and `columns` columns; gate and up are
/// gate_up[r, i] and gate_up[r, columns + i], fp32. Row strides in elements. The vector SwiGLU of the GEMM epilogues
/// (swiglu_impl.h).
struct SwigluRows {
  void (*f32)(const float* gate_up, std::int64_t rows, std::int64_t columns, float* act,
              std::int64_t act_stride);
  void (*bf16)(const float* gate_up, std::int64_t rows, std::int64_t columns, BFloat16* act,
               std::int64_t act_stride);

  void operator()(const float* gate_up, std::int64_t rows, std::int64_t columns, float* act,
                  std::int64_t act_stride) const {
    f32(gate_up, rows, columns, act, act_stride);
  }
  void operator()(const float* gate_up, std::int64_t rows, std::int64_t columns, BFloat16* act,
                  std::int64_t act_stride) const {
    bf16(gate_up, rows, columns, act, act_stride);
  }
};

/// The functions of the highest tier not above `ceiling`, which must be kAvx2 or more: their
/// callers, the levels on library GEMMs, refuse to run below it.
[[nodiscard]] const SwigluRows& swiglu_rows_for(Isa ceiling);

/// Constant-initialised, so that no start-up code runs above the baseline. Use swiglu_rows_for().
extern const SwigluRows kSwigluRowsAvx2;
extern const SwigluRows kSwigluRowsAvx512f;

}  // namespace moe::cpu
