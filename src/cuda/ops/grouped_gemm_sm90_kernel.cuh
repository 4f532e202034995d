// The kernel of grouped_gemm_sm90.cu. Weights lie on the 64-row side of wgmma, tokens on the other,
// whose width is chosen tile by tile in steps of 16.
//
// In each block: one thread that loads, one thread (of the cluster) that hands out work, and two consumer
// warpgroups. The two blocks of a cluster divide their work in one of two ways (Division):
//   pingpong     Both work on the same row tile and on neighbouring blocks of 128 features. Consumers take
//                whole tiles in turn: while one runs its products, the other finishes its tile and stores
//                it. One warp gathers rows ahead of the loads (when they are not gathered yet).
//   cooperative  Both work on the same two blocks of features, each on half of the tile's rows. A consumer
//                has one of the feature blocks. A warpgroup of its own brings the rows into the ring.
//
//   scheduler ──tile──▶ queue[2] ──▶ loader ──weights, rows; half of what is shared──▶ ring[kStages]
//                          └──────▶ consumers ◀──────────full / empty───────────────────────┘
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/device/async_copy.cuh"
#include "cuda/device/bulk_copy.cuh"
#include "cuda/device/cluster.cuh"
#include "cuda/device/global_flag.cuh"
#include "cuda/device/mbarrier.cuh"
#include "cuda/device/named_barrier.cuh"
#include "cuda/device/overlap.cuh"
#include "cuda/device/register_budget.cuh"
#include "cuda/device/shared_address.cuh"
#include "cuda/device/stmatrix.cuh"
#include "cuda/device/swiglu.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/device/wgmma_bf16.cuh"
#include "cuda/ops/grouped_gemm_sm90.h"
#include "cuda/ops/pack_blocked.h"
#include "cuda/ops/tile_order.h"

namespace moe::cuda {

/// How the two blocks of a cluster and the two consumers of a block divide their work.
enum class Division : std::uint8_t {
  kPingpong,     // blocks: features, sharing rows; consumers: whole tiles, in turn
  kCooperative,  // blocks: rows, sharing the weights of both feature blocks; consumers: features
};

/// Tile sizes of the kernel. A consumer holds 128 x kLargestTile fp32 sums, in 192 registers a thread
/// at 192 rows. Smaller tiles leave shared memory for another stage.
template <GemmEpilogue kTheEpilogue, Division kTheDivision, int kTheLargestTile, int kTheStages>
struct GemmConfig {
  static constexpr GemmEpilogue kEpilogue = kTheEpilogue;
  static constexpr bool kCooperative = kTheDivision == Division::kCooperative;
  static constexpr int kCluster = 2;
  static constexpr int kLargestTile = kTheLargestTile;  // of one block
  static constexpr int kStages = kTheStages;
  // A warpgroup that copies rows from the tokens' order straight into the ring. Where there is none, the
  // loader fetches boxes of rows that are in the experts' order.
  static constexpr int kRowThreads = kCooperative && kEpilogue == GemmEpilogue::kSwiGLU ? 128 : 0;
  static constexpr int kProducerThreads = 128 + kRowThreads;
  static constexpr int kThreads = kProducerThreads + 2 * 128;
  // A consumer needs one for each of its sums a thread; with 240 and 24 the loading warpgroup spilled.
  static constexpr int kConsumerRegisters = kRowThreads > 0 ? 208 : 232;
  static constexpr int kLoaderRegisters = 40;
  static constexpr int kRowRegisters = 56;
  static constexpr int kFeatureBlocks = kCooperative ? 2 : 1;  // of a stage
  static constexpr int kConsumersOfTile = kCooperative ? 2 : 1;
  static constexpr int kWeightBytes = kFeatureBlocks * static_cast<int>(kBlockBytes);
  static constexpr int kRowBytes = static_cast<int>(kBlockDepth) * 2;  // of one k block
  static constexpr int kStageBytes = kWeightBytes + kLargestTile * kRowBytes;
  static constexpr int kHalfBytes = 64 * kRowBytes;  // 64 of the 128 features
  // Finished sums leave through two chunks of 32 rows x 64 columns a consumer.
  static constexpr int kChunkRows = 32;
  static constexpr int kChunks = 2;
  static constexpr int kChunkBytes = kChunkRows * 128;
  static constexpr int kOutputFeatures = kEpilogue == GemmEpilogue::kSwiGLU ? 64 : 128;  // a tile's
  // Pieces of rows on their way from the tokens' order to the experts'. What is left of shared memory.
  static constexpr int kGatherPieces =
      kEpilogue == GemmEpilogue::kSwiGLU && !kCooperative && kLargestTile == kGatheringTile ? 5 : 0;
  static constexpr int kGatherPieceBytes = 2048;
  // Shared memory, from a 1024-byte boundary on.
  static constexpr int kStagingAt = kStages * kStageBytes;
  static constexpr int kPiecesAt = kStagingAt + 2 * kChunks * kChunkBytes;
  static constexpr int kQueueAt = kPiecesAt + kGatherPieces * kGatherPieceBytes;
  static constexpr int kBarriersAt = kQueueAt + 2 * 16;
  static constexpr int kSharedBytes = kBarriersAt + (2 * kStages + 5) * 8;
  static_assert(kStageBytes % 1024 == 0 && kStagingAt % 1024 == 0,
                "the swizzle repeats in 1024 bytes");
};

/// Boxes of 64 columns and 8 · (i + 1) rows of the token matrix: half of a tile of 16 · (i + 1) rows.
struct TokenMaps {
  static constexpr int kCount = 12;
  CUtensorMap half_tile[kCount];
};

struct GemmArguments {
  const __nv_bfloat16* weights;  // pack_blocked.h
  const std::byte* source;  // rows in the tokens' order, to be gathered; null: nothing to gather
  std::byte* gathered;      // rows in the experts' order: the token matrix of the maps
  int source_row_bytes;
  __nv_bfloat16* out;
  std::int64_t out_columns;
  RowTiles row_tiles;
  std::int32_t* ticket;
  int feature_blocks;
  int k_blocks;
  int group_rows;
  int band_features;
  bool weights_read_once;
};

/// What a block does next, as the scheduler puts it into the queue.
struct Work {
  int weight_block;  // expert · feature_blocks + feature block
  int first_row;     // routed row
  int row_tile;      // its number in the list
  int packed;  // rows to compute, 0 = no more work | shared << 9 | rows to store << 10 | column

  /// Bits left for the feature block: 2^13 blocks of 128 features.
  static constexpr int kFeatureShift = 19;
  static __device__ __forceinline__ int4 pack(int weight_block, int first_row, int row_tile,
                                              int rows, bool shared, int valid, int feature_block) {
    return {weight_block, first_row, row_tile,
            rows | (shared ? 1 << 9 : 0) | valid << 10 | feature_block << kFeatureShift};
  }
  static __device__ __forceinline__ Work read(std::uint32_t queue_slot) {
    const int4 words = load_shared(queue_slot);
    return {words.x, words.y, words.z, words.w};
  }
  [[nodiscard]] __device__ __forceinline__ int rows() const { return packed & 511; }
  /// Whether both blocks of the cluster have the same rows.
  [[nodiscard]] __device__ __forceinline__ bool shared() const { return (packed >> 9 & 1) != 0; }
  [[nodiscard]] __device__ __forceinline__ int valid() const { return packed >> 10 & 511; }
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
  __device__ __forceinline__ std::uint32_t stage(int s) const {
    return base + s * Config::kStageBytes;
  }
  __device__ __forceinline__ std::uint32_t staging(int consumer) const {
    return base + Config::kStagingAt + consumer * Config::kChunks * Config::kChunkBytes;
  }
  __device__ __forceinline__ std::uint32_t queue(int slot) const {
    return base + Config::kQueueAt + slot * 16;
  }
  __device__ __forceinline__ std::uint32_t full(int s) const {
    return base + Config::kBarriersAt + s * 8;
  }
  __device__ __forceinline__ std::uint32_t empty(int s) const { return full(Config::kStages + s); }
  __device__ __forceinline__ std::uint32_t queued(int slot) const {
    return full(2 * Config::kStages + slot);
  }
  __device__ __forceinline__ std::uint32_t taken(int slot) const {
    return full(2 * Config::kStages + 2 + slot);
  }
  __device__ __forceinline__ std::uint32_t gathered() const {
    return full(2 * Config::kStages + 4);
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

// --- scheduler -----------------------------------------------------------------------------------
/// One thread of the cluster: draws tickets and writes what they mean into both blocks' queues. In
/// pingpong, the pair of the last, odd feature block splits the rows instead; cooperating blocks
/// always do.
template <class Config>
__device__ __forceinline__ void schedule(const Shared<Config>& shared, const GemmArguments& p) {
  const int clusters = static_cast<int>(gridDim.x) / Config::kCluster;
  const TileOrder order{*p.row_tiles.count, divide_up(p.feature_blocks, 2), p.group_rows,
                        p.band_features};
  const int items = order.row_tiles * order.feature_pairs;
  int ticket = static_cast<int>(blockIdx.x) / Config::kCluster;
  const auto publish = [&](int slot, int rank, const int4& work) {
    store_async(cluster_address(shared.queue(slot), rank), work,
                cluster_address(shared.queued(slot), rank));
  };
  int turn = 0;
  for (; ticket < items; ++turn) {
    const int slot = turn % 2;
    const TileOrder::Item item = order.at(ticket);
    const RowTile tile = p.row_tiles.tiles[item.row_tile];
    const int feature = 2 * item.feature_pair;
    const int block = tile.expert * p.feature_blocks + feature;
    mbarrier_wait(shared.taken(slot), (turn / 2 & 1) ^ 1);
    const bool alone = feature + 1 == p.feature_blocks;
    if (!Config::kCooperative && !alone) {
      publish(
          slot, 0,
          Work::pack(block, tile.first_row, item.row_tile, tile.rows, true, tile.valid, feature));
      publish(slot, 1,
              Work::pack(block + 1, tile.first_row, item.row_tile, tile.rows, true, tile.valid,
                         feature + 1));
    } else {
      // One unit cannot be split: then the second block computes it, too, and stores nothing. A
      // second feature block that is not there is the first one again, not stored, either.
      const int upper = (tile.rows / kRowUnit + 1) / 2 * kRowUnit;
      const int skipped = upper == tile.rows ? 0 : upper;
      const int second = Config::kCooperative && !alone ? block + 1 : block;
      publish(slot, 0,
              Work::pack(block, tile.first_row, item.row_tile, upper, false, min(tile.valid, upper),
                         feature));
      publish(slot, 1,
              Work::pack(second, tile.first_row + skipped, item.row_tile, tile.rows - skipped,
                         false, max(tile.valid - upper, 0), feature));
    }
    ticket = clusters + atomicAdd(p.ticket, 1);
  }
  // Consumers that take turns are told one by one that it is over.
  for (int i = 0; i < 2 / Config::kConsumersOfTile; ++i, ++turn) {
    const int slot = turn % 2;
    mbarrier_wait(shared.taken(slot), (turn / 2 & 1) ^ 1);
    publish(slot, 0, {0, 0, 0, 0});
    publish(slot, 1, {0, 0, 0, 0});
  }
}

// --- gathering -----------------------------------------------------------------------------------
/// One warp a block: copies rows from the tokens' order to the experts', 16 rows at a time, in the
/// order in which the scheduler hands out their tiles. So the copy runs beside the products, and the
/// first tiles wait for little of it. Every lane that takes part moves a piece of a row.
template <class Config>
__device__ __forceinline__ void gather(const Shared<Config>& shared, const GemmArguments& p) {
  constexpr int kUnitsPerTile = Config::kLargestTile / kRowUnit;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int pieces_per_row = divide_up(p.source_row_bytes, Config::kGatherPieceBytes);
  const int units = *p.row_tiles.count * kUnitsPerTile;  // those behind a tile's end are empty
  std::uint32_t parity = 0;
  for (int unit = static_cast<int>(blockIdx.x); unit < units; unit += static_cast<int>(gridDim.x)) {
    const RowTile tile = p.row_tiles.tiles[unit / kUnitsPerTile];
    const int first = unit % kUnitsPerTile * kRowUnit;
    const int rows = min(tile.valid - first, kRowUnit);
    if (rows <= 0) continue;
    const int row = tile.first_row + first;
    const int token = lane < rows ? p.row_tiles.row_to_token[row + lane] : 0;
    const int pieces = rows * pieces_per_row;
    for (int base = 0; base < pieces; base += Config::kGatherPieces) {
      const int piece = base + lane;
      const bool mine = lane < Config::kGatherPieces && piece < pieces;
      const int in_unit = mine ? piece / pieces_per_row : 0;
      const int at = (piece - in_unit * pieces_per_row) * Config::kGatherPieceBytes;
      const int bytes = min(Config::kGatherPieceBytes, p.source_row_bytes - at);
      const int from = __shfl_sync(0xffffffffU, token, in_unit);
      if (mine) {
        mbarrier_expect_bytes(shared.gathered(), bytes);
        bulk_load(shared.piece(lane),
                  p.source + static_cast<std::size_t>(from) * p.source_row_bytes + at, bytes,
                  shared.gathered());
      }
      __syncwarp();
      if (lane == 0) mbarrier_arrive(shared.gathered());
      mbarrier_wait(shared.gathered(), parity);
      parity ^= 1;
      if (mine) {
        bulk_store(p.gathered + static_cast<std::size_t>(row + in_unit) * p.source_row_bytes + at,
                   shared.piece(lane), bytes);
        bulk_commit_group();
        bulk_wait_group_read<0>();
      }
      __syncwarp();
    }
    bulk_wait_group<0>();
    __syncwarp();
    if (lane == 0) add_release(p.row_tiles.ready + unit / kUnitsPerTile, 1);
  }
}

/// Until all units of the tile, or of the part of it that this block has, are there. A tile that the
/// blocks split waits for the whole, too.
__device__ __forceinline__ void wait_until_gathered(const GemmArguments& p, int row_tile) {
  const int units = p.row_tiles.tiles[row_tile].rows / kRowUnit;
  wait_for_count(p.row_tiles.ready + row_tile, units);
  fence_proxy_async_global();  // the loads that follow go another way than this thread's
}

// --- loader --------------------------------------------------------------------------------------
/// One thread a block: fills the ring, one stage a k block. When both blocks have the same rows, each
/// loads half of them for both; when both have the same weights, half of those.
template <class Config>
__device__ __forceinline__ void load(const Shared<Config>& shared, const TokenMaps& tokens,
                                     const GemmArguments& p) {
  const auto rank = static_cast<int>(cluster_rank());
  const std::uint64_t policy = l2_policy(p.weights_read_once);
  RingPosition<Config::kStages> at;
  for (int turn = 0;; ++turn) {
    const int slot = turn % 2;
    mbarrier_arrive_expect_bytes(shared.queued(slot), sizeof(Work));
    mbarrier_wait_cluster(shared.queued(slot), turn / 2 & 1);
    const Work work = Work::read(shared.queue(slot));
    const int rows = work.rows();
    if (rows == 0) {  // the other consumer is told next; nobody waits for that slot any more
      if (!Config::kCooperative)
        mbarrier_arrive_expect_bytes(shared.queued(slot ^ 1), sizeof(Work));
      return;
    }
    mbarrier_arrive_cluster(cluster_address(shared.taken(slot), 0));
    const char* weights = reinterpret_cast<const char*>(p.weights) +
                          static_cast<std::size_t>(work.weight_block) * p.k_blocks * kBlockBytes;
    const bool half = work.shared();
    const int my_rows = half || Config::kCooperative ? rows / 2 : rows;  // of a box
    const CUtensorMap* map = &tokens.half_tile[my_rows / 8 - 1];
    const std::uint32_t offset = half ? rank * my_rows * Config::kRowBytes : 0;
    const int row = work.first_row + (half ? rank * my_rows : 0);
    const std::uint32_t bytes =
        Config::kWeightBytes + (Config::kRowThreads > 0 ? 0 : rows * Config::kRowBytes);
    for (int k = 0; k < p.k_blocks; ++k) {
      mbarrier_wait(shared.empty(at.stage), at.parity ^ 1);
      const std::uint32_t full = shared.full(at.stage);
      const std::uint32_t stage = shared.stage(at.stage);
      mbarrier_arrive_expect_bytes(full, bytes);
      const int column = k * static_cast<int>(kBlockDepth);
      const std::uint32_t to = stage + Config::kWeightBytes + offset;
      if constexpr (Config::kCooperative) {
        bulk_load_multicast(stage + rank * static_cast<int>(kBlockBytes), weights, kBlockBytes,
                            full, policy, 0b11);
        if constexpr (Config::kRowThreads == 0) {
          tensor_load(to, map, column, row, full);
          tensor_load(to + my_rows * Config::kRowBytes, map, column, row + my_rows, full);
        }
      } else {
        bulk_load_cached(stage, weights, kBlockBytes, full, policy);
        if (k == 0 && p.source != nullptr) wait_until_gathered(p, work.row_tile);
        if (half) {
          tensor_load_multicast(to, map, column, row, full, 0b11);
        } else {
          tensor_load(to, map, column, row, full);
        }
      }
      weights += kBlockBytes;
      at.advance();
    }
  }
}

/// One warpgroup a block: brings the tile's rows into the ring from wherever they are, 16 bytes a copy,
/// eight lanes a row. Rows behind the last valid one are that one again.
template <class Config>
__device__ __forceinline__ void load_rows(const Shared<Config>& shared, const GemmArguments& p) {
  constexpr int kRowsAtOnce = Config::kRowThreads / 8;
  static_assert(kRowsAtOnce % 8 == 0, "a thread's rows have one place in the swizzle");
  constexpr int kPasses = Config::kLargestTile / kRowsAtOnce;
  const int thread = static_cast<int>(threadIdx.x) % Config::kRowThreads;
  const int first = thread / 8;
  const int piece = thread % 8;
  const std::uint32_t place =
      Config::kWeightBytes + first * Config::kRowBytes + ((piece ^ (first & 7)) << 4);
  const std::uint32_t row_pieces = p.source_row_bytes / 16;
  const std::byte* const source = p.source != nullptr ? p.source : p.gathered;
  RingPosition<Config::kStages> at;
  for (int turn = 0;; ++turn) {
    const int slot = turn % 2;
    mbarrier_wait_cluster(shared.queued(slot), turn / 2 & 1);
    const Work work = Work::read(shared.queue(slot));
    const int rows = work.rows();
    if (rows == 0) return;
    __syncwarp();  // all lanes have read it
    if (threadIdx.x % 32 == 0) mbarrier_arrive_cluster(cluster_address(shared.taken(slot), 0));
    std::uint32_t from[kPasses];  // in pieces
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int row = work.first_row + max(min(first + i * kRowsAtOnce, work.valid() - 1), 0);
      const int token = p.source != nullptr ? p.row_tiles.row_to_token[row] : row;
      from[i] = token * row_pieces + piece;
    }
    for (int k = 0; k < p.k_blocks; ++k) {
      mbarrier_wait(shared.empty(at.stage), at.parity ^ 1);
      const std::uint32_t to = shared.stage(at.stage) + place;
      const std::byte* const column = source + k * Config::kRowBytes;
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        if (i * kRowsAtOnce < rows) {
          copy_async(to + i * kRowsAtOnce * Config::kRowBytes,
                     column + static_cast<std::size_t>(from[i]) * 16);
        }
      }
      copy_async_arrive(shared.full(at.stage));
      at.advance();
    }
  }
}

// --- consumers -----------------------------------------------------------------------------------
/// Two fp32 to bf16, the first in the lower half.
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// A consumer's place in its own cycle.
template <class Config>
struct Consumer {
  int index;                 // 0, 1: which of the two warpgroups
  int thread;                // 0 .. 127
  std::uint32_t weights_at;  // of its feature block in a stage
  std::uint32_t staging;
  int chunk = 0;  // to be written next
  RingPosition<Config::kStages> at;

  static constexpr int kStoreBarrier = 1;  // + index: the 128 threads of one consumer
  static constexpr int kTurnBarrier = 3;   // + index: whose turn it is to multiply
};

/// Rows of the output tile that TMA may not write, because they belong to the next expert: the last
/// kRowUnit rows of a tile, thread by thread, of which `valid` exist.
template <class Config>
__device__ __forceinline__ void store_partial(std::uint32_t box, int thread, int valid, int row,
                                              int column, const GemmArguments& p) {
  const int box_row = thread / 8;
  const int piece = thread % 8;  // 16 bytes
  if (box_row >= valid || column + piece * 8 >= p.out_columns) return;
  const int4 value = load_shared(box + box_row * 128 + ((piece ^ (box_row & 7)) << 4));
  *reinterpret_cast<int4*>(p.out + static_cast<std::int64_t>(row + box_row) * p.out_columns +
                           column + piece * 8) = value;
}

/// 32 rows x 64 columns from registers to the chunk. Sums of features f and f + 8 of a band of 16 are
/// in the same thread (wgmma_bf16.cuh); the transposing store makes tokens the rows.
template <class Config, int kRows>
__device__ __forceinline__ void fill_chunk(const float (&sums)[2][kRows / 2], int half, int first,
                                           std::uint32_t to, int thread) {
  const int lane = thread % 32;
  const int warp = thread / 32;
  if constexpr (Config::kEpilogue == GemmEpilogue::kSwiGLU) {
    // Both halves of the features at once; 8 columns a warp and half.
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      std::uint32_t packed[4] = {0, 0, 0, 0};
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int i = (first + q * 8) / 2;
        if (first + q * 8 < kRows) {
          packed[q] = pack_bf16(silu<__nv_bfloat16>(sums[h][i]) * sums[h][i + 2],
                                silu<__nv_bfloat16>(sums[h][i + 1]) * sums[h][i + 3]);
        }
      }
      stmatrix_x4_transposed(to + lane * 128 + (((h * 4 + warp) ^ (lane & 7)) << 4), packed[0],
                             packed[1], packed[2], packed[3]);
    }
  } else {
    const std::uint32_t address = to + ((lane >> 4) * 8 + (lane & 7)) * 128 +
                                  (((warp * 2 + ((lane >> 3) & 1)) ^ (lane & 7)) << 4);
#pragma unroll
    for (int q = 0; q < Config::kChunkRows / 16; ++q) {
      const int i = (first + q * 16) / 2;
      if (first + q * 16 < kRows) {
        stmatrix_x4_transposed(address + q * 2048, pack_bf16(sums[half][i], sums[half][i + 1]),
                               pack_bf16(sums[half][i + 2], sums[half][i + 3]),
                               pack_bf16(sums[half][i + 4], sums[half][i + 5]),
                               pack_bf16(sums[half][i + 6], sums[half][i + 7]));
      }
    }
  }
}

template <class Config, int kRows>
__device__ __forceinline__ void store_tile(const float (&sums)[2][kRows / 2], const Work& work,
                                           Consumer<Config>& me, const CUtensorMap& out_map,
                                           const GemmArguments& p) {
  constexpr int kHalves = Config::kEpilogue == GemmEpilogue::kSwiGLU ? 1 : 2;
  const int feature_block = work.feature_block() + (Config::kCooperative ? me.index : 0);
  const int valid = feature_block < p.feature_blocks ? work.valid() : 0;
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    const int column = feature_block * Config::kOutputFeatures + half * 64;
#pragma unroll
    for (int first = 0; first < kRows; first += Config::kChunkRows) {
      const std::uint32_t chunk = me.staging + me.chunk * Config::kChunkBytes;
      fill_chunk<Config, kRows>(sums, half, first, chunk, me.thread);
      fence_proxy_async();
      // The chunk that is written next must have left.
      if (me.thread == 0) bulk_wait_group_read<Config::kChunks - 2>();
      named_barrier_sync(Consumer<Config>::kStoreBarrier + me.index, 128);
#pragma unroll
      for (int box = 0; box < Config::kChunkRows; box += kRowUnit) {
        const int box_first = first + box;
        if (box_first >= kRows) continue;
        const std::uint32_t from = chunk + box * 128;
        if (valid >= box_first + kRowUnit) {
          if (me.thread == 0) tensor_store(&out_map, from, column, work.first_row + box_first);
        } else if (box_first + kRowUnit == kRows) {  // only the last unit of a tile can be partial
          store_partial<Config>(from, me.thread, valid - box_first, work.first_row + box_first,
                                column, p);
        }
      }
      if (me.thread == 0) bulk_commit_group();
      me.chunk = me.chunk + 1 == Config::kChunks ? 0 : me.chunk + 1;
    }
  }
}

/// All products of one tile and its stores: 128 features x kRows rows.
template <class Config, int kRows>
__device__ __forceinline__ void multiply_tile(const Work& work, const Shared<Config>& shared,
                                              Consumer<Config>& me, std::uint32_t release_to,
                                              const CUtensorMap& out_map, const GemmArguments& p) {
  float sums[2][kRows / 2];
  const auto release = [&](int stage) {
    if (me.thread < Config::kCluster) mbarrier_arrive_cluster(release_to + stage * 8);
  };
  const auto multiply = [&](auto first_block) {
    mbarrier_wait(shared.full(me.at.stage), me.at.parity);
    if constexpr (Config::kRowThreads > 0) fence_proxy_async();  // rows came as ordinary writes
    wgmma_fence();
    const auto stage = SwizzledOperand::at(shared.stage(me.at.stage));
    const SwizzledOperand weights = stage.plus_bytes(me.weights_at);
    const SwizzledOperand rows = stage.plus_bytes(Config::kWeightBytes);
#pragma unroll
    for (int k = 0; k < static_cast<int>(kBlockDepth) / 16; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint64_t a = weights.plus_bytes(half * Config::kHalfBytes + k * 32).descriptor();
        const std::uint64_t b = rows.plus_bytes(k * 32).descriptor();
        if (first_block.value && k == 0) {
          WgmmaBf16<kRows>::start(sums[half], a, b);
        } else {
          WgmmaBf16<kRows>::accumulate(sums[half], a, b);
        }
      }
    }
    wgmma_commit_group();
  };

  // One group stays in flight; a stage is released when the group after its own is queued.
  multiply(std::true_type());
  int previous = me.at.stage;
  me.at.advance();
  for (int k = 1; k < p.k_blocks; ++k) {
    multiply(std::false_type());
    wgmma_wait_group<1>();
    release(previous);
    previous = me.at.stage;
    me.at.advance();
  }
  // The other consumer may queue its products now: they start when these are done.
  if constexpr (!Config::kCooperative) {
    named_barrier_arrive(Consumer<Config>::kTurnBarrier + (me.index ^ 1), 256);
  }
  wgmma_wait_group<0>();
  release(previous);
  keep_here(sums[0]);
  keep_here(sums[1]);
  store_tile<Config, kRows>(sums, work, me, out_map, p);
}

template <class Config>
__device__ __forceinline__ void consume(const Shared<Config>& shared, const CUtensorMap& out_map,
                                        const GemmArguments& p) {
  Consumer<Config> me{(static_cast<int>(threadIdx.x) - Config::kProducerThreads) / 128,
                      static_cast<int>(threadIdx.x) % 128, 0, 0};
  me.staging = shared.staging(me.index);
  if (Config::kCooperative) me.weights_at = me.index * static_cast<int>(kBlockBytes);
  // Arrivals go to every block that writes into this one's ring.
  const std::uint32_t release_to =
      cluster_address(shared.empty(0), me.thread < Config::kCluster ? me.thread : 0);
  int slot = 0;
  if (!Config::kCooperative && me.index == 1) {
    slot = 1;
    named_barrier_arrive(Consumer<Config>::kTurnBarrier, 256);
    me.at.skip(p.k_blocks);
  }
  for (std::uint32_t parity = 0;;) {
    mbarrier_wait_cluster(shared.queued(slot), parity);
    const Work work = Work::read(shared.queue(slot));
    if (work.rows() == 0) break;
    if constexpr (Config::kCooperative) {
      named_barrier_sync(Consumer<Config>::kStoreBarrier + me.index, 128);  // all have read it
    } else {
      // Parities tell only neighbouring phases apart: this consumer may not wait for its tile's
      // stages before the other one has seen the last stage of the tile before.
      named_barrier_sync(Consumer<Config>::kTurnBarrier + me.index, 256);
    }
    if (me.thread == 0) mbarrier_arrive_cluster(cluster_address(shared.taken(slot), 0));
#define MOE_TILE(kUnits)                                                                  \
  case kUnits:                                                                            \
    if constexpr (kUnits * kRowUnit <= Config::kLargestTile)                              \
      multiply_tile<Config, kUnits * kRowUnit>(work, shared, me, release_to, out_map, p); \
    break;
    switch (work.rows() / kRowUnit) {
      MOE_TILE(1)
      MOE_TILE(2)
      MOE_TILE(3)
      MOE_TILE(4)
      MOE_TILE(5)
      MOE_TILE(6)
      MOE_TILE(7)
      MOE_TILE(8)
      MOE_TILE(9)
      MOE_TILE(10)
      MOE_TILE(11)
      MOE_TILE(12)
    }
#undef MOE_TILE
    if constexpr (Config::kCooperative) {
      slot ^= 1;
      if (slot == 0) parity ^= 1;
    } else {
      parity ^= 1;
      me.at.skip(p.k_blocks);  // the other consumer's
    }
  }
  if (me.thread == 0) bulk_wait_group<0>();
}

template <class Config>
__global__ void __cluster_dims__(Config::kCluster, 1, 1) __launch_bounds__(Config::kThreads, 1)
    grouped_gemm_kernel(const __grid_constant__ TokenMaps tokens,
                        const __grid_constant__ CUtensorMap out_map,
                        const __grid_constant__ GemmArguments p) {
  extern __shared__ __align__(1024) std::uint8_t raw[];
  const auto shared = Shared<Config>::of(raw);
  if (threadIdx.x == 0) {
    for (int s = 0; s < Config::kStages; ++s) {
      mbarrier_init(shared.full(s), 1 + Config::kRowThreads);
      mbarrier_init(shared.empty(s), Config::kCluster * Config::kConsumersOfTile);
    }
    for (int slot = 0; slot < 2; ++slot) {
      mbarrier_init(shared.queued(slot), 1);
      // In each block: the loader, the consumers, the warps that load rows.
      mbarrier_init(shared.taken(slot),
                    Config::kCluster * (1 + Config::kConsumersOfTile + Config::kRowThreads / 32));
    }
    mbarrier_init(shared.gathered(), 1);
    fence_mbarrier_init();
  }
  wait_for_previous_kernel();
  allow_next_kernel();
  cluster_barrier();

  if (threadIdx.x < 128) {
    release_registers<Config::kLoaderRegisters>();
    if (threadIdx.x == 0) {
      load(shared, tokens, p);
    } else if (threadIdx.x == 32 && cluster_rank() == 0) {
      schedule(shared, p);
    } else if (Config::kGatherPieces > 0 && threadIdx.x / 32 == 2 && p.source != nullptr) {
      gather(shared, p);
    }
  } else if (threadIdx.x < Config::kProducerThreads) {
    if constexpr (Config::kRowThreads > 0) {
      release_registers<Config::kRowRegisters>();
      load_rows(shared, p);
    }
  } else {
    claim_registers<Config::kConsumerRegisters>();
    consume(shared, out_map, p);
  }
  // Nobody leaves while a neighbour may still write to its shared memory.
  __syncwarp();
  cluster_barrier();
}

}  // namespace moe::cuda
