#include "cuda/ops/gather.h"

#include "cuda/check.h"
#include "cuda/device/element.cuh"

namespace moe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 8;
constexpr std::int64_t kPiece = kThreads * kUnroll;  // units that one block copies

template <class Unit>
__global__ void __launch_bounds__(kThreads)
    gather_weights_kernel(const Unit* __restrict__ weights,
                          const std::int32_t* __restrict__ topk_idx, std::int64_t pieces_per_row,
                          std::int64_t units, std::int64_t matrix_units, std::int64_t first_unit,
                          std::int64_t row_stride_units, Unit* __restrict__ out) {
  const std::int64_t row = blockIdx.x / pieces_per_row;
  const std::int64_t begin = (blockIdx.x % pieces_per_row) * kPiece + threadIdx.x;
  const Unit* const from = weights + topk_idx[row] * matrix_units + first_unit;
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

void gather_weights(const TensorView& weights, const std::int32_t* topk_idx,
                    std::int64_t num_routed, RowSlice slice, std::int64_t row_stride, void* out,
                    cudaStream_t stream) {
  const auto element = static_cast<std::int64_t>(size_of(weights.dtype));
  const std::int64_t row_bytes = weights.dim(2) * element;
  const auto launch = [&]<class Unit>() {
    constexpr auto kUnit = static_cast<std::int64_t>(sizeof(Unit));
    const std::int64_t units = slice.count * row_bytes / kUnit;
    const std::int64_t pieces = (units + kPiece - 1) / kPiece;
    gather_weights_kernel<<<static_cast<unsigned>(num_routed * pieces), kThreads, 0, stream>>>(
        weights.as<const Unit>(), topk_idx, pieces, units, weights.dim(1) * row_bytes / kUnit,
        slice.first * row_bytes / kUnit, row_stride * element / kUnit, static_cast<Unit*>(out));
  };
  if (in_widest_vectors(row_bytes, {weights.data, out}) && row_stride * element % 16 == 0) {
    launch.template operator()<uint4>();
  } else {
    launch.template operator()<std::uint16_t>();  // every element type is a multiple of it
  }
  MOE_CUDA_CHECK_LAUNCH("gather_weights_kernel");
}

}  // namespace moe::cuda
