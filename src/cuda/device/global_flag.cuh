// Counters in global memory by which blocks tell each other that data is there.
#pragma once

#include <cstdint>

namespace moe::cuda {

/// PTX ISA, red with .release.gpu: what this thread has seen and written is visible to who acquires it.
__device__ __forceinline__ void add_release(std::int32_t* counter, int value) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}

/// PTX ISA, ld with .acquire.gpu
__device__ __forceinline__ int load_acquire(const std::int32_t* counter) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

/// Waits until the counter is at least `count`. Traps after seconds, as mbarrier_wait() does.
__device__ __forceinline__ void wait_for_count(const std::int32_t* counter, int count) {
  constexpr long long kHang = 4'000'000'000LL;
  if (load_acquire(counter) >= count) return;
  const long long start = clock64();
  do {
    if (load_acquire(counter) >= count) return;
  } while (clock64() - start < kHang);
  __trap();
}

/// PTX ISA, fence.proxy.async: what was read and written in global memory before, copies (TMA) after.
__device__ __forceinline__ void fence_proxy_async_global() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

}  // namespace moe::cuda
