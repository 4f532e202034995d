// Barrier objects in shared memory. One instruction a function; the PTX ISA section is named.
//
// A phase completes when all expected arrivals came and all expected bytes were written. A waiter
// names the parity of the phase it waits for, and so must never be two phases behind.
#pragma once

#include <cstdint>

#include "cuda/device/wait.cuh"

namespace moe::cuda {

/// PTX ISA, mbarrier.init
__device__ __forceinline__ void mbarrier_init(std::uint32_t barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// PTX ISA, fence.mbarrier_init: makes initialised barriers visible to the cluster and to copies.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// PTX ISA, mbarrier.arrive.expect_tx: one arrival that also announces `bytes` of copies.
__device__ __forceinline__ void mbarrier_arrive_expect_bytes(std::uint32_t barrier,
                                                             std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

/// PTX ISA, mbarrier.expect_tx: announces `bytes` of copies without arriving.
__device__ __forceinline__ void mbarrier_expect_bytes(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

/// PTX ISA, mbarrier.arrive on a barrier of this block.
__device__ __forceinline__ void mbarrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// PTX ISA, mbarrier.arrive on a barrier of any block of the cluster (cluster_address).
/// NOTE: the default scope. With .release.cluster here and .acquire.cluster in the wait the main
/// loop took 37 % longer. What the arrival orders is that a stage was read (by wgmmas that have been
/// waited for, through the asynchronous proxy) before a copy overwrites it; no data read or written by
/// ordinary instructions passes this barrier.
__device__ __forceinline__ void mbarrier_arrive_cluster(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// PTX ISA, mbarrier.try_wait: whether the phase of this parity has completed; the hardware may
/// suspend the thread for a while before it says no. Before Hopper test_wait, which says no at once.
__device__ __forceinline__ bool mbarrier_try_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
#if __CUDA_ARCH__ >= 900
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
#else
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
#endif
      "selp.u32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

/// The same with .acquire.cluster: what another block of the cluster wrote with store_async() before
/// the phase completed may be read.
__device__ __forceinline__ bool mbarrier_try_wait_cluster(std::uint32_t barrier,
                                                          std::uint32_t parity) {
  std::uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

/// Waits for the phase of this parity.
__device__ __forceinline__ void mbarrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  wait_or_trap([=] { return mbarrier_try_wait(barrier, parity); });
}
__device__ __forceinline__ void mbarrier_wait_cluster(std::uint32_t barrier, std::uint32_t parity) {
  wait_or_trap([=] { return mbarrier_try_wait_cluster(barrier, parity); });
}

}  // namespace moe::cuda
