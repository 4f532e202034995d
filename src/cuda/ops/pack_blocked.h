// Expert weights as the sm_90a kernels read them: blocks of 128 features x 64 reduction elements,
// 16 KiB each, already in the image that the tensor cores want in shared memory (128-byte swizzle:
// 16-byte chunk c of row r at c ^ (r & 7)), so that one copy fetches a block.
//
// Sizes are padded with zeros: features to whole blocks, the reduction to whole blocks.
// Where there is a gate, its rows alternate with those of up (pack_gate_up_blocked).
//
// Where a block lies is chosen by the halves of L2 (l2_homes.h): pairs of feature blocks belong to them in turns, those
// of even pairs to the first. Four feature blocks, two of either half, lie in each other: in a unit of 32 KiB are one of
// the first half, in its four pieces of 4 KiB that are behind the first partition of L2, and one of the second half,
// in the others.
//
//   units[expert][four feature blocks][which of a pair][k block]     32 KiB each, two blocks
//   rest[expert][feature blocks that are no four][k block]           16 KiB each, behind all units
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/backend.h"
#include "cuda/l2_homes.h"

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

/// Whether weights are worth laying near those who read them: L2 does not hold them anyhow.
[[nodiscard]] inline bool are_placed(const BlockedShape& shape, std::int64_t experts,
                                     const DeviceFacts& facts) {
  return shape.bytes(experts) > facts.l2_bytes;
}

/// Four feature blocks that lie in units, of one expert.
constexpr int fours_of(std::int64_t feature_blocks, bool placed) {
  return placed ? static_cast<int>(feature_blocks / 4) : 0;
}

/// Where the k blocks of a feature block begin, one behind the other: in units, or in blocks of the rest. Those of the
/// second of a pair are behind those of the first.
struct BlockPlace {
  bool in_unit;
  int half;   // of L2, in a unit
  int first;  // number of the unit, or of the block behind all units

  /// `fours`: of an expert's feature blocks, fours_of().
  static constexpr BlockPlace of(int fours, int feature_blocks, int k_blocks, int expert,
                                 int feature_block) {
    if (feature_block < 4 * fours) {
      return {true, feature_block / 2 % 2,
              ((expert * fours + feature_block / 4) * 2 + feature_block % 2) * k_blocks};
    }
    return {false, 0,
            (expert * (feature_blocks - 4 * fours) + feature_block - 4 * fours) * k_blocks};
  }
};

/// Units of all experts' weights.
constexpr std::int64_t units_of(const BlockedShape& shape, std::int64_t experts, bool placed) {
  return experts * fours_of(shape.feature_blocks, placed) * 2 * shape.k_blocks;
}

/// In which of a unit's pieces number `piece` of a block's four is: the block has 0, 3, 4 and 7 or, with `shift`, 1, 2, 5
/// and 6.
constexpr int piece_of_unit(bool shift, int piece) {
  return piece / 2 * 4 + (shift ? 1 + piece % 2 : piece % 2 * 3);
}

/// Memory of packed weights.
struct PackedWeights {
  void* data = nullptr;      ///< BlockedShape::bytes(experts), 128-byte aligned
  std::int64_t experts = 0;  ///< all that are there, or will be
  L2Homes homes = {};        ///< of data; not known: there are no units, all blocks are of the rest
};

/// gate and up [E,I,H] -> packed. Rows of a block alternate in bands of eight: 8 gate, 8 up, the next
/// 8 gate, ... A product puts rows r and r + 8 of a band of 16 into the same thread, so that silu(gate)
/// times up needs no exchange. These are the first of packed.experts.
void pack_gate_up_blocked(const void* gate, const void* up, std::int64_t experts,
                          std::int64_t hidden, std::int64_t intermediate,
                          const PackedWeights& packed, cudaStream_t stream);

/// Plain rows: weights [E,features,depth] -> packed.
void pack_rows_blocked(const void* weights, std::int64_t experts, std::int64_t features,
                       std::int64_t depth, const PackedWeights& packed, cudaStream_t stream);

/// Matrices of one expert that may be smaller than those of the others and lie in larger ones.
struct PartOfExpert {
  const void* gate = nullptr;  ///< null: plain rows
  const void* rows = nullptr;  ///< [features, depth]; beside gate, up
  std::int64_t features = 0;
  std::int64_t depth = 0;
  std::int64_t stride = 0;  ///< elements from row to row
};
/// -> the blocks of number `expert` of experts of `shape`; what the part does not have is zeros.
void pack_part_blocked(const PartOfExpert& part, std::int64_t expert, const BlockedShape& shape,
                       const PackedWeights& packed, cudaStream_t stream);

/// Biases in the order of packed rows, [E, feature blocks, 128], those that are not there 0: of
/// up [E,features] and, unless it is null, gate [E,features], whose rows alternate with them.
void pack_bias_blocked(const float* gate, const float* up, std::int64_t experts,
                       std::int64_t features, std::int64_t feature_blocks, float* packed,
                       cudaStream_t stream);

}  // namespace moe::cuda
