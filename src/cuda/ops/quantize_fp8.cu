#include "cuda/ops/quantize_fp8.h"

#include <cuda_fp8.h>

#include <algorithm>

#include "core/check.h"
#include "cuda/check.h"
#include "cuda/device/element.cuh"
#include "cuda/device/warp.cuh"

namespace moe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostBlocks = 1 << 20;

/// Two values, the first in the low byte; the nearest e4m3, ties to even, saturating. One instruction
/// from sm_89 on.
__device__ __forceinline__ unsigned short e4m3x2(float low, float high) {
  return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}

/// Units of kWidth elements, numbered through all rows.
struct Units {
  std::int64_t count;
  std::int64_t per_row;
  std::int64_t stride;  // elements between rows
  template <int kWidth>
  [[nodiscard]] __device__ std::int64_t element(std::int64_t unit) const {
    const std::int64_t row = unit / per_row;
    return row * stride + (unit - row * per_row) * kWidth;
  }
};

__global__ void clear_kernel(float* largest) {
  *largest = 0;
}

/// Magnitudes as bit patterns: ordered like the values, and NaN above all of them.
template <class Element, int kWidth>
__global__ void __launch_bounds__(kThreads)
    largest_magnitude_kernel(const Element* data, Units units, float* largest) {
  unsigned mine = 0;
  for (std::int64_t unit = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       unit < units.count; unit += static_cast<std::int64_t>(gridDim.x) * kThreads) {
    const auto values =
        *reinterpret_cast<const Vec<Element, kWidth>*>(data + units.element<kWidth>(unit));
#pragma unroll
    for (int i = 0; i < kWidth; ++i) mine = max(mine, __float_as_uint(fabsf(values.get(i))));
  }
  mine = __reduce_max_sync(kAllLanes, mine);
  if (threadIdx.x % kWarpSize == 0) atomicMax(reinterpret_cast<unsigned*>(largest), mine);
}

template <class Element, int kWidth>
__global__ void __launch_bounds__(kThreads)
    quantize_e4m3_kernel(const Element* data, Units units, const float* largest, unsigned char* out,
                         float* scale) {
  const float most = *largest;
  const float factor = most == 0 ? 1.0F : kLargestE4m3 / most;
  if (blockIdx.x == 0 && threadIdx.x == 0) *scale = most == 0 ? 1.0F : most / kLargestE4m3;
  for (std::int64_t unit = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       unit < units.count; unit += static_cast<std::int64_t>(gridDim.x) * kThreads) {
    const auto values =
        *reinterpret_cast<const Vec<Element, kWidth>*>(data + units.element<kWidth>(unit));
    if constexpr (kWidth == 1) {
      out[unit] = static_cast<unsigned char>(e4m3x2(values.get(0) * factor, 0.0F));
    } else {
      static_assert(kWidth % 4 == 0, "words of four");
      unsigned words[kWidth / 4];
#pragma unroll
      for (int w = 0; w < kWidth / 4; ++w) {
        const unsigned low = e4m3x2(values.get(4 * w) * factor, values.get(4 * w + 1) * factor);
        const unsigned high =
            e4m3x2(values.get(4 * w + 2) * factor, values.get(4 * w + 3) * factor);
        words[w] = low | high << 16;
      }
      auto* const target = reinterpret_cast<unsigned*>(out + unit * kWidth);
#pragma unroll
      for (int w = 0; w < kWidth / 4; ++w) target[w] = words[w];
    }
  }
}

/// Calls launch.operator()<Element, kWidth>(units, blocks).
template <class Launch>
void over_units(DType dtype, const void* data, const void* out, std::int64_t rows,
                std::int64_t columns, std::int64_t stride, const Launch& launch) {
  const auto blocks = [](std::int64_t units) {
    return static_cast<unsigned>(
        std::clamp<std::int64_t>((units + kThreads - 1) / kThreads, 1, kMostBlocks));
  };
  with_device_type(dtype, [&]<class Element>() {
    constexpr int kWidth = kWidest<Element>;
    if (in_widest_vectors(columns * static_cast<std::int64_t>(sizeof(Element)), {data, out}) &&
        stride % kWidth == 0) {
      const Units units{rows * (columns / kWidth), columns / kWidth, stride};
      launch.template operator()<Element, kWidth>(units, blocks(units.count));
    } else {
      const Units units{rows * columns, columns, stride};
      launch.template operator()<Element, 1>(units, blocks(units.count));
    }
  });
}

}  // namespace

void largest_magnitude(DType dtype, const void* data, std::int64_t rows, std::int64_t columns,
                       std::int64_t stride, float* largest, cudaStream_t stream) {
  clear_kernel<<<1, 1, 0, stream>>>(largest);
  over_units(dtype, data, nullptr, rows, columns, stride,
             [&]<class Element, int kWidth>(const Units& units, unsigned blocks) {
               // Few atomics: each thread takes several units where there are many.
               constexpr unsigned kEnough = 4096;
               largest_magnitude_kernel<Element, kWidth>
                   <<<std::min(blocks, kEnough), kThreads, 0, stream>>>(
                       static_cast<const Element*>(data), units, largest);
             });
  MOE_CUDA_CHECK_LAUNCH("largest_magnitude_kernel");
}

void quantize_e4m3(DType dtype, const void* data, std::int64_t rows, std::int64_t columns,
                   std::int64_t stride, const float* largest, void* out, float* scale,
                   cudaStream_t stream) {
  over_units(dtype, data, out, rows, columns, stride,
             [&]<class Element, int kWidth>(const Units& units, unsigned blocks) {
               quantize_e4m3_kernel<Element, kWidth><<<blocks, kThreads, 0, stream>>>(
                   static_cast<const Element*>(data), units, largest,
                   static_cast<unsigned char*>(out), scale);
             });
  MOE_CUDA_CHECK_LAUNCH("quantize_e4m3_kernel");
}

}  // namespace moe::cuda
