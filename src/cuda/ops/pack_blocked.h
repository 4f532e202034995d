// Expert weights as the sm_90a kernels read them: blocks of 128 features x 64 reduction elements,
// 16 KiB each, already in the image that the tensor cores want in shared memory (128-byte swizzle:
// 16-byte chunk c of row r at c ^ (r & 7)), so that one plain copy of 16 KiB fetches a block.
//
//   packed[expert][feature block][k block][128 rows x 64]
//
// Sizes are padded with zeros: features to whole blocks, the reduction to whole blocks.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace moe::cuda {

inline constexpr std::int64_t kBlockFeatures = 128;
inline constexpr std::int64_t kBlockDepth = 64;
inline constexpr std::int64_t kBlockBytes = kBlockFeatures * kBlockDepth * 2;

constexpr std::int64_t blocks_of(std::int64_t size, std::int64_t block) {
  return (size + block - 1) / block;
}

/// Blocks of one expert's gate and up projections together: each holds 64 rows of either.
struct BlockedShape {
  std::int64_t feature_blocks = 0;
  std::int64_t k_blocks = 0;

  static constexpr BlockedShape gate_up(std::int64_t hidden, std::int64_t intermediate) {
    return {blocks_of(intermediate, kBlockFeatures / 2), blocks_of(hidden, kBlockDepth)};
  }
  static constexpr BlockedShape down(std::int64_t hidden, std::int64_t intermediate) {
    return {blocks_of(hidden, kBlockFeatures), blocks_of(intermediate, kBlockDepth)};
  }
  [[nodiscard]] constexpr std::uint64_t bytes(std::int64_t experts) const {
    return static_cast<std::uint64_t>(experts * feature_blocks * k_blocks * kBlockBytes);
  }
};

/// gate and up [E,I,H] -> packed. Rows of a block alternate in bands of eight: 8 gate, 8 up, the next
/// 8 gate, ... A product puts rows r and r + 8 of a band of 16 into the same thread, so that silu(gate)
/// times up needs no exchange.
void pack_gate_up_blocked(const void* gate, const void* up, std::int64_t experts,
                          std::int64_t hidden, std::int64_t intermediate, void* packed,
                          cudaStream_t stream);

/// Plain rows: weights [E,features,depth] -> packed.
void pack_rows_blocked(const void* weights, std::int64_t experts, std::int64_t features,
                       std::int64_t depth, void* packed, cudaStream_t stream);

}  // namespace moe::cuda
