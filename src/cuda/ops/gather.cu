#include "cuda/ops/gather.h"

#include "cuda/check.h"
#include "cuda/device/element.cuh"

namespace moe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 8;
constexpr std::int64_t kPiece = kThreads * kUnroll;  // units that one block copies

/// Matrices in units.
template <class Unit>
struct Source {
  const Unit* data;
  std::int64_t stride;
  const Unit* shared_data;
  std::int64_t shared_stride;
  std::int64_t shared_first;
};

template <class Unit>
__global__ void __launch_bounds__(kThreads)
    gather_weights_kernel(const Source<Unit> weights, const std::int32_t* __restrict__ topk_idx,
                          std::int64_t pieces_per_row, std::int64_t units, std::int64_t first_unit,
                          std::int64_t row_stride_units, Unit* __restrict__ out) {
  const std::int64_t row = blockIdx.x / pieces_per_row;
  const std::int64_t begin = (blockIdx.x % pieces_per_row) * kPiece + threadIdx.x;
  const std::int64_t expert = topk_idx[row];
  if (expert < 0) return;
  const Unit* const matrix =
      expert < weights.shared_first
          ? weights.data + expert * weights.stride
          : weights.shared_data + (expert - weights.shared_first) * weights.shared_stride;
  const Unit* const from = matrix + first_unit;
  Unit* const to = out + row * row_stride_units;
  Unit values[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    if (begin + u * kThreads < units) values[u] = from[begin + u * kThreads];
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    if (begin + u * kThreads < units) to[begin + u * kThreads] = values[u];
  }
}

}  // namespace

void gather_weights(DType dtype, const MatrixByExpert& weights, const std::int32_t* topk_idx,
                    std::int64_t num_routed, RowSlice slice, std::int64_t row_stride, void* out,
                    cudaStream_t stream) {
  const auto element = static_cast<std::int64_t>(size_of(dtype));
  const std::int64_t row_bytes = slice.columns * element;
  const auto launch = [&]<class Unit>() {
    constexpr auto kUnit = static_cast<std::int64_t>(sizeof(Unit));
    const std::int64_t units = slice.count * row_bytes / kUnit;
    const std::int64_t pieces = (units + kPiece - 1) / kPiece;
    const Source<Unit> source{static_cast<const Unit*>(weights.data),
                              weights.stride * element / kUnit,
                              static_cast<const Unit*>(weights.shared_data),
                              weights.shared_stride * element / kUnit, weights.shared_first};
    gather_weights_kernel<<<static_cast<unsigned>(num_routed * pieces), kThreads, 0, stream>>>(
        source, topk_idx, pieces, units, slice.first * row_bytes / kUnit,
        row_stride * element / kUnit, static_cast<Unit*>(out));
  };
  if (in_widest_vectors(row_bytes, {weights.data, weights.shared_data, out}) &&
      row_stride * element % 16 == 0) {
    launch.template operator()<uint4>();
  } else {
    launch.template operator()<std::uint16_t>();  // every element type is a multiple of it
  }
  MOE_CUDA_CHECK_LAUNCH("gather_weights_kernel");
}

}  // namespace moe::cuda
