// What the roles of grouped_gemm_sm90_kernel.cuh share: sizes, arguments, work items, the block's shared
// memory and the position in its ring.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/device/shared_address.cuh"
#include "cuda/device/warp.cuh"
#include "cuda/l2_partitions.h"
#include "cuda/ops/grouped_gemm_sm90.h"
#include "cuda/ops/pack_blocked.h"

namespace moe::cuda {

/// How the two blocks of a cluster and the two consumers of a block divide their work.
enum class Division : std::uint8_t {
  kPingpong,  // blocks: features, sharing rows; consumers: whole tiles, in turn
  // blocks: rows, sharing the weights of both feature blocks, of small tiles features; consumers: features
  kCooperative,
};

/// Tile sizes of the kernel. A consumer holds 128 x kLargestTile fp32 sums, in 192 registers a thread
/// at 192 rows. Smaller tiles leave shared memory for another stage. In pingpong a stage is a slot of weights and
/// one of rows; cooperating blocks have a ring of either.
template <GemmEpilogue kTheEpilogue, Division kTheDivision, int kTheLargestTile,
          int kTheWeightSlots, int kTheRowSlots, int kTheGatherPieces>
struct GemmConfig {
  static constexpr GemmEpilogue kEpilogue = kTheEpilogue;
  static constexpr bool kPairs = has_pairs(kEpilogue);
  static constexpr bool kActivates = activates(kEpilogue);
  static constexpr bool kBias =
      kEpilogue != GemmEpilogue::kStore && kEpilogue != GemmEpilogue::kSwiGLU;
  static constexpr bool kCooperative = kTheDivision == Division::kCooperative;
  static constexpr int kCluster = 2;
  static constexpr int kLargestTile = kTheLargestTile;  // of one block
  static constexpr int kWeightSlots = kTheWeightSlots;  // of one block of weights
  static constexpr int kRowSlots = kTheRowSlots;        // of one k block of a tile's rows
  static_assert(kCooperative || kWeightSlots == kRowSlots);
  // A warpgroup that copies rows from the tokens' order straight into the ring. Where there is none, a
  // thread fetches boxes of rows that are in the experts' order.
  static constexpr int kRowThreads = kCooperative && kActivates ? 128 : 0;
  static constexpr int kProducerThreads = 128 + kRowThreads;
  static constexpr int kThreads = kProducerThreads + 2 * 128;
  // A consumer needs one for each of its sums a thread; with 240 and 24 the loading warpgroup spilled.
  static constexpr int kConsumerRegisters = kRowThreads > 0 ? 208 : 232;
  static constexpr int kLoaderRegisters = 40;
  static constexpr int kRowRegisters = 56;
  static constexpr int kFeatureBlocks = kCooperative ? 2 : 1;  // of a k block
  // Threads or warps, beside the loader and the consumers, that read what comes next.
  static constexpr int kRowReaders = kRowThreads > 0 ? kRowThreads / 32 : kCooperative ? 1 : 0;
  static constexpr int kConsumersOfTile = kCooperative ? 2 : 1;
  // The last k blocks of a tile, in which the products of the first half of the features go before those of the
  // second, so that the first half's epilogue runs beside these.
  static constexpr int kTail = kCooperative ? kFewestCooperativeSteps - 1 : 0;
  static constexpr int kRowBytes = static_cast<int>(kBlockDepth) * 2;  // of one k block
  static constexpr int kRowSlotBytes = kLargestTile * kRowBytes;
  static constexpr int kHalfBytes = 64 * kRowBytes;  // 64 of the 128 features
  // Finished sums leave through chunks of 64 columns, 8 KiB a consumer beside the ring. A cooperating consumer
  // has the tile's last block of weights, too, once it is multiplied.
  static constexpr int kChunkRows = kCooperative ? 64 : 32;
  static constexpr int kChunkBytes = kChunkRows * 128;
  static constexpr int kStagingBytes = 8192;  // of one consumer
  static constexpr int kChunks = kStagingBytes / kChunkBytes;
  // Of a tile's chunks, on their way when the next one's memory is written: the others of staging memory, in
  // cooperating blocks all of the tile.
  static constexpr int kPending = kCooperative ? 2 : kChunks - 2;
  static constexpr int kOutputFeatures = kPairs ? 64 : 128;  // a tile's
  // Pieces of rows on their way from the tokens' order to the experts', one a lane of the warp that gathers.
  static constexpr int kGatherPieces = kTheGatherPieces;
  static constexpr int kGatherPieceBytes = 2048;
  static_assert(kGatherPieces <= kWarpSize);
  // Of a block's first rows, in the slots of rows behind the first one, which nobody loads yet.
  static constexpr int kFirstPieces = kWarpSize;
  static_assert(kGatherPieces == 0 ||
                kFirstPieces * kGatherPieceBytes <= (kRowSlots - 1) * kRowSlotBytes);
  // Shared memory, from a 1024-byte boundary on.
  static constexpr int kRowsAt = kWeightSlots * static_cast<int>(kBlockBytes);
  static constexpr int kStagingAt = kRowsAt + kRowSlots * kRowSlotBytes;
  static constexpr int kPiecesAt = kStagingAt + 2 * kStagingBytes;
  // Whether there is a kernel that can begin on finished row tiles of this one's output.
  static constexpr bool kAnnounces = kActivates;
  static constexpr int kQueueAt = kPiecesAt + kGatherPieces * kGatherPieceBytes;
  static constexpr int kStoredTilesAt = kQueueAt + 2 * 16;  // row tile of each consumer
  static constexpr int kBarriersAt = kStoredTilesAt + 2 * 16;
  static constexpr int kSharedBytes =
      kBarriersAt + (2 * kWeightSlots + 10 + (kCooperative ? 2 * kRowSlots : 0)) * 8;
  static_assert(kRowSlotBytes % 1024 == 0 && kStagingAt % 1024 == 0,
                "the swizzle repeats in 1024 bytes");
};

/// Boxes of 64 columns and 8 · (i + 1) rows of the token matrix: half of a tile of 16 · (i + 1) rows.
struct TokenMaps {
  static constexpr int kCount = 12;
  CUtensorMap half_tile[kCount];
};

/// Boxes of 64 columns and 16 · 2^i rows of the output.
struct OutMaps {
  static constexpr int kCount = 3;
  CUtensorMap box[kCount];
};

/// Blocks of weights (pack_blocked.h): in units those whose pieces are 0, 3, 4 and 7 or 1, 2, 5 and 6, by number of the
/// unit; the rest by number of the block.
struct WeightMaps {
  static constexpr int kRest = 2;
  static constexpr int kCount = 3;
  CUtensorMap of[kCount];
};

struct GemmArguments {
  L2Homes homes;            // of the weights
  const std::byte* source;  // rows in the tokens' order, to be gathered; null: nothing to gather
  std::byte* gathered;      // rows in the experts' order: the token matrix of the maps
  int source_row_bytes;
  __nv_bfloat16* out;
  std::int64_t out_columns;
  RowTiles row_tiles;
  std::int32_t* tickets;    // a counter for either half of the features
  L2Partitions partitions;  // known: blocks draw from the half of theirs first
  std::int32_t* finished;   // counts of row tiles, to which each consumer adds 1; null: nobody asks
  bool rows_of_previous;    // all but the rows was complete when the kernel before began
  int awaits;  // counts in row_tiles.finished with which rows are complete; 0: nobody counts
  int feature_blocks;
  int fours;  // fours_of() the weights
  int k_blocks;
  int tiles_together;  // TileOrder
  bool weights_read_once;
  // Of Config::kBias.
  const float* bias;  // as GroupedGemmCall::packed_bias
  ActivationStep activation;
};

/// Where a block of weights begins, and whether its k blocks are asked for ahead.
struct WorkWeights {
  int packed;  // in a unit | half << 1 | ahead << 2 | number of the unit or block << 3

  static __device__ __forceinline__ WorkWeights of(const BlockPlace& place, bool ahead) {
    return {(place.in_unit ? 1 : 0) | place.half << 1 | (ahead ? 1 << 2 : 0) | place.first << 3};
  }
  /// So many units or blocks behind.
  [[nodiscard]] __device__ __forceinline__ WorkWeights behind(int count) const {
    return {packed + (count << 3)};
  }
  [[nodiscard]] __device__ __forceinline__ bool in_unit() const { return (packed & 1) != 0; }
  [[nodiscard]] __device__ __forceinline__ int half() const { return packed >> 1 & 1; }
  [[nodiscard]] __device__ __forceinline__ bool ahead() const { return (packed >> 2 & 1) != 0; }
  [[nodiscard]] __device__ __forceinline__ int first() const { return packed >> 3; }
};

/// What a block does next, as the scheduler puts it into the queue.
struct Work {
  WorkWeights weights;
  int first_row;  // routed row
  int row_tile;   // its number in the list
  int packed;     // rows to compute, 0 = no more work | shared << 9 | rows to store << 10 |
                  // read once << 19 | feature block

  /// Bits left for the feature block: 2^12 blocks of 128 features.
  static constexpr int kFeatureShift = 20;
  static __device__ __forceinline__ int4 pack(WorkWeights weights, int first_row, int row_tile,
                                              int rows, bool shared, int valid, bool read_once,
                                              int feature_block) {
    return {weights.packed, first_row, row_tile,
            rows | (shared ? 1 << 9 : 0) | valid << 10 | (read_once ? 1 << 19 : 0) |
                feature_block << kFeatureShift};
  }
  static __device__ __forceinline__ Work read(std::uint32_t queue_slot) {
    const int4 words = load_shared(queue_slot);
    return {{words.x}, words.y, words.z, words.w};
  }
  /// The same in all lanes of the warp, in a way that the compiler sees.
  [[nodiscard]] __device__ __forceinline__ Work uniform() const {
    return {{__shfl_sync(kAllLanes, weights.packed, 0)},
            __shfl_sync(kAllLanes, first_row, 0),
            __shfl_sync(kAllLanes, row_tile, 0),
            __shfl_sync(kAllLanes, packed, 0)};
  }
  [[nodiscard]] __device__ __forceinline__ int rows() const { return packed & 511; }
  /// Whether both blocks of the cluster have the same rows.
  [[nodiscard]] __device__ __forceinline__ bool shared() const { return (packed >> 9 & 1) != 0; }
  [[nodiscard]] __device__ __forceinline__ int valid() const { return packed >> 10 & 511; }
  /// Whether no other tile takes these weights.
  [[nodiscard]] __device__ __forceinline__ bool read_once() const {
    return (packed >> 19 & 1) != 0;
  }
  [[nodiscard]] __device__ __forceinline__ int feature_block() const {
    return static_cast<int>(static_cast<unsigned>(packed) >> kFeatureShift);
  }
};

/// Addresses of the block's shared memory, and the position in the ring.
template <class Config>
struct Shared {
  std::uint32_t base;

  static __device__ __forceinline__ Shared of(void* raw) {
    const Shared shared{shared_address(raw)};
    if (shared.base % 1024 != 0) __trap();
    return shared;
  }
  __device__ __forceinline__ std::uint32_t piece(int i) const {
    return base + Config::kPiecesAt + i * Config::kGatherPieceBytes;
  }
  __device__ __forceinline__ std::uint32_t first_piece(int i) const {
    return row_slot(1) + i * Config::kGatherPieceBytes;
  }
  __device__ __forceinline__ std::uint32_t weight_slot(int s) const {
    return base + s * static_cast<int>(kBlockBytes);
  }
  __device__ __forceinline__ std::uint32_t row_slot(int s) const {
    return base + Config::kRowsAt + s * Config::kRowSlotBytes;
  }
  __device__ __forceinline__ std::uint32_t staging(int consumer) const {
    return base + Config::kStagingAt + consumer * Config::kStagingBytes;
  }
  __device__ __forceinline__ std::uint32_t queue(int slot) const {
    return base + Config::kQueueAt + slot * 16;
  }
  __device__ __forceinline__ std::uint32_t full(int s) const {
    return base + Config::kBarriersAt + s * 8;
  }
  __device__ __forceinline__ std::uint32_t empty(int s) const {
    return full(Config::kWeightSlots + s);
  }
  __device__ __forceinline__ std::uint32_t queued(int slot) const {
    return full(2 * Config::kWeightSlots + slot);
  }
  __device__ __forceinline__ std::uint32_t taken(int slot) const {
    return full(2 * Config::kWeightSlots + 2 + slot);
  }
  __device__ __forceinline__ std::uint32_t gathered() const {
    return full(2 * Config::kWeightSlots + 4);
  }
  __device__ __forceinline__ std::uint32_t stored_tile(int consumer) const {
    return base + Config::kStoredTilesAt + consumer * 16;
  }
  __device__ __forceinline__ std::uint32_t stored(int consumer) const {
    return full(2 * Config::kWeightSlots + 5 + consumer);
  }
  __device__ __forceinline__ std::uint32_t announced(int consumer) const {
    return full(2 * Config::kWeightSlots + 7 + consumer);
  }
  __device__ __forceinline__ std::uint32_t first_gathered() const {
    return full(2 * Config::kWeightSlots + 9);
  }
  __device__ __forceinline__ std::uint32_t rows_full(int s) const {
    return full(2 * Config::kWeightSlots + 10 + s);
  }
  __device__ __forceinline__ std::uint32_t rows_empty(int s) const {
    return rows_full(Config::kRowSlots + s);
  }
};

template <int kStages>
struct RingPosition {
  int stage = 0;
  std::uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
  /// Past `steps` stages that somebody else uses.
  __device__ __forceinline__ void skip(int steps) {
    stage += steps % kStages;
    parity ^= steps / kStages & 1;
    if (stage >= kStages) {
      stage -= kStages;
      parity ^= 1;
    }
  }
};

}  // namespace moe::cuda
