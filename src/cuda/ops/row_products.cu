#include "cuda/ops/row_products.h"

#include "cuda/check.h"
#include "cuda/device/element.cuh"
#include "cuda/device/swiglu.cuh"
#include "cuda/device/warp.cuh"

namespace moe::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kColumns = 4;  // of one warp: one load of x serves as many loads of weights

template <class Element>
__device__ __forceinline__ const Element* matrix_of(const MatrixOfRow& matrix, std::int64_t row) {
  return static_cast<const Element*>(matrix.base) +
         (matrix.topk_idx == nullptr ? row : matrix.topk_idx[row]) * matrix.stride;
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

template <class Element, int kWidth>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    product_swiglu_kernel(MatrixOfRow gate, MatrixOfRow up, const Element* __restrict__ x,
                          std::int64_t rows, std::int64_t rows_per_input, std::int64_t columns,
                          std::int64_t depth, Element* __restrict__ act, std::int64_t act_stride) {
  const Work work = work_of_warp(rows);
  if (work.column >= columns) return;
  const Element* const matrices[2] = {matrix_of<Element>(gate, work.row),
                                      matrix_of<Element>(up, work.row)};
  float sums[2][kColumns] = {};
  accumulate<Element, kWidth, 2>(matrices, x + work.row / rows_per_input * depth, work.column,
                                 columns, depth, sums);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const float value = silu<Element>(warp_sum(sums[0][c])) * warp_sum(sums[1][c]);
    if (lane == c && work.column + c < columns) {
      act[work.row * act_stride + work.column + c] = from_float<Element>(value);
    }
  }
}

template <class Element, int kWidth>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    product_combine_kernel(MatrixOfRow down, const Element* __restrict__ act,
                           const float* __restrict__ topk_weights, std::int64_t tokens, int top_k,
                           std::int64_t hidden, std::int64_t depth, Element* __restrict__ y) {
  const Work work = work_of_warp(tokens);
  if (work.column >= hidden) return;
  float total[kColumns] = {};
  for (int slot = 0; slot < top_k; ++slot) {
    const std::int64_t row = work.row * top_k + slot;
    const Element* const matrices[1] = {matrix_of<Element>(down, row)};
    float sums[1][kColumns] = {};
    accumulate<Element, kWidth, 1>(matrices, act + row * depth, work.column, hidden, depth, sums);
    const float weight = topk_weights[row];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) total[c] = fmaf(weight, warp_sum(sums[0][c]), total[c]);
  }
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    if (lane == c && work.column + c < hidden) {
      y[work.row * hidden + work.column + c] = from_float<Element>(total[c]);
    }
  }
}

}  // namespace

void product_swiglu(DType dtype, const MatrixOfRow& gate, const MatrixOfRow& up, const void* x,
                    std::int64_t rows, std::int64_t rows_per_input, std::int64_t columns,
                    std::int64_t depth, void* act, std::int64_t act_stride, cudaStream_t stream) {
  with_device_type(dtype, [&]<class Element>() {
    const auto launch = [&]<int kWidth>() {
      product_swiglu_kernel<Element, kWidth>
          <<<blocks_for(rows, columns), kWarps * kWarpSize, 0, stream>>>(
              gate, up, static_cast<const Element*>(x), rows, rows_per_input, columns, depth,
              static_cast<Element*>(act), act_stride);
    };
    // Matrices start at multiples of their rows, so aligned rows make aligned matrices.
    if (in_widest_vectors(depth * static_cast<std::int64_t>(sizeof(Element)),
                          {gate.base, up.base, x})) {
      launch.template operator()<kWidest<Element>>();
    } else {
      launch.template operator()<1>();
    }
  });
  MOE_CUDA_CHECK_LAUNCH("product_swiglu_kernel");
}

void product_combine(DType dtype, const MatrixOfRow& down, const void* act,
                     const float* topk_weights, std::int64_t tokens, std::int64_t top_k,
                     std::int64_t hidden, std::int64_t depth, void* y, cudaStream_t stream) {
  with_device_type(dtype, [&]<class Element>() {
    const auto launch = [&]<int kWidth>() {
      product_combine_kernel<Element, kWidth>
          <<<blocks_for(tokens, hidden), kWarps * kWarpSize, 0, stream>>>(
              down, static_cast<const Element*>(act), topk_weights, tokens, static_cast<int>(top_k),
              hidden, depth, static_cast<Element*>(y));
    };
    if (in_widest_vectors(depth * static_cast<std::int64_t>(sizeof(Element)), {down.base, act})) {
      launch.template operator()<kWidest<Element>>();
    } else {
      launch.template operator()<1>();
    }
  });
  MOE_CUDA_CHECK_LAUNCH("product_combine_kernel");
}

}  // namespace moe::cuda
