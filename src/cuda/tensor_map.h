// Descriptions of memory for copies of boxes (TMA): bf16 matrices, and blocks that lie in pieces.
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

/// Blocks of four pieces of 4 KiB, of which number p of block b lies at b · stride + p / 2 · pair_stride
/// + p % 2 · piece_stride.
struct PieceMapSpec {
  const void* data = nullptr;  // 16-byte aligned
  std::int64_t blocks = 0;
  std::uint64_t stride = 0;  // bytes, like those that follow, multiples of 16
  std::uint64_t pair_stride = 0;
  std::uint64_t piece_stride = 0;
};

/// For boxes that are blocks, numbered along the fifth dimension, as they are, without a swizzle. Throws as above.
[[nodiscard]] CUtensorMap make_piece_map(const PieceMapSpec& spec);

}  // namespace moe::cuda
