// Addresses of shared memory as PTX wants them.
#pragma once

#include <cstdint>

namespace moe::cuda {

/// A generic pointer into this block's shared memory as a 32-bit address of the .shared window.
__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// 16 bytes at such an address, in one access. PTX ISA, ld.volatile.
/// NOTE: not a plain ld: ptxas takes that apart and reads each word where it is first needed, which may
/// be after this thread has told others that it has read all of them.
__device__ __forceinline__ int4 load_shared(std::uint32_t address) {
  int4 value;
  asm volatile("ld.volatile.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address)
               : "memory");
  return value;
}

/// PTX ISA, st.shared: four bytes at such an address.
__device__ __forceinline__ void store_shared(std::uint32_t address, int value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

}  // namespace moe::cuda
