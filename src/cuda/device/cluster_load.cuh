// Reading the shared memory of another block of the cluster, and telling it that one has done so. One
// instruction a function; the PTX ISA section is named.
#pragma once

#include <cstdint>

namespace moe::cuda {

/// PTX ISA, barrier.cluster.arrive: of all threads of all blocks; every warp must be converged.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
}
/// PTX ISA, barrier.cluster.wait: until all threads of all blocks have arrived.
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

/// PTX ISA, ld.shared::cluster: kCount floats at a cluster_address(), 16 bytes a load where there are as many.
template <int kCount>
__device__ __forceinline__ void load_cluster(std::uint32_t address, float (&values)[kCount]) {
  if constexpr (kCount % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(values[i]), "=f"(values[i + 1]), "=f"(values[i + 2]), "=f"(values[i + 3])
                   : "r"(address + i * 4));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(values[i]) : "r"(address + i * 4));
    }
  }
}

}  // namespace moe::cuda
