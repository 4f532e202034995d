#include "cuda/ops/pack_blocked.h"

#include <cuda_bf16.h>

#include <algorithm>

#include "cuda/check.h"

namespace moe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 8;  // elements of 16 bytes
constexpr int kChunksPerRow = kBlockDepth / kChunk;
constexpr int kBand = 8;  // rows of gate, then as many of up

struct Source {
  const std::uint16_t* gate;  // or the only matrix
  const std::uint16_t* up;    // null: plain rows
  std::int64_t rows;          // of each matrix of one expert
  std::int64_t depth;
  std::int64_t stride;  // elements from row to row
};

/// Which row a packed row is.
struct PackedRow {
  bool of_up;
  std::int64_t feature;
};
__device__ __forceinline__ PackedRow packed_row(bool pairs, std::int64_t feature_block, int row) {
  if (!pairs) return {false, feature_block * kBlockFeatures + row};
  const int band = row / (2 * kBand);
  const int in_band = row % (2 * kBand);
  return {in_band >= kBand, feature_block * (kBlockFeatures / 2) + band * kBand + in_band % kBand};
}

/// Eight elements of a row from `first` on; zeros behind its end.
__device__ __forceinline__ uint4 load_chunk(const std::uint16_t* row, std::int64_t first,
                                            std::int64_t depth) {
  std::uint32_t words[kChunk / 2];
#pragma unroll
  for (int i = 0; i < kChunk / 2; ++i) {
    const std::int64_t at = first + 2 * i;
    const std::uint32_t low = at < depth ? row[at] : 0;
    const std::uint32_t high = at + 1 < depth ? row[at + 1] : 0;
    words[i] = low | high << 16;
  }
  return {words[0], words[1], words[2], words[3]};
}

/// Where blocks go: `units` units, then what is no four feature blocks.
struct Target {
  uint4* packed;
  std::int64_t units;
  L2Homes homes;
  int first_expert;

  /// Of chunk `chunk` of a block.
  __device__ __forceinline__ uint4* at(int feature_blocks, int k_blocks, int expert,
                                       int feature_block, int k_block, int chunk) const {
    const BlockPlace place = BlockPlace::of(fours_of(feature_blocks, homes.known()), feature_blocks,
                                            k_blocks, first_expert + expert, feature_block);
    constexpr auto kChunksPerBlock = static_cast<std::int64_t>(kBlockBytes / sizeof(uint4));
    const std::int64_t number = place.first + k_block;
    if (!place.in_unit) return packed + (2 * units + number) * kChunksPerBlock + chunk;
    constexpr int kChunksPerPiece = L2Homes::kPieceBytes / sizeof(uint4);
    const auto unit = static_cast<std::uint32_t>(number);
    const bool shift =
        homes.of_unit(unit, homes.of_pages(unit / L2Homes::kUnitsOfPage)) != place.half;
    return packed + 2 * number * kChunksPerBlock +
           piece_of_unit(shift, chunk / kChunksPerPiece) * kChunksPerPiece +
           chunk % kChunksPerPiece;
  }
};

/// A thread a chunk of the packed weights, block by block: stores are contiguous, and the eight lanes
/// of a packed row read one run of 128 bytes.
__global__ void __launch_bounds__(kThreads)
    pack_blocked_kernel(Source source, std::int64_t chunks, int feature_blocks, int k_blocks,
                        Target target) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < chunks;
       i += stride) {
    const int place = static_cast<int>(i % kChunksPerRow);
    const int row = static_cast<int>(i / kChunksPerRow % kBlockFeatures);
    const std::int64_t block = i / (kChunksPerRow * kBlockFeatures);
    const int k_block = static_cast<int>(block % k_blocks);
    const int feature_block = static_cast<int>(block / k_blocks % feature_blocks);
    const int expert = static_cast<int>(block / k_blocks / feature_blocks);

    const PackedRow from = packed_row(source.up != nullptr, feature_block, row);
    const std::uint16_t* const matrix = from.of_up ? source.up : source.gate;
    const std::int64_t first = k_block * kBlockDepth + (place ^ (row & 7)) * kChunk;
    uint4 chunk{0, 0, 0, 0};
    if (from.feature < source.rows && first < source.depth) {
      chunk = load_chunk(matrix + (expert * source.rows + from.feature) * source.stride, first,
                         source.depth);
    }
    *target.at(feature_blocks, k_blocks, expert, feature_block, k_block,
               row * kChunksPerRow + place) = chunk;
  }
}

/// A thread a packed row.
__global__ void __launch_bounds__(kThreads)
    pack_bias_kernel(const float* gate, const float* up, std::int64_t rows, std::int64_t features,
                     std::int64_t feature_blocks, float* __restrict__ packed) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= rows) return;
  const std::int64_t block = i / kBlockFeatures;
  const PackedRow from =
      packed_row(gate != nullptr, block % feature_blocks, static_cast<int>(i % kBlockFeatures));
  const float* const bias = gate == nullptr || from.of_up ? up : gate;
  packed[i] = from.feature < features ? bias[block / feature_blocks * features + from.feature] : 0;
}

void launch(const Source& source, std::int64_t first_expert, std::int64_t experts,
            const BlockedShape& shape, const PackedWeights& packed, cudaStream_t stream) {
  const auto chunks = static_cast<std::int64_t>(shape.bytes(experts) / sizeof(uint4));
  constexpr std::int64_t kMostBlocks = 1 << 16;
  const auto grid = static_cast<unsigned>(
      std::min<std::int64_t>((chunks + kThreads - 1) / kThreads, kMostBlocks));
  const Target target{.packed = static_cast<uint4*>(packed.data),
                      .units = units_of(shape, packed.experts, packed.homes.known()),
                      .homes = packed.homes,
                      .first_expert = static_cast<int>(first_expert)};
  pack_blocked_kernel<<<grid, kThreads, 0, stream>>>(source, chunks,
                                                     static_cast<int>(shape.feature_blocks),
                                                     static_cast<int>(shape.k_blocks), target);
  MOE_CUDA_CHECK_LAUNCH("pack_blocked_kernel");
}

}  // namespace

void pack_gate_up_blocked(const void* gate, const void* up, std::int64_t experts,
                          std::int64_t hidden, std::int64_t intermediate,
                          const PackedWeights& packed, cudaStream_t stream) {
  launch({static_cast<const std::uint16_t*>(gate), static_cast<const std::uint16_t*>(up),
          intermediate, hidden, hidden},
         0, experts, BlockedShape::gate_up(hidden, intermediate), packed, stream);
}

void pack_rows_blocked(const void* weights, std::int64_t experts, std::int64_t features,
                       std::int64_t depth, const PackedWeights& packed, cudaStream_t stream) {
  const BlockedShape shape{blocks_of(features, kBlockFeatures), blocks_of(depth, kBlockDepth)};
  launch({static_cast<const std::uint16_t*>(weights), nullptr, features, depth, depth}, 0, experts,
         shape, packed, stream);
}

void pack_part_blocked(const PartOfExpert& part, std::int64_t expert, const BlockedShape& shape,
                       const PackedWeights& packed, cudaStream_t stream) {
  const auto* const rows = static_cast<const std::uint16_t*>(part.rows);
  const auto* const gate = static_cast<const std::uint16_t*>(part.gate);
  launch({gate != nullptr ? gate : rows, gate != nullptr ? rows : nullptr, part.features,
          part.depth, part.stride},
         expert, 1, shape, packed, stream);
}

void pack_bias_blocked(const float* gate, const float* up, std::int64_t experts,
                       std::int64_t features, std::int64_t feature_blocks, float* packed,
                       cudaStream_t stream) {
  const std::int64_t rows = experts * feature_blocks * kBlockFeatures;
  pack_bias_kernel<<<static_cast<unsigned>((rows + kThreads - 1) / kThreads), kThreads, 0,
                     stream>>>(gate, up, rows, features, feature_blocks, packed);
  MOE_CUDA_CHECK_LAUNCH("pack_bias_kernel");
}

}  // namespace moe::cuda
