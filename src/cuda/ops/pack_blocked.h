// Expert weights as the sm_90a kernels read them: blocks of 128 features x 64 reduction elements,
// 16 KiB each, already in the image that the tensor cores want in shared memory (128-byte swizzle:
// 16-byte chunk c of row r at c ^ (r & 7)), so that one plain copy of 16 KiB fetches a block.
//
//   packed[expert][feature block][k block][128 rows x 64]
//
// Sizes are padded with zeros: features to whole blocks, the reduction to whole blocks.
//
// Where there is a gate, its rows alternate with those of up (pack_gate_up_blocked).
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

/// Blocks of one expert.
struct BlockedShape {
  std::int64_t feature_blocks = 0;
  std::int64_t k_blocks = 0;

  /// Of gate and up together: a block holds 64 rows of either.
  static constexpr BlockedShape gate_up(std::int64_t hidden, std::int64_t intermediate) {
    return {blocks_of(intermediate, kBlockFeatures / 2), blocks_of(hidden, kBlockDepth)};
  }
  /// Of up without a gate.
  static constexpr BlockedShape up(std::int64_t hidden, std::int64_t intermediate) {
    return {blocks_of(intermediate, kBlockFeatures), blocks_of(hidden, kBlockDepth)};
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

/// Matrices of one expert that may be smaller than those of the others and lie in larger ones.
struct PartOfExpert {
  const void* gate = nullptr;  ///< null: plain rows
  const void* rows = nullptr;  ///< [features, depth]; beside gate, up
  std::int64_t features = 0;
  std::int64_t depth = 0;
  std::int64_t stride = 0;  ///< elements from row to row
};
/// -> the blocks of one expert of `shape`; what the part does not have is zeros.
void pack_part_blocked(const PartOfExpert& part, const BlockedShape& shape, void* packed,
                       cudaStream_t stream);

/// Biases in the order of packed rows, [E, feature blocks, 128], those that are not there 0: of
/// up [E,features] and, unless it is null, gate [E,features], whose rows alternate with them.
void pack_bias_blocked(const float* gate, const float* up, std::int64_t experts,
                       std::int64_t features, std::int64_t feature_blocks, float* packed,
                       cudaStream_t stream);

}  // namespace moe::cuda
