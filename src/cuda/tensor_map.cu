#include "cuda/tensor_map.h"

#include <cuda_runtime_api.h>

#include "core/check.h"
#include "cuda/check.h"

namespace moe::cuda {
namespace {

/// The driver's encoder, without linking the driver library.
auto encoder() {
  static const auto function = [] {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult found{};
    MOE_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &address, 12000,
                                                    cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) {
      fail(ErrorCode::kCuda, "the driver has no cuTensorMapEncodeTiled (result {})",
           static_cast<int>(found));
    }
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(address);
  }();
  return function;
}

}  // namespace

CUtensorMap make_tensor_map(const TensorMapSpec& spec) {
  constexpr cuuint64_t kElement = 2;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(spec.columns),
                               static_cast<cuuint64_t>(spec.rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(spec.columns) * kElement};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(spec.box_columns),
                             static_cast<cuuint32_t>(spec.box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  CUtensorMap map;
  const CUresult result =
      encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(spec.data), sizes,
                strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    fail(ErrorCode::kCuda, "the driver refuses a tensor map: {} rows of {}, boxes {}x{} (error {})",
         spec.rows, spec.columns, spec.box_rows, spec.box_columns, static_cast<int>(result));
  }
  return map;
}

CUtensorMap make_piece_map(const PieceMapSpec& spec) {
  // A piece is two rows of 256 elements of 8 bytes, the longest that a box can have.
  constexpr cuuint64_t kRow = 256;
  const cuuint64_t sizes[5] = {kRow, 2, 2, 2, static_cast<cuuint64_t>(spec.blocks)};
  const cuuint64_t strides[4] = {kRow * 8, spec.piece_stride, spec.pair_stride, spec.stride};
  const cuuint32_t box[5] = {kRow, 2, 2, 2, 1};
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT64, 5, const_cast<void*>(spec.data), sizes,
                strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
                CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    fail(ErrorCode::kCuda,
         "the driver refuses a tensor map: {} blocks, strides {}, {} and {} (error {})",
         spec.blocks, spec.stride, spec.pair_stride, spec.piece_stride, static_cast<int>(result));
  }
  return map;
}

}  // namespace moe::cuda
