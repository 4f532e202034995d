// Counters in global memory by which blocks tell each other that data is there.
#pragma once

#include <cstdint>

#include "cuda/device/wait.cuh"

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

/// Waits until the counter is at least `count`.
__device__ __forceinline__ void wait_for_count(const std::int32_t* counter, int count) {
  wait_or_trap([=] { return load_acquire(counter) >= count; });
}

/// PTX ISA, fence.proxy.async: what was read and written in global memory before, copies (TMA) after.
__device__ __forceinline__ void fence_proxy_async_global() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

}  // namespace moe::cuda
