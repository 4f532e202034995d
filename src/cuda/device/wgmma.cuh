// Matrix products of a warpgroup (128 threads): ordering, and the description of operands in shared
// memory. The products themselves are in wgmma_bf16.cuh, which tools/gen_wgmma.py writes. One
// instruction a function; PTX ISA, wgmma.
#pragma once

#include <cstdint>

namespace moe::cuda {

/// PTX ISA, wgmma.fence: registers and shared memory written so far, before the next wgmma.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/// PTX ISA, wgmma.commit_group
__device__ __forceinline__ void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// PTX ISA, wgmma.wait_group: until at most kPending groups are running.
template <int kPending>
__device__ __forceinline__ void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Ties accumulators to this point of the program, so that no read of them moves above a wait.
template <int kCount>
__device__ __forceinline__ void keep_here(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

/// Matrix descriptor (PTX ISA, asynchronous warpgroup level matrix shared memory layout) of a K-major operand in the 128-byte swizzle: rows of 128
/// bytes, eight of them an atom of 1024 bytes, 16-byte chunk c of row r at c ^ (r & 7).
///   bits  0-13  address >> 4          16-29  leading offset: unused in this layout, 1
///   bits 32-45  1024 >> 4, the distance of neighbouring atoms          62-63  1 = 128-byte swizzle
/// The high word is constant: steps along k and along rows are additions to the low word.
struct SwizzledOperand {
  std::uint32_t low;

  static __device__ __forceinline__ SwizzledOperand at(std::uint32_t shared) {
    return {((shared & 0x3ffffU) >> 4) | (1U << 16)};
  }
  __device__ __forceinline__ SwizzledOperand plus_bytes(std::uint32_t bytes) const {
    return {low + (bytes >> 4)};
  }
  __device__ __forceinline__ std::uint64_t descriptor() const {
    constexpr std::uint32_t kHigh = (1024U >> 4) | (1U << 30);
    return static_cast<std::uint64_t>(kHigh) << 32 | low;
  }
};

}  // namespace moe::cuda
