// Descriptions of bf16 matrices for copies of boxes (TMA).
#pragma once

#include <cuda.h>

#include <cstdint>

namespace moe::cuda {

struct TensorMapSpec {
  const void* data = nullptr;  // 16-byte aligned
  std::int64_t rows = 0;       // reads behind them yield zeros, writes are dropped
  std::int64_t columns = 0;    // row-major, a multiple of 8; the same of columns
  int box_rows = 0;            // <= 256
  int box_columns = 0;         // at most 64: a box row is at most 128 bytes, the swizzle's width
};

/// For boxes in the 128-byte swizzle of shared memory. Throws Error(kCuda) when the driver refuses.
[[nodiscard]] CUtensorMap make_tensor_map(const TensorMapSpec& spec);

}  // namespace moe::cuda
