#include "core/fingerprint.h"

#include <algorithm>

#include "cuda/check.h"
#include "cuda/device/warp.cuh"
#include "cuda/ops/fingerprint.h"

namespace moe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostBlocks = 2048;  // several for each multiprocessor of any GPU
constexpr int kWordBytes = 8;

/// Word number `index` of `bytes` bytes, filled up with zeros at the end.
__device__ std::uint64_t load_word(const std::byte* data, std::int64_t bytes, std::int64_t index,
                                   bool aligned) {
  const std::byte* const at = data + index * kWordBytes;
  const std::int64_t left = bytes - index * kWordBytes;
  if (aligned && left >= kWordBytes) return *reinterpret_cast<const std::uint64_t*>(at);
  std::uint64_t word = 0;
  const int count = static_cast<int>(left < kWordBytes ? left : kWordBytes);
  for (int i = 0; i < count; ++i) word |= static_cast<std::uint64_t>(at[i]) << (8 * i);
  return word;
}

/// Adds the terms of all words to *sum, which already holds that of the length.
__global__ void __launch_bounds__(kThreads)
    fingerprint_kernel(const std::byte* data, std::int64_t bytes, bool aligned,
                       unsigned long long* sum) {
  const std::int64_t words = (bytes + kWordBytes - 1) / kWordBytes;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  std::uint64_t mine = 0;
  for (std::int64_t word = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       word < words; word += stride) {
    mine +=
        fingerprint_term(load_word(data, bytes, word, aligned), static_cast<std::uint64_t>(word));
  }
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    mine += __shfl_xor_sync(kAllLanes, mine, distance);
  }
  if (threadIdx.x % kWarpSize == 0) atomicAdd(sum, static_cast<unsigned long long>(mine));
}

__global__ void begin_kernel(std::uint64_t bytes, std::uint64_t* sum) {
  *sum = fingerprint_of_length(bytes);
}

}  // namespace

void fingerprint(const void* data, std::size_t bytes, std::uint64_t* sum, cudaStream_t stream) {
  begin_kernel<<<1, 1, 0, stream>>>(bytes, sum);
  MOE_CUDA_CHECK_LAUNCH("begin_kernel");
  if (bytes == 0) return;
  const auto words = static_cast<std::int64_t>((bytes + kWordBytes - 1) / kWordBytes);
  const auto blocks =
      static_cast<unsigned>(std::min<std::int64_t>(kMostBlocks, (words + kThreads - 1) / kThreads));
  const bool aligned = reinterpret_cast<std::uintptr_t>(data) % kWordBytes == 0;
  fingerprint_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const std::byte*>(data),
                                                      static_cast<std::int64_t>(bytes), aligned,
                                                      reinterpret_cast<unsigned long long*>(sum));
  MOE_CUDA_CHECK_LAUNCH("fingerprint_kernel");
}

}  // namespace moe::cuda
