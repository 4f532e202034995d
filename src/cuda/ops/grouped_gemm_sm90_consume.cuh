// The consumers of grouped_gemm_sm90_kernel.cuh: products of a tile, activation, stores.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/device/activation.cuh"
#include "cuda/device/bulk_copy.cuh"
#include "cuda/device/cluster.cuh"
#include "cuda/device/constant_load.cuh"
#include "cuda/device/elect.cuh"
#include "cuda/device/global_flag.cuh"
#include "cuda/device/mbarrier.cuh"
#include "cuda/device/named_barrier.cuh"
#include "cuda/device/shared_address.cuh"
#include "cuda/device/stmatrix.cuh"
#include "cuda/device/swiglu.cuh"
#include "cuda/device/warp.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/device/wgmma_bf16.cuh"
#include "cuda/ops/grouped_gemm_sm90_parts.cuh"
#include "cuda/ops/tile_order.h"

namespace moe::cuda {

/// Two fp32 to bf16, the first in the lower half.
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// A consumer's place in its own cycle.
template <class Config>
struct Consumer {
  int index;   // 0, 1: which of the two warpgroups
  int thread;  // 0 .. 127
  int warp;    // 0 .. 3, in a way that the compiler sees that all lanes have the same
  std::uint32_t staging;
  int queue_slot;  // to be read next
  std::uint32_t queue_parity = 0;
  int chunk = 0;                // to be written next
  int unannounced = -1;         // announcement() of what is on its way
  std::uint32_t handed_on = 0;  // parity of the row tiles that were handed on
  int holds = -1;               // weights through which the tile before leaves
  RingPosition<Config::kWeightSlots> at;
  RingPosition<Config::kRowSlots> rows_at;  // of cooperating blocks, whose rows have their own ring

  static constexpr int kStoreBarrier = 1;  // + index: the 128 threads of one consumer
  static constexpr int kTurnBarrier = 3;   // + index: whose turn it is to multiply, in pingpong
  static constexpr int kLeftBarrier = 3;   // + index: all warps have left the tile, cooperating
};

/// What this consumer does next.
template <class Config>
__device__ __forceinline__ Work next_work(const Shared<Config>& shared, Consumer<Config>& me) {
  mbarrier_wait_cluster(shared.queued(me.queue_slot), me.queue_parity);
  const Work work = Work::read(shared.queue(me.queue_slot)).uniform();
  if (Config::kCooperative) me.queue_slot ^= 1;
  if (!Config::kCooperative || me.queue_slot == 0) me.queue_parity ^= 1;
  return work;
}

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

/// What the epilogue does to sums: those of features f and f + 8 of a band of 16 are in the same thread
/// (wgmma_bf16.cuh).
template <class Config>
struct Epilogue {
  /// Gate and up of one output.
  static __device__ __forceinline__ float pair(float gate, float up, int) {
    return silu<__nv_bfloat16>(gate) * up;
  }
  /// Feature f + 8 · upper.
  static __device__ __forceinline__ float single(float sum, int, int) { return sum; }
};
template <class Config>
requires Config::kBias struct Epilogue<Config> {
  const GemmArguments& p;
  float bias[2][2];  // of the thread's features: [half of the feature block][upper]

  /// Begins to load the biases.
  __device__ __forceinline__ Epilogue(const GemmArguments& arguments, const Work& work,
                                      const Consumer<Config>& me)
      : p(arguments) {
    int block = p.row_tiles.tiles[work.row_tile].expert * p.feature_blocks + work.feature_block();
    if constexpr (Config::kCooperative) {
      // That of the consumer. An odd last one is there twice.
      block += work.feature_block() + 1 < p.feature_blocks ? me.index : 0;
    }
    const float* const from = p.bias + static_cast<std::int64_t>(block) * kBlockFeatures +
                              me.warp * 16 + me.thread % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        bias[half][upper] = p.bias != nullptr ? load_in_place(from + half * 64 + upper * 8) : 0;
      }
    }
  }
  [[nodiscard]] __device__ __forceinline__ float pair(float gate, float up, int half) const {
    return gated(p.activation, gate + bias[half][0], up + bias[half][1]);
  }
  [[nodiscard]] __device__ __forceinline__ float single(float sum, int half, int upper) const {
    const float value = sum + bias[half][upper];
    if constexpr (Config::kEpilogue == GemmEpilogue::kReLU2) return relu2(value);
    return value;
  }
};

/// Outputs of pairs in the first half of a block's features, two rows each: made while the second half is
/// still being multiplied, where Config::kTail > 0.
template <class Config, int kRows>
struct EarlyPairs {
  std::uint32_t packed[Config::kPairs && Config::kTail > 0 ? kRows / 8 : 1];
};

/// Eight rows of one half.
template <class Config, int kRows>
__device__ __forceinline__ std::uint32_t pack_pairs(const float (&sums)[2][kRows / 2],
                                                    const Epilogue<Config>& epilogue, int half,
                                                    int i) {
  return pack_bf16(epilogue.pair(sums[half][i], sums[half][i + 2], half),
                   epilogue.pair(sums[half][i + 1], sums[half][i + 3], half));
}

/// 64 columns and up to kChunkRows rows, from `first` on, from registers to the chunk; the transposing
/// store makes tokens the rows.
template <class Config, int kRows>
__device__ __forceinline__ void fill_chunk(const float (&sums)[2][kRows / 2],
                                           const EarlyPairs<Config, kRows>& early,
                                           const Epilogue<Config>& epilogue, int half, int first,
                                           std::uint32_t to, int thread) {
  const int lane = thread % 32;
  const int warp = thread / 32;
  if constexpr (Config::kPairs) {
    // Both halves of the features at once; 8 columns a warp and half, 32 rows an instruction.
#pragma unroll
    for (int part = 0; part < 2 * Config::kChunkRows / 32; ++part) {
      const int h = part % 2;
      const int from = first + part / 2 * 32;
      if (from >= kRows) continue;
      std::uint32_t packed[4] = {0, 0, 0, 0};
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int row = from + q * 8;
        if (row >= kRows) continue;
        packed[q] = Config::kTail > 0 && h == 0
                        ? early.packed[row / 8]
                        : pack_pairs<Config, kRows>(sums, epilogue, h, row / 2);
      }
      stmatrix_x4_transposed(
          to + (part / 2 * 32 + lane) * 128 + (((h * 4 + warp) ^ (lane & 7)) << 4), packed[0],
          packed[1], packed[2], packed[3]);
    }
  } else {
    const std::uint32_t address = to + ((lane >> 4) * 8 + (lane & 7)) * 128 +
                                  (((warp * 2 + ((lane >> 3) & 1)) ^ (lane & 7)) << 4);
#pragma unroll
    for (int q = 0; q < Config::kChunkRows / 16; ++q) {
      const int i = (first + q * 16) / 2;
      if (first + q * 16 < kRows) {
        const auto packed = [&](int at, int upper) {
          return pack_bf16(epilogue.single(sums[half][at], half, upper),
                           epilogue.single(sums[half][at + 1], half, upper));
        };
        stmatrix_x4_transposed(address + q * 2048, packed(i, 0), packed(i + 2, 1), packed(i + 4, 0),
                               packed(i + 6, 1));
      }
    }
  }
}

/// Boxes of a chunk that belong to this expert: `rows` of them, in as few boxes as their number takes.
template <class Config>
__device__ __forceinline__ void store_boxes(std::uint32_t chunk, int rows, int row, int column,
                                            const OutMaps& maps) {
#pragma unroll
  for (int i = OutMaps::kCount - 1; i >= 0; --i) {
    const int box_rows = kRowUnit << i;
    if (box_rows > Config::kChunkRows) continue;
    const int before = rows & -2 * box_rows;  // in larger boxes
    if ((rows & box_rows) != 0) {
      tensor_store(&maps.box[i], chunk + before * 128, column, row + before);
    }
  }
}

/// Where a consumer's part of a tile goes, and who stores it.
template <class Config>
struct Destination {
  int row;
  int column;  // of the feature block
  int valid;   // rows
  bool storing;

  __device__ __forceinline__ Destination(const Work& work, const Consumer<Config>& me,
                                         const GemmArguments& p)
      : row(work.first_row), storing(me.warp == 0 && elect_lane()) {
    const int feature_block = work.feature_block() + (Config::kCooperative ? me.index : 0);
    column = feature_block * Config::kOutputFeatures;
    valid = feature_block < p.feature_blocks ? work.valid() : 0;
  }
};

/// Rows from `first` on leave through `chunk`. All but the last kPending chunks before it must have left, so that
/// the next one's memory is free.
template <class Config, int kRows, int kPending>
__device__ __forceinline__ void store_chunk(const float (&sums)[2][kRows / 2],
                                            const EarlyPairs<Config, kRows>& early,
                                            const Epilogue<Config>& epilogue,
                                            const Destination<Config>& to, int half, int first,
                                            std::uint32_t chunk, const Consumer<Config>& me,
                                            const OutMaps& out_maps, const GemmArguments& p) {
  fill_chunk<Config, kRows>(sums, early, epilogue, half, first, chunk, me.thread);
  fence_proxy_async();
  if (to.storing) bulk_wait_group_read<kPending>();
  named_barrier_sync(Consumer<Config>::kStoreBarrier + me.index, 128);
  const int column = to.column + half * 64;
  if (to.storing) {
    const int left = min(max(to.valid - first, 0), Config::kChunkRows);
    store_boxes<Config>(chunk, left / kRowUnit * kRowUnit, to.row + first, column, out_maps);
    bulk_commit_group();
  }
  if (first + Config::kChunkRows >= kRows) {
    // Only the last unit of a tile can be partial.
    constexpr int kLast = kRows - kRowUnit;
    if (to.valid - kLast < kRowUnit) {
      store_partial<Config>(chunk + (kLast - first) * 128, me.thread, to.valid - kLast,
                            to.row + kLast, column, p);
    }
  }
}

/// A tile from registers, through chunks of staging memory in turn. Where blocks cooperate only the last chunk is
/// that, whose partial unit is read by ordinary loads; those before are the tile's last weights.
template <class Config, int kRows>
__device__ __forceinline__ void store_tile(const float (&sums)[2][kRows / 2],
                                           const EarlyPairs<Config, kRows>& early,
                                           const Epilogue<Config>& epilogue,
                                           const Destination<Config>& to,
                                           std::uint32_t last_weights, Consumer<Config>& me,
                                           const OutMaps& out_maps, const GemmArguments& p) {
  constexpr int kHalves = Config::kPairs ? 1 : 2;
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
#pragma unroll
    for (int first = 0; first < kRows; first += Config::kChunkRows) {
      std::uint32_t chunk = me.staging + me.chunk * Config::kChunkBytes;
      if (Config::kCooperative && first + Config::kChunkRows < kRows) {
        chunk = last_weights + first * 128;
      }
      store_chunk<Config, kRows, Config::kPending>(sums, early, epilogue, to, half, first, chunk,
                                                   me, out_maps, p);
      me.chunk = me.chunk + 1 == Config::kChunks ? 0 : me.chunk + 1;
    }
  }
}

/// One half of a tile of single outputs, the first while the second is still being multiplied. Its last chunk is
/// staging memory, whose partial unit is read by ordinary loads; those before are, in turn, the part of the last
/// weights that the first half's products have read (`lower`) and staging memory. The second half begins in the
/// other part (`upper`). `then` is called after the first chunk.
template <class Config, int kRows, int kHalf, class Then>
__device__ __forceinline__ void store_half(const float (&sums)[2][kRows / 2],
                                           const Epilogue<Config>& epilogue,
                                           const Destination<Config>& to,
                                           std::uint32_t last_weights, const Consumer<Config>& me,
                                           const OutMaps& out_maps, const GemmArguments& p,
                                           Then&& then) {
  constexpr int kChunksOfHalf = (kRows + Config::kChunkRows - 1) / Config::kChunkRows;
  static_assert(kChunksOfHalf <= 3 && Config::kChunkBytes == Config::kHalfBytes &&
                Config::kStagingBytes == Config::kChunkBytes);
  if (kHalf == 1 && kChunksOfHalf == 1) {  // the first half has just left through it
    if (to.storing) bulk_wait_group_read<0>();
    named_barrier_sync(Consumer<Config>::kStoreBarrier + me.index, 128);
  }
  // Before the second half's last chunk the first half's must have left.
  constexpr int kPending = kHalf == 1 && kChunksOfHalf == 3 ? 1 : 0;
#pragma unroll
  for (int i = 0; i < kChunksOfHalf; ++i) {
    const bool lower = (kChunksOfHalf - 1 - i) % 2 == 1;
    const bool upper = kHalf == 1 && i == 0 && kChunksOfHalf > 1;
    const std::uint32_t chunk = upper   ? last_weights + Config::kHalfBytes
                                : lower ? last_weights
                                        : me.staging;
    store_chunk<Config, kRows, kPending>(sums, {}, epilogue, to, kHalf, i * Config::kChunkRows,
                                         chunk, me, out_maps, p);
    if (i == 0) then();
  }
}

/// What announce() is told: the row tile, and whether the consumer counts for both feature pairs of an item.
template <class Config>
__device__ __forceinline__ int announcement(const Work& work) {
  return work.row_tile << 1 | (Config::kCooperative && work.shared() ? 1 : 0);
}

/// Hands a row tile on to announce(), once what this consumer stored of it is complete; -1: it was the
/// last. The first warp has met all others at a barrier since they stored it.
template <class Config>
__device__ __forceinline__ void hand_on(const Shared<Config>& shared, Consumer<Config>& me,
                                        int announcement) {
  if (me.warp == 0 && elect_lane()) {
    bulk_wait_group<0>();
    mbarrier_wait(shared.announced(me.index), me.handed_on ^ 1);
    store_shared(shared.stored_tile(me.index), announcement);
    mbarrier_arrive(shared.stored(me.index));
  }
  me.handed_on ^= 1;
}

/// One thread a block: tells the next kernel which row tiles are complete. Not a thread that stores them,
/// for a release at the scope of the device takes it as long as a store.
template <class Config>
__device__ __forceinline__ void announce(const Shared<Config>& shared, const GemmArguments& p) {
  int working = 0b11;  // consumers
  for (int turn = 0; working != 0; ++turn) {
    const int consumer = turn % 2;
    if ((working >> consumer & 1) == 0) continue;
    mbarrier_wait(shared.stored(consumer), turn / 2 & 1);
    const int stored = load_shared(shared.stored_tile(consumer)).x;
    mbarrier_arrive(shared.announced(consumer));
    if (stored >= 0) {
      add_release(p.finished + (stored >> 1), 1 + (stored & 1));
    } else {
      working &= ~(1 << consumer);
    }
  }
}

/// All products of one tile and its stores: 128 features x kRows rows. Where blocks cooperate, `work` is the
/// next one's afterwards.
template <class Config, int kRows>
__device__ __forceinline__ void multiply_tile(Work& work, const Shared<Config>& shared,
                                              Consumer<Config>& me, std::uint32_t release_to,
                                              const OutMaps& out_maps, const GemmArguments& p) {
  float sums[2][kRows / 2];
  // Slots of the rings that hold a k block.
  struct Place {
    int weights;
    int rows;
  };
  const auto release = [&](const Place& place) {
    if (me.thread < Config::kCluster) mbarrier_arrive_cluster(release_to + place.weights * 8);
    if (Config::kCooperative && me.thread == 0) mbarrier_arrive(shared.rows_empty(place.rows));
  };
  // The next k block, once it is there.
  const auto next = [&] {
    const Place place{me.at.stage, Config::kCooperative ? me.rows_at.stage : me.at.stage};
    if constexpr (Config::kCooperative) {
      mbarrier_wait(shared.rows_full(place.rows), me.rows_at.parity);
    }
    mbarrier_wait(shared.full(place.weights), me.at.parity);
    if constexpr (Config::kRowThreads > 0) fence_proxy_async();  // rows came as ordinary writes
    me.at.skip(Config::kFeatureBlocks);
    me.rows_at.advance();
    return place;
  };
  const auto product = [&](const Place& place, int k, int half, auto starts) {
    const std::uint64_t a = SwizzledOperand::at(shared.weight_slot(place.weights))
                                .plus_bytes(half * Config::kHalfBytes + k * 32)
                                .descriptor();
    const std::uint64_t b =
        SwizzledOperand::at(shared.row_slot(place.rows)).plus_bytes(k * 32).descriptor();
    if (starts.value && k == 0) {
      WgmmaBf16<kRows>::start(sums[half], a, b);
    } else {
      WgmmaBf16<kRows>::accumulate(sums[half], a, b);
    }
  };
  constexpr int kSteps = static_cast<int>(kBlockDepth) / 16;
  const auto multiply = [&](auto starts) {
    const Place place = next();
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) product(place, k, half, starts);
    }
    wgmma_commit_group();
    return place;
  };

  // One group stays in flight; a place is released when the group after its own is queued.
  Place previous = multiply(std::true_type());
  if (Config::kCooperative && me.holds >= 0) {
    // What the tile before left has been read: staging memory is free, and its last weights can be given back.
    if (me.warp == 0) {
      if (elect_lane()) bulk_wait_group_read<0>();
      __syncwarp();
    }
    named_barrier_sync(Consumer<Config>::kLeftBarrier + me.index, 128);
    if (me.thread < Config::kCluster) mbarrier_arrive_cluster(release_to + me.holds * 8);
  }
  for (int k = 1; k < p.k_blocks - Config::kTail; ++k) {
    const Place now = multiply(std::false_type());
    wgmma_wait_group<1>();
    release(previous);
    previous = now;
  }
  // Loads that the last products hide.
  const auto begin_epilogue = [&] {
    if constexpr (Config::kBias)
      return Epilogue<Config>(p, work, me);
    else
      return Epilogue<Config>();
  };
  const auto announce_previous = [&](int announcement_of_this) {
    if constexpr (Config::kAnnounces) {
      if (p.finished != nullptr && me.unannounced >= 0) hand_on(shared, me, me.unannounced);
      me.unannounced = announcement_of_this;
    }
  };
  EarlyPairs<Config, kRows> early;
  if constexpr (Config::kTail == 0) {
    // The other consumer may queue its products now: they start when these are done.
    named_barrier_arrive(Consumer<Config>::kTurnBarrier + (me.index ^ 1), 256);
    const auto epilogue = begin_epilogue();
    wgmma_wait_group<0>();
    release(previous);
    keep_here(sums[0]);
    keep_here(sums[1]);
    announce_previous(announcement<Config>(work));
    const Destination<Config> to(work, me, p);
    store_tile<Config, kRows>(sums, early, epilogue, to, 0, me, out_maps, p);
  } else {
    constexpr int kTail = Config::kTail;
    Place tail[kTail];
#pragma unroll
    for (int i = 0; i < kTail; ++i) {
      tail[i] = next();
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) product(tail[i], k, 0, std::false_type());
    }
    wgmma_commit_group();
#pragma unroll
    for (int i = 0; i < kTail; ++i) {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) product(tail[i], k, 1, std::false_type());
      wgmma_commit_group();
    }
    const auto epilogue = begin_epilogue();
    const Destination<Config> to(work, me, p);
    const int announced = announcement<Config>(work);
    work = next_work(shared, me);  // the products run meanwhile
    wgmma_wait_group<kTail + 1>();
    release(previous);
    const Place last = tail[kTail - 1];
    const std::uint32_t last_weights = shared.weight_slot(last.weights);
    wgmma_wait_group<kTail>();
    keep_here(sums[0]);
    announce_previous(announced);
    static_assert(kTail == 2);
    const auto release_first_of_tail = [&] {
      wgmma_wait_group<1>();
      release(tail[0]);
    };
    if constexpr (Config::kPairs) {
#pragma unroll
      for (int i = 0; i < kRows / 8; ++i) {
        early.packed[i] = pack_pairs<Config, kRows>(sums, epilogue, 0, i * 4);
        if (i == kRows / 16) release_first_of_tail();
      }
    } else {
      store_half<Config, kRows, 0>(sums, epilogue, to, last_weights, me, out_maps, p,
                                   release_first_of_tail);
    }
    wgmma_wait_group<0>();
    if (me.thread == 0) mbarrier_arrive(shared.rows_empty(last.rows));
    me.holds = last.weights;
    keep_here(sums[1]);
    if constexpr (Config::kPairs) {
      store_tile<Config, kRows>(sums, early, epilogue, to, last_weights, me, out_maps, p);
    } else {
      store_half<Config, kRows, 1>(sums, epilogue, to, last_weights, me, out_maps, p, [] {});
    }
  }
}

template <class Config>
__device__ __forceinline__ void consume(const Shared<Config>& shared, const OutMaps& out_maps,
                                        const GemmArguments& p) {
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  Consumer<Config> me{(warp - Config::kProducerThreads / 32) / 4,
                      static_cast<int>(threadIdx.x) % 128, warp % 4, 0};
  me.staging = shared.staging(me.index);
  me.queue_slot = Config::kCooperative ? 0 : me.index;
  if (Config::kCooperative) me.at.skip(me.index);
  // Arrivals go to every block that writes into this one's ring.
  const std::uint32_t release_to =
      cluster_address(shared.empty(0), me.thread < Config::kCluster ? me.thread : 0);
  if (!Config::kCooperative && me.index == 1) {
    named_barrier_arrive(Consumer<Config>::kTurnBarrier, 256);
    me.at.skip(p.k_blocks);
  }
  Work work = next_work(shared, me);
  if (Config::kCooperative && work.rows() > 0) {
    named_barrier_sync(Consumer<Config>::kStoreBarrier + me.index, 128);  // all have read it
  }
  while (work.rows() > 0) {
    // Parities tell only neighbouring phases apart: in pingpong a consumer may not wait for its tile's
    // stages before the other one has seen the last stage of the tile before.
    if (!Config::kCooperative) named_barrier_sync(Consumer<Config>::kTurnBarrier + me.index, 256);
    // All threads of the consumer have met since they read it.
    const int slot = Config::kCooperative ? me.queue_slot ^ 1 : me.queue_slot;
    if (me.thread == 0) mbarrier_arrive_cluster(cluster_address(shared.taken(slot), 0));
#define MOE_TILE(kUnits)                                                                   \
  case kUnits:                                                                             \
    if constexpr (kUnits * kRowUnit <= Config::kLargestTile)                               \
      multiply_tile<Config, kUnits * kRowUnit>(work, shared, me, release_to, out_maps, p); \
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
    if constexpr (!Config::kCooperative) {
      me.at.skip(p.k_blocks);  // the other consumer's
      work = next_work(shared, me);
    }
  }
  if (Config::kAnnounces && p.finished != nullptr) {
    named_barrier_sync(Consumer<Config>::kStoreBarrier + me.index, 128);
    if (me.unannounced >= 0) hand_on(shared, me, me.unannounced);
    hand_on(shared, me, -1);
  }
  if (me.warp == 0 && elect_lane()) bulk_wait_group<0>();
}

}  // namespace moe::cuda
