// Activation over rows of a gate|up block, one translation unit per instruction-set tier.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/scalar.h"
#include "cpu/isa/activation_step.h"

namespace moe::cpu {

/// What a product gave and what becomes of it: act[r,i] = f(gate, up) with gate = scale[r]·sums[r,i] +
/// gate_bias[i] and up likewise from sums[r, columns + i]; without a gate matrix up from sums[r,i].
struct ActBlock {
  const float* sums = nullptr;  ///< [rows, 2·columns]; without a gate matrix [rows, columns]
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  ActivationStep step = {};
  const float* gate_bias = nullptr;  ///< [columns]; null: none, like the two below
  const float* up_bias = nullptr;    ///< [columns]
  const float* row_scale = nullptr;  ///< [rows]
};

/// The vector activations of the GEMM epilogues (activation_impl.h). `act_stride` in elements.
struct ActRows {
  void (*f32)(const ActBlock& block, float* act, std::int64_t act_stride);
  void (*bf16)(const ActBlock& block, BFloat16* act, std::int64_t act_stride);

  void operator()(const ActBlock& block, float* act, std::int64_t act_stride) const {
    f32(block, act, act_stride);
  }
  void operator()(const ActBlock& block, BFloat16* act, std::int64_t act_stride) const {
    bf16(block, act, act_stride);
  }
};

/// The functions of the highest tier not above `ceiling`, which must be kAvx2 or more: their
/// callers, the levels on library GEMMs, refuse to run below it.
[[nodiscard]] const ActRows& act_rows_for(Isa ceiling);

/// Constant-initialised, so that no start-up code runs above the baseline. Use act_rows_for().
extern const ActRows kActRowsAvx2;
extern const ActRows kActRowsAvx512f;

}  // namespace moe::cpu
