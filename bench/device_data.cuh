// What the CUDA benchmarks share: data made on the device, comparison there, and the flush of L2.
#pragma once

#include <cuda_bf16.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "cuda/backend.h"
#include "cuda/check.h"

namespace moe::cuda {

__device__ inline std::uint64_t mix(std::uint64_t z) {
  z += 0x9E3779B97F4A7C15ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

inline __global__ void fill_normal_kernel(__nv_bfloat16* out, std::int64_t pairs,
                                          std::uint64_t seed, float scale) {
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < pairs;
       i += static_cast<std::int64_t>(gridDim.x) * blockDim.x) {
    const std::uint64_t bits = mix(seed + static_cast<std::uint64_t>(i));
    const float u = (static_cast<float>(bits >> 40) + 1.0F) * (1.0F / 16777217.0F);
    const float angle = 2.0F * static_cast<float>(bits & 0xFFFFFF) * (1.0F / 16777216.0F);
    const float radius = scale * sqrtf(-2.0F * logf(u));
    float sine;
    float cosine;
    sincospif(angle, &sine, &cosine);
    out[2 * i] = __float2bfloat16(radius * cosine);
    out[2 * i + 1] = __float2bfloat16(radius * sine);
  }
}

/// sums[0] += |a - b|^2, sums[1] += |b|^2
inline __global__ void difference_kernel(const __nv_bfloat16* a, const __nv_bfloat16* b,
                                         std::int64_t count, double* sums) {
  double difference = 0;
  double norm = 0;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<std::int64_t>(gridDim.x) * blockDim.x) {
    const float x = __bfloat162float(a[i]);
    const float y = __bfloat162float(b[i]);
    difference += static_cast<double>(x - y) * (x - y);
    norm += static_cast<double>(y) * y;
  }
  atomicAdd(sums, difference);
  atomicAdd(sums + 1, norm);
}

inline __global__ void read_kernel(const uint4* data, std::int64_t count, unsigned* sink) {
  unsigned mixed = 0;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<std::int64_t>(gridDim.x) * blockDim.x) {
    const uint4 four = data[i];
    mixed ^= four.x ^ four.y ^ four.z ^ four.w;
  }
  if (mixed == 0x9e3779b1U) *sink = mixed;  // never, but the compiler cannot know
}

/// `count` normal values times `scale` (the last one of an odd count is not written).
inline DeviceBuffer normal_values(std::int64_t count, std::uint64_t seed, float scale,
                                  cudaStream_t stream) {
  DeviceBuffer buffer(static_cast<std::size_t>(count) * 2);
  fill_normal_kernel<<<1024, 256, 0, stream>>>(buffer.as<__nv_bfloat16>(), count / 2, seed, scale);
  MOE_CUDA_CHECK_LAUNCH("fill_normal_kernel");
  return buffer;
}

/// |a - b| / |b| in the Frobenius norm. `sums`: two doubles on the device.
inline double relative_error(const __nv_bfloat16* a, const __nv_bfloat16* b, std::int64_t count,
                             double* sums, cudaStream_t stream) {
  MOE_CUDA_CHECK(cudaMemsetAsync(sums, 0, 2 * sizeof(double), stream));
  difference_kernel<<<1024, 256, 0, stream>>>(a, b, count, sums);
  MOE_CUDA_CHECK_LAUNCH("difference_kernel");
  double host[2];
  MOE_CUDA_CHECK(cudaMemcpyAsync(host, sums, sizeof(host), cudaMemcpyDeviceToHost, stream));
  MOE_CUDA_CHECK(cudaStreamSynchronize(stream));
  return std::sqrt(host[0] / host[1]);
}

/// Leaves L2 without anything of use and without dirty lines, whose write-back the next kernel would
/// pay for: 256 MiB are written, then other 256 MiB read.
class CacheFlush {
 public:
  explicit CacheFlush(cudaStream_t stream) : stream_(stream), memory_(2 * kBytes), sink_(4) {}
  void run() {
    MOE_CUDA_CHECK(cudaMemsetAsync(memory_.data(), 0, kBytes, stream_));
    read_kernel<<<1024, 256, 0, stream_>>>(
        reinterpret_cast<const uint4*>(memory_.as<std::byte>() + kBytes),
        static_cast<std::int64_t>(kBytes / sizeof(uint4)), sink_.as<unsigned>());
    MOE_CUDA_CHECK_LAUNCH("read_kernel");
  }

 private:
  static constexpr std::size_t kBytes = std::size_t{256} << 20;
  cudaStream_t stream_;
  DeviceBuffer memory_;
  DeviceBuffer sink_;
};

}  // namespace moe::cuda
