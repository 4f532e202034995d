// Any activation of stored rows, with the experts' biases.
#pragma once

#include <cstdint>

#include "cuda/device/activation.cuh"
#include "cuda/device/block_extras.cuh"
#include "cuda/device/element.cuh"

namespace moe::cuda {

/// gated() and relu2() for what is rounded to Element. The special-function unit's exp and division err by
/// a few units in the last place of fp32: too much for fp32.
template <class Element, bool kGated>
__device__ __forceinline__ float activate(const ActivationStep& step, float gate, float up) {
  if constexpr (!kGated) {
    return relu2(up);
  } else if constexpr (sizeof(Element) == sizeof(float)) {
    const float g = min_or_nan(gate, step.limit);
    const float u = max_or_nan(min_or_nan(up, step.limit), -step.limit) + step.up_offset;
    return g / (1.0F + expf(-g * fmaf(step.cubic * g, g, step.linear))) * u;
  } else {
    return gated(step, gate, up);
  }
}

/// Which expert a routed row is of: expert_offsets[e] <= row < expert_offsets[e+1]; the last one beyond.
__device__ __forceinline__ int expert_of_row(const std::int32_t* expert_offsets, int experts,
                                             std::int64_t row) {
  int first = 0;
  int end = experts;  // the expert is in [first, end)
  while (end - first > 1) {
    const int middle = (first + end) / 2;
    if (__ldg(expert_offsets + middle) <= row) {
      first = middle;
    } else {
      end = middle;
    }
  }
  return first;
}

/// The next kWidth of `left` numbers, as many as there are; 16 bytes a load where they lie so.
template <int kWidth>
__device__ __forceinline__ void load_bias(const float* from, std::int64_t left,
                                          float (&bias)[kWidth]) {
  if constexpr (kWidth % 4 == 0) {
    if (left >= kWidth && reinterpret_cast<std::uintptr_t>(from) % 16 == 0) {
#pragma unroll
      for (int i = 0; i < kWidth; i += 4) {
        const float4 four = __ldg(reinterpret_cast<const float4*>(from + i));
        bias[i] = four.x;
        bias[i + 1] = four.y;
        bias[i + 2] = four.z;
        bias[i + 3] = four.w;
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    if (i < left) bias[i] = __ldg(from + i);
  }
}

/// act[r,i] = f(gate_up[r,i], gate_up[r,I+i]); without a gate f(gate_up[r,i]), and rows of gate_up are I
/// wide. Work is split as in swiglu_of_rows().
template <class Element, int kWidth, int kUnroll, int kThreads, bool kGated>
__device__ __forceinline__ void activate_rows(const ActivationStep& step, const Element* gate_up,
                                              std::int64_t rows, std::int64_t intermediate,
                                              Element* act, std::int64_t act_stride) {
  using Vector = Vec<Element, kWidth>;
  const std::int64_t vectors_per_row = intermediate / kWidth;
  const std::int64_t first =
      static_cast<std::int64_t>(blockIdx.x) * kThreads * kUnroll + threadIdx.x;
  constexpr std::int64_t kMatrices = kGated ? 2 : 1;
  Vector gate[kUnroll];
  Vector up[kUnroll];
  Element* out[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const std::int64_t vector = first + u * kThreads;
    const std::int64_t row = vector / vectors_per_row;
    out[u] = nullptr;
    if (row >= rows) continue;
    const std::int64_t column = (vector - row * vectors_per_row) * kWidth;
    const Element* const at = gate_up + row * kMatrices * intermediate + column;
    if constexpr (kGated) gate[u] = *reinterpret_cast<const Vector*>(at);
    up[u] = *reinterpret_cast<const Vector*>(at + (kMatrices - 1) * intermediate);
    out[u] = act + row * act_stride + column;
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    if (out[u] == nullptr) continue;
    Vector result;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      result.set(i, activate<Element, kGated>(step, kGated ? gate[u].get(i) : 0.0F, up[u].get(i)));
    }
    *reinterpret_cast<Vector*>(out[u]) = result;
  }
}

/// The biases that a thread's columns have in one expert; 0 where it has none.
template <int kWidth, bool kGated>
struct ColumnBiases {
  float gate[kWidth];
  float up[kWidth];
  __device__ __forceinline__ void load(const ActivationBias& bias, int expert,
                                       std::int64_t column) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) gate[i] = up[i] = 0;
    if (expert >= bias.biased) return;
    const std::int64_t from = expert * bias.columns + column;
    if constexpr (kGated) load_bias<kWidth>(bias.gate + from, bias.columns - column, gate);
    load_bias<kWidth>(bias.up + from, bias.columns - column, up);
  }
};

/// act[r,i] = f(gate_up[r,i] + gate_bias[e,i], gate_up[r,I+i] + up_bias[e,i]) of rows first_row.. of expert
/// e. A thread has the same columns of `thread_rows` rows that follow each other, most of them of one
/// expert, whose biases it reads once: they are fp32, more bytes than a row. kUnroll rows are in flight.
template <class Element, int kWidth, int kUnroll, int kThreads, bool kGated>
__device__ __forceinline__ void activate_biased_rows(const ActivationStep& step,
                                                     const ActivationBias& bias,
                                                     const Element* gate_up, std::int64_t first_row,
                                                     std::int64_t rows, int thread_rows,
                                                     std::int64_t intermediate, Element* act,
                                                     std::int64_t act_stride) {
  using Vector = Vec<Element, kWidth>;
  constexpr std::int64_t kMatrices = kGated ? 2 : 1;
  const std::int64_t vectors_per_row = intermediate / kWidth;
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t column = thread % vectors_per_row * kWidth;
  const std::int64_t first = thread / vectors_per_row * thread_rows;
  const std::int64_t end = min(first + thread_rows, rows);
  if (first >= end) return;
  const auto end_of = [&](int expert) {
    return expert + 1 < bias.experts ? __ldg(bias.expert_offsets + expert + 1) - first_row : rows;
  };
  int expert = expert_of_row(bias.expert_offsets, bias.experts, first_row + first);
  std::int64_t expert_end = end_of(expert);
  ColumnBiases<kWidth, kGated> biases;
  biases.load(bias, expert, column);
  for (std::int64_t base = first; base < end; base += kUnroll) {
    Vector gate[kUnroll];
    Vector up[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (base + u >= end) continue;
      const Element* const at = gate_up + (base + u) * kMatrices * intermediate + column;
      if constexpr (kGated) gate[u] = *reinterpret_cast<const Vector*>(at);
      up[u] = *reinterpret_cast<const Vector*>(at + (kMatrices - 1) * intermediate);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (base + u >= end) continue;
      if (base + u >= expert_end) {
        while (base + u >= expert_end) expert_end = end_of(++expert);
        biases.load(bias, expert, column);
      }
      Vector result;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        result.set(i, activate<Element, kGated>(step, kGated ? gate[u].get(i) + biases.gate[i] : 0,
                                                up[u].get(i) + biases.up[i]));
      }
      *reinterpret_cast<Vector*>(act + (base + u) * act_stride + column) = result;
    }
  }
}

}  // namespace moe::cuda
