// Warp-wide matrix instructions and asynchronous copies that exist from sm_80 on. One instruction a
// function, named by its section of the PTX ISA.
#pragma once

#include <cstdint>

#include "cuda/device/shared_address.cuh"

namespace moe::cuda {

/// cp.async, 16 bytes from global to shared memory around the registers and L1. With `present` false
/// nothing is read and zeros are written; `from` must be a valid address all the same.
__device__ __forceinline__ void copy_async_16(unsigned to, const void* from, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(present ? 16 : 0)
               : "memory");
}
/// cp.async.commit_group: the copies since the last commit are one group.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// cp.async.wait_group: until at most kPending of this thread's groups are unfinished.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// ldmatrix.x4: four 8x8 matrices of 16-bit elements. Lane l gives the address of row l % 8 of
/// matrix l / 8 and gets elements 2·(l % 4) and the next of row l / 4 of each.
__device__ __forceinline__ void load_matrices(unsigned address, unsigned (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

/// mma.m16n8k16 with bf16 inputs: d[16,8] += a[16,16] · b[8,16]^T in fp32. Lane l holds rows l / 4
/// and l / 4 + 8 of d, columns 2·(l % 4) and the next.
__device__ __forceinline__ void multiply_bf16(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                              unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace moe::cuda
