// The activation between the up and the down projection, whatever it is, on stored rows.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/device/block_extras.cuh"
#include "moe/layer.h"

namespace moe::cuda {

/// Rows that wait for their activation. Strides in elements.
struct ActivationRows {
  DType dtype = DType::kF32;
  /// [rows,M·width]: gate, then up; without a gate up alone.
  const void* gate_up = nullptr;
  std::int64_t first_row = 0;  ///< routed row of the first; matters with biases
  std::int64_t rows = 0;
  std::int64_t width = 0;
  void* act = nullptr;  ///< [rows, width]; may be gate_up itself with its stride
  std::int64_t act_stride = 0;
};

/// act[r,i] = f(gate, up) as Activation says, biases added first in fp32. `bias.up` null: none. SwiGLU
/// without biases is swiglu_rows(). Queued on `stream`.
void activate_rows(const Activation& activation, const ActivationBias& bias,
                   const ActivationRows& rows, cudaStream_t stream);

/// The same on rows whose expert is looked up one by one, gate and up apart (levels 0 and 1).
struct SlotActivation {
  DType dtype = DType::kF32;
  const void* gate = nullptr;  ///< [rows,columns]; null without a gate
  const void* up = nullptr;    ///< [rows,columns]
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  void* act = nullptr;  ///< [rows,columns]
  const std::int32_t* experts =
      nullptr;  ///< [rows] -1: nothing is computed; null: all are `expert`
  std::int64_t expert = 0;
  /// What multiplies gate and up before biases (Router::weight_on_input): weights[slots[row]], with slots
  /// null weights[row]; null: 1.
  const float* weights = nullptr;
  const std::int32_t* slots = nullptr;
};
void activate_slots(const Problem& problem, const Weights& weights, const SlotActivation& rows,
                    cudaStream_t stream);

/// The biases of a problem's gate and up; none where it has none.
[[nodiscard]] ActivationBias activation_bias(const Problem& problem, const Weights& weights,
                                             const std::int32_t* expert_offsets);

}  // namespace moe::cuda
