#include "cuda/ops/row_products.h"

#include "cuda/check.h"
#include "cuda/device/activate_rows.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/swiglu.cuh"
#include "cuda/device/warp.cuh"

namespace moe::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kColumns = 4;  // of one warp: one load of x serves as many loads of weights

template <class Element>
__device__ __forceinline__ const Element* matrix_of(const MatrixOfRow& matrix, std::int64_t row) {
  const MatrixByExpert& of = matrix.matrices;
  const std::int64_t expert = matrix.topk_idx == nullptr ? row : matrix.topk_idx[row];
  if (expert < of.shared_first) return static_cast<const Element*>(of.data) + expert * of.stride;
  return static_cast<const Element*>(of.shared_data) +
         (expert - of.shared_first) * of.shared_stride;
}

/// sums[m][c] += lane's share of matrix m's row (column + c) · x; the warp's lanes together cover
/// the depth. Columns beyond `columns` repeat the last one, so that no load is predicated.
template <class Element, int kWidth, int kMatrices>
__device__ __forceinline__ void accumulate(const Element* const (&matrices)[kMatrices],
                                           const Element* x, std::int64_t column,
                                           std::int64_t columns, std::int64_t depth,
                                           float (&sums)[kMatrices][kColumns]) {
  using Vector = Vec<Element, kWidth>;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (std::int64_t at = lane * kWidth; at < depth; at += kWarpSize * kWidth) {
    const Vector input = *reinterpret_cast<const Vector*>(x + at);
    Vector weights[kMatrices][kColumns];
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const std::int64_t row = min(column + c, columns - 1);
        weights[m][c] = *reinterpret_cast<const Vector*>(matrices[m] + row * depth + at);
      }
    }
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          sums[m][c] = fmaf(weights[m][c].get(i), input.get(i), sums[m][c]);
        }
      }
    }
  }
}

/// Which rows and columns a warp owns. Blocks of one column range are neighbours, so that the rows
/// of one expert find its weights in L2.
struct Work {
  std::int64_t row = 0;
  std::int64_t column = 0;
};
__device__ __forceinline__ Work work_of_warp(std::int64_t rows) {
  const std::int64_t block = blockIdx.x;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  return {block % rows, (block / rows * kWarps + warp) * kColumns};
}

unsigned blocks_for(std::int64_t rows, std::int64_t columns) {
  constexpr std::int64_t kPerBlock = kWarps * kColumns;
  return static_cast<unsigned>(rows * ((columns + kPerBlock - 1) / kPerBlock));
}

/// kExtras: what RowExtras and activations other than SwiGLU add; without, `step` and `extras` are not
/// read.
template <class Element, int kWidth, bool kGated, bool kExtras>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    product_activation_kernel(const ActivationStep step, const RowExtras extras, MatrixOfRow gate,
                              MatrixOfRow up, const Element* __restrict__ x, std::int64_t rows,
                              std::int64_t rows_per_input, std::int64_t columns, std::int64_t depth,
                              Element* __restrict__ act, std::int64_t act_stride) {
  constexpr int kMatrices = kGated ? 2 : 1;
  const Work work = work_of_warp(rows);
  if (work.column >= columns) return;
  int expert = 0;
  float scale = 1;
  if constexpr (kExtras) {
    if (extras.topk_idx != nullptr) {
      expert = extras.topk_idx[work.row];
      if (expert < 0) return;
      if (extras.input_weights != nullptr) scale = extras.input_weights[work.row];
    }
  }
  const Element* matrices[kMatrices];
  if constexpr (kGated) matrices[0] = matrix_of<Element>(gate, work.row);
  matrices[kMatrices - 1] = matrix_of<Element>(up, work.row);
  float sums[kMatrices][kColumns] = {};
  accumulate<Element, kWidth, kMatrices>(matrices, x + work.row / rows_per_input * depth,
                                         work.column, columns, depth, sums);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    float g = warp_sum(sums[0][c]);
    float u = kGated ? warp_sum(sums[kMatrices - 1][c]) : g;
    if (lane != c || work.column + c >= columns) continue;
    float value = 0;
    if constexpr (kExtras) {
      const std::int64_t at = expert * extras.bias_stride + work.column + c;
      const bool biased = extras.up_bias != nullptr && expert < extras.biased;
      u = scale * u + (biased ? extras.up_bias[at] : 0.0F);
      if constexpr (kGated) g = scale * g + (biased ? extras.gate_bias[at] : 0.0F);
      value = activate<Element, kGated>(step, g, u);
    } else {
      value = silu<Element>(g) * u;
    }
    act[work.row * act_stride + work.column + c] = from_float<Element>(value);
  }
}

template <class Element, int kWidth, bool kExtras>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    product_combine_kernel(const RowExtras extras, MatrixOfRow down,
                           const Element* __restrict__ act, const float* __restrict__ topk_weights,
                           std::int64_t tokens, int top_k, std::int64_t hidden, std::int64_t depth,
                           Element* __restrict__ y) {
  const Work work = work_of_warp(tokens);
  if (work.column >= hidden) return;
  float total[kColumns] = {};
  for (int slot = 0; slot < top_k; ++slot) {
    const std::int64_t row = work.row * top_k + slot;
    const float* bias = nullptr;
    float weight = 1;
    if constexpr (kExtras) {
      const int expert = extras.topk_idx[row];
      if (expert < 0) continue;
      if (extras.down_bias != nullptr && expert < extras.biased) {
        bias = extras.down_bias + expert * extras.bias_stride + work.column;
      }
      if (topk_weights != nullptr) weight = topk_weights[row];
    } else {
      weight = topk_weights[row];
    }
    const Element* const matrices[1] = {matrix_of<Element>(down, row)};
    float sums[1][kColumns] = {};
    accumulate<Element, kWidth, 1>(matrices, act + row * depth, work.column, hidden, depth, sums);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      float value = warp_sum(sums[0][c]);
      if constexpr (kExtras) {
        if (bias != nullptr && work.column + c < hidden) value += bias[c];
      }
      total[c] = fmaf(weight, value, total[c]);
    }
  }
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    if (lane == c && work.column + c < hidden) {
      y[work.row * hidden + work.column + c] = from_float<Element>(total[c]);
    }
  }
}

/// Matrices start at multiples of their rows, so aligned rows make aligned matrices.
bool in_wide_rows(DType dtype, std::int64_t depth, const void* x,
                  std::initializer_list<const MatrixOfRow*> matrices) {
  const std::int64_t row_bytes = depth * static_cast<std::int64_t>(size_of(dtype));
  bool wide = in_widest_vectors(row_bytes, {x});
  for (const MatrixOfRow* matrix : matrices) {
    wide =
        wide && in_widest_vectors(row_bytes, {matrix->matrices.data, matrix->matrices.shared_data});
  }
  return wide;
}

}  // namespace

void product_activation(DType dtype, const Activation& activation, const MatrixOfRow& gate,
                        const MatrixOfRow& up, const void* x, std::int64_t rows,
                        std::int64_t rows_per_input, std::int64_t columns, std::int64_t depth,
                        void* act, std::int64_t act_stride, cudaStream_t stream,
                        const RowExtras& extras) {
  const bool plain = activation == Activation{} && extras.topk_idx == nullptr;
  const ActivationStep step =
      activation.gated() ? ActivationStep::of(activation) : ActivationStep{};
  with_device_type(dtype, [&]<class Element>() {
    const auto launch = [&]<int kWidth>() {
      const auto kernel = plain ? product_activation_kernel<Element, kWidth, true, false>
                          : activation.gated()
                              ? product_activation_kernel<Element, kWidth, true, true>
                              : product_activation_kernel<Element, kWidth, false, true>;
      kernel<<<blocks_for(rows, columns), kWarps * kWarpSize, 0, stream>>>(
          step, extras, gate, up, static_cast<const Element*>(x), rows, rows_per_input, columns,
          depth, static_cast<Element*>(act), act_stride);
    };
    if (in_wide_rows(dtype, depth, x, {&gate, &up})) {
      launch.template operator()<kWidest<Element>>();
    } else {
      launch.template operator()<1>();
    }
  });
  MOE_CUDA_CHECK_LAUNCH("product_activation_kernel");
}

void product_combine(DType dtype, const MatrixOfRow& down, const void* act,
                     const float* topk_weights, std::int64_t tokens, std::int64_t top_k,
                     std::int64_t hidden, std::int64_t depth, void* y, cudaStream_t stream,
                     const RowExtras& extras) {
  with_device_type(dtype, [&]<class Element>() {
    const auto launch = [&]<int kWidth>() {
      const auto kernel = extras.topk_idx == nullptr
                              ? product_combine_kernel<Element, kWidth, false>
                              : product_combine_kernel<Element, kWidth, true>;
      kernel<<<blocks_for(tokens, hidden), kWarps * kWarpSize, 0, stream>>>(
          extras, down, static_cast<const Element*>(act), topk_weights, tokens,
          static_cast<int>(top_k), hidden, depth, static_cast<Element*>(y));
    };
    if (in_wide_rows(dtype, depth, act, {&down})) {
      launch.template operator()<kWidest<Element>>();
    } else {
      launch.template operator()<1>();
    }
  });
  MOE_CUDA_CHECK_LAUNCH("product_combine_kernel");
}

}  // namespace moe::cuda
