// The sixteen hardware barriers of a block. One instruction a function; PTX ISA, bar.
#pragma once

namespace moe::cuda {

/// Waits until `threads` threads have arrived at barrier `id`, this one included.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Arrives without waiting.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace moe::cuda
