// Fragments of a matrix product to shared memory; PTX ISA, stmatrix.
#pragma once

#include <cstdint>

namespace moe::cuda {

/// Four 8x8 matrices of 16-bit elements, transposed. Lane 8·i + r gives the address of row r of
/// matrix i; register i holds the lane's two elements of it.
__device__ __forceinline__ void stmatrix_x4_transposed(std::uint32_t row, std::uint32_t m0,
                                                       std::uint32_t m1, std::uint32_t m2,
                                                       std::uint32_t m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(m0), "r"(m1), "r"(m2), "r"(m3)
               : "memory");
}

}  // namespace moe::cuda
