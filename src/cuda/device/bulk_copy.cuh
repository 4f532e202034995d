// Copies between global and shared memory that one thread starts: plain runs of bytes and boxes of a
// tensor (TMA). One instruction a function; the PTX ISA section is named.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace moe::cuda {

/// PTX ISA, cp.async.bulk: `bytes` (a multiple of 16) from global to shared memory; the barrier
/// counts them. Both addresses are multiples of 16.
__device__ __forceinline__ void bulk_load(std::uint32_t to, const void* from, std::uint32_t bytes,
                                          std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

/// PTX ISA, createpolicy.fractional: what L2 gives up first, or treats as everything else.
__device__ __forceinline__ std::uint64_t l2_policy(bool evict_first) {
  std::uint64_t first;
  std::uint64_t normal;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(first));
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(normal));
  return evict_first ? first : normal;
}

/// PTX ISA, cp.async.bulk.tensor: the box at (column, row) of a two-dimensional tensor.
__device__ __forceinline__ void tensor_load(std::uint32_t to, const CUtensorMap* map, int column,
                                            int row, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

/// PTX ISA, with .multicast::cluster: the box lands at the same address of every block in `mask`,
/// and the barrier at the same address there counts it.
__device__ __forceinline__ void tensor_load_multicast(std::uint32_t to, const CUtensorMap* map,
                                                      int column, int row, std::uint32_t barrier,
                                                      std::uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(mask)
      : "memory");
}

/// PTX ISA, cp.async.bulk.tensor, .L2::cache_hint: box number `box` along the last of five dimensions, which begins
/// at 0 in all others, with an l2_policy().
__device__ __forceinline__ void tensor_load_nth(std::uint32_t to, const CUtensorMap* map, int box,
                                                std::uint32_t barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %2, %2, %2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(0), "r"(box), "r"(barrier), "l"(policy)
      : "memory");
}

/// The same with .multicast::cluster, as tensor_load_multicast().
__device__ __forceinline__ void tensor_load_nth_multicast(std::uint32_t to, const CUtensorMap* map,
                                                          int box, std::uint32_t barrier,
                                                          std::uint64_t policy,
                                                          std::uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%2, %2, %2, %2, %3}], [%4], %5, %6;" ::"r"(
          to),
      "l"(map), "r"(0), "r"(box), "r"(barrier), "h"(mask), "l"(policy)
      : "memory");
}

/// PTX ISA, cp.async.bulk.prefetch.tensor: the same box, as far as L2.
__device__ __forceinline__ void tensor_prefetch_nth(const CUtensorMap* map, int box) {
  asm volatile("cp.async.bulk.prefetch.tensor.5d.L2.global [%0, {%1, %1, %1, %1, %2}];" ::"l"(map),
               "r"(0), "r"(box)
               : "memory");
}

/// PTX ISA, cp.async.bulk.tensor from shared to global memory; part of the thread's open group.
__device__ __forceinline__ void tensor_store(const CUtensorMap* map, std::uint32_t from, int column,
                                             int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
      "r"(column), "r"(row), "r"(from)
      : "memory");
}

/// PTX ISA, cp.async.bulk from shared to global memory; part of the thread's open group.
__device__ __forceinline__ void bulk_store(void* to, std::uint32_t from, std::uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
               "r"(bytes)
               : "memory");
}

/// PTX ISA, cp.async.bulk.commit_group: closes the thread's open group of stores.
__device__ __forceinline__ void bulk_commit_group() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/// PTX ISA, cp.async.bulk.wait_group.read: until all but the last kPending groups have read their
/// shared memory.
template <int kPending>
__device__ __forceinline__ void bulk_wait_group_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

/// PTX ISA, cp.async.bulk.wait_group: until all but the last kPending groups are complete.
template <int kPending>
__device__ __forceinline__ void bulk_wait_group() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

/// PTX ISA, fence.proxy.async: ordinary writes to shared memory before, copies and wgmmas after.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace moe::cuda
