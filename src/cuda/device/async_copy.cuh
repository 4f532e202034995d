// Copies from global to shared memory that each thread starts for itself, 16 bytes at a time. One
// instruction a function; the PTX ISA section is named. They are ordinary writes (generic proxy): what
// reads them by wgmma needs fence_proxy_async() between.
#pragma once

#include <cstdint>

namespace moe::cuda {

/// PTX ISA, cp.async, .cg: past L1. Both addresses are multiples of 16.
__device__ __forceinline__ void copy_async(std::uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

/// PTX ISA, cp.async.mbarrier.arrive, .noinc: arrives once all copies that this thread has started are
/// there; one of the arrivals that the barrier was set up for.
__device__ __forceinline__ void copy_async_arrive(std::uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

}  // namespace moe::cuda
