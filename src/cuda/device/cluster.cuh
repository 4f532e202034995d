// Blocks of one cluster: who am I, the neighbour's shared memory, the barrier of all. One instruction
// a function; the PTX ISA section is named.
#pragma once

#include <cstdint>

namespace moe::cuda {

/// PTX ISA, %smid
__device__ __forceinline__ std::uint32_t multiprocessor() {
  std::uint32_t number;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(number));
  return number;
}

/// PTX ISA, %cluster_ctarank
__device__ __forceinline__ std::uint32_t cluster_rank() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// PTX ISA, mapa: the address that `shared` has in block `rank` of the cluster.
__device__ __forceinline__ std::uint32_t cluster_address(std::uint32_t shared, std::uint32_t rank) {
  std::uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared), "r"(rank));
  return address;
}

/// PTX ISA, barrier.cluster: all threads of all blocks; every warp must be converged.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile(
      "barrier.cluster.arrive.aligned;\n"
      "barrier.cluster.wait.aligned;" ::
          : "memory");
}

/// PTX ISA, st.async: writes 16 bytes into the shared memory of any block of the cluster and adds
/// them to the barrier there. Both are cluster_address()es of the same block.
__device__ __forceinline__ void store_async(std::uint32_t to, const int4& value,
                                            std::uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(barrier)
      : "memory");
}

}  // namespace moe::cuda
