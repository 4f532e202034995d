// The kernel of route_front_sm90.cu. Router weights lie on the 64-row side of wgmma, tokens on the other.
//
// A cluster has a tile of tokens, each of its blocks a part of the reduction. A block's eight warpgroups
// divide experts and tokens of the tile; one thread loads. The partial logits of a block stay in its
// shared memory; a warp adds up those of its tokens, from all blocks of the cluster in their order, and
// chooses. Then as in route_rows(): counts, a barrier of the grid, rows; every block lists a part of the row tiles.
//
//   x, router ─boxes 64 deep─▶ ring ─wgmma─▶ partial[tile,E] ─▶ (neighbours') sum ─▶ top-k ─▶ counts
//   ═══ grid ═══▶ blocks before, experts before ─▶ dst_row, row_to_token, expert_offsets, tiles
#pragma once

#include <cooperative_groups.h>

#include "cuda/device/bulk_copy.cuh"
#include "cuda/device/choose_row.cuh"
#include "cuda/device/cluster.cuh"
#include "cuda/device/cluster_load.cuh"
#include "cuda/device/elect.cuh"
#include "cuda/device/mbarrier.cuh"
#include "cuda/device/overlap.cuh"
#include "cuda/device/route_counts.cuh"
#include "cuda/device/router_rule.h"
#include "cuda/device/shared_address.cuh"
#include "cuda/device/top_k.cuh"
#include "cuda/device/warp.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/device/wgmma_bf16.cuh"
#include "cuda/ops/list_row_tiles.cuh"
#include "cuda/ops/row_tiles.h"

namespace moe::cuda {

struct FrontMaps {
  CUtensorMap x;       // boxes of a tile's tokens x 64
  CUtensorMap router;  // boxes of all experts x 64
};

struct FrontArguments {
  RouterRule rule;
  int tokens;
  int experts;
  int top_k;
  int k_blocks;  // FrontConfig::kDepth deep
  int tile_tokens;
  int split_bits;  // a cluster is 1 << split_bits blocks
  int stages;
  std::int32_t* topk_idx;
  float* topk_weights;
  std::uint16_t* block_counts;
  std::int32_t* expert_offsets;
  std::int32_t* dst_row;
  RowTiles row_tiles;
  int largest_tile;
};

template <int kPerLane>
struct FrontConfig {
  static constexpr int kWarps = 32;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kMostExperts = kPerLane * kWarpSize;
  static constexpr int kExpertBlocks = kPerLane <= 2 ? 1 : kPerLane / 2;  // of 64
  /// Tokens of a warpgroup: no fewer than its sums have registers for. Each reads all weights of its
  /// experts from shared memory, and every instruction of the loop costs cycles of all.
  static constexpr int columns(int tile_tokens) { return tile_tokens < 64 ? tile_tokens : 64; }
  /// Warpgroups that multiply.
  static constexpr int groups(int tile_tokens) {
    return kExpertBlocks * tile_tokens / columns(tile_tokens);
  }
  /// Of a token's partial logits. 4 more than a multiple of 32: a warp's fragment meets all banks.
  static constexpr int kPitch = kExpertBlocks * 64 + 4;
  /// Boxes of 64 columns in a stage. NOTE: an iteration of the loop costs the same cycles for two.
  static constexpr int kBoxes = kExpertBlocks == 4 ? 1 : 2;
  static constexpr int kDepth = 64 * kBoxes;
  static constexpr int kRowBytes = 128;                                // of a box
  static constexpr int kWeightBytes = kExpertBlocks * 64 * kRowBytes;  // of a box
  static constexpr int kRingBytes = 192 << 10;
  static constexpr int kMostStages = 8;
  static constexpr int kMostTokens = 128;
  static_assert(kExpertBlocks * kMostTokens / 64 * 128 <= kThreads, "a warpgroup has its part");
  static_assert(kMostTokens * kPitch * sizeof(float) <= kRingBytes, "partial logits take the ring");
  static constexpr std::size_t kCountBytes =
      RouteCounts<std::uint16_t>::bytes(kWarps, kMostExperts);
  static constexpr std::size_t kSharedBytes = 1024 + kRingBytes + kCountBytes;

  static constexpr int stage_bytes(int tile_tokens) {
    return kBoxes * (kWeightBytes + tile_tokens * kRowBytes);
  }
  static constexpr int stages(int tile_tokens, int k_blocks) {
    int stages = kRingBytes / stage_bytes(tile_tokens);
    if (stages > kMostStages) stages = kMostStages;
    return stages < k_blocks ? stages : k_blocks;
  }
};

/// A block's share of the reduction and its ring of stages: boxes of weights, then boxes of tokens.
struct FrontRing {
  std::uint32_t base;
  std::uint32_t barriers;  // full[kMostStages], empty[kMostStages]
  int stage_bytes;
  int stages;
  int first_k_block;
  int k_blocks;

  [[nodiscard]] __device__ std::uint32_t stage(int index) const {
    return base + static_cast<std::uint32_t>(index * stage_bytes);
  }
  [[nodiscard]] __device__ std::uint32_t full(int index) const {
    return barriers + static_cast<std::uint32_t>(index) * 8;
  }
  [[nodiscard]] __device__ std::uint32_t empty(int index) const {
    return full(index) + 8 * FrontConfig<1>::kMostStages;
  }
};

/// PTX ISA, prefetch.tensormap
__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// A value that the compiler keeps instead of working it out again in every iteration.
__device__ __forceinline__ std::uint32_t held(std::uint32_t value) {
  asm volatile("mov.u32 %0, %1;" : "=r"(value) : "r"(value));
  return value;
}

/// A stage and the parity of its phase. NOTE: counted up; with divisions of the k block by the number of
/// stages the loop took twice as long.
struct FrontStage {
  int index = 0;
  std::uint32_t parity = 0;
  __device__ void advance(int stages) {
    if (++index < stages) return;
    index = 0;
    parity ^= 1U;
  }
};

/// Block k of the reduction into a stage, by one lane. The barrier expects weights and tokens.
template <class Config>
__device__ __forceinline__ void load_weights(const FrontRing& ring, const FrontMaps& maps, int k,
                                             int stage) {
  mbarrier_arrive_expect_bytes(ring.full(stage), static_cast<std::uint32_t>(ring.stage_bytes));
#pragma unroll
  for (int box = 0; box < Config::kBoxes; ++box) {
    tensor_load(ring.stage(stage) + box * Config::kWeightBytes, &maps.router,
                (ring.first_k_block + k) * Config::kDepth + box * 64, 0, ring.full(stage));
  }
}
template <class Config>
__device__ __forceinline__ void load_tokens(const FrontRing& ring, const FrontMaps& maps, int k,
                                            int stage, int first_token, int tile_tokens) {
#pragma unroll
  for (int box = 0; box < Config::kBoxes; ++box) {
    tensor_load(ring.stage(stage) + Config::kBoxes * Config::kWeightBytes +
                    box * tile_tokens * Config::kRowBytes,
                &maps.x, (ring.first_k_block + k) * Config::kDepth + box * 64, first_token,
                ring.full(stage));
  }
}

/// partial[token of the tile][expert] over this block's part of the reduction. Warp 0 also refills the
/// ring.
template <class Config, int kTile>
__device__ __forceinline__ void multiply_tile(const FrontRing& ring, const FrontMaps& maps,
                                              int first_token, float* partial) {
  constexpr int kColumns = Config::columns(kTile);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  const int group = warp / 4;
  const int expert_block = group % Config::kExpertBlocks;
  const int first_column = group / Config::kExpertBlocks * kColumns;
  const bool active = group < Config::groups(kTile);
  float sums[kColumns / 2] = {};
  if (active) {
    const SwizzledOperand first_a = SwizzledOperand::at(
        ring.base + static_cast<std::uint32_t>(expert_block) * 64 * Config::kRowBytes);
    const SwizzledOperand first_b =
        SwizzledOperand::at(ring.base + Config::kBoxes * Config::kWeightBytes +
                            static_cast<std::uint32_t>(first_column) * Config::kRowBytes);
    FrontStage now;
    FrontStage before;
    for (int k = 0; k < ring.k_blocks; ++k) {
      mbarrier_wait(ring.full(now.index), now.parity);
      const auto stage = static_cast<std::uint32_t>(now.index * ring.stage_bytes);
      wgmma_fence();
#pragma unroll
      for (int box = 0; box < Config::kBoxes; ++box) {
        const SwizzledOperand a = first_a.plus_bytes(stage + box * Config::kWeightBytes);
        const SwizzledOperand b = first_b.plus_bytes(stage + box * kTile * Config::kRowBytes);
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          WgmmaBf16<kColumns>::accumulate(sums, a.plus_bytes(step * 32).descriptor(),
                                          b.plus_bytes(step * 32).descriptor());
        }
      }
      wgmma_commit_group();
      wgmma_wait_group<1>();  // those of the stage before
      now.advance(ring.stages);
      if (k == 0) continue;
      if (lane == 0) mbarrier_arrive(ring.empty(before.index));
      const int next = k - 1 + ring.stages;
      if (warp == 0 && next < ring.k_blocks) {
        if (elect_lane()) {
          mbarrier_wait(ring.empty(before.index), before.parity);
          load_weights<Config>(ring, maps, next, before.index);
          load_tokens<Config>(ring, maps, next, before.index, first_token, kTile);
        }
        __syncwarp();
      }
      before.advance(ring.stages);
    }
    wgmma_wait_group<0>();
    keep_here(sums);
  }
  __syncthreads();  // the partial logits go where the stages were
  if (active) {
    const int expert = expert_block * 64 + warp % 4 * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      float* const at = partial + (first_column + 8 * j + lane % 4 * 2) * Config::kPitch + expert;
      at[0] = sums[4 * j];
      at[Config::kPitch] = sums[4 * j + 1];
      at[8] = sums[4 * j + 2];
      at[Config::kPitch + 8] = sums[4 * j + 3];
    }
  }
}

/// The logits of one token that a lane holds, from the kSplits blocks of the cluster in their order.
template <int kPerLane, int kSplits>
__device__ __forceinline__ void add_up_row(std::uint32_t row, float (&logits)[kPerLane]) {
  load_cluster(cluster_address(row, 0), logits);
#pragma unroll
  for (int rank = 1; rank < kSplits; ++rank) {
    float part[kPerLane];
    load_cluster(cluster_address(row, static_cast<std::uint32_t>(rank)), part);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) logits[i] += part[i];
  }
}

/// `row`: this block's partial logits of the token. Beyond the last expert: -infinity.
template <int kPerLane>
__device__ __forceinline__ void load_row(const float* row, int split_bits, int lane, int experts,
                                         float (&logits)[kPerLane]) {
  const std::uint32_t mine = shared_address(row + lane * kPerLane);
  switch (split_bits) {
    case 0:
      load_logits(row, lane, FrontConfig<kPerLane>::kMostExperts, logits);
      break;
    case 1:
      add_up_row<kPerLane, 2>(mine, logits);
      break;
    case 2:
      add_up_row<kPerLane, 4>(mine, logits);
      break;
    default:
      add_up_row<kPerLane, 8>(mine, logits);
      break;
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (lane * kPerLane + i >= experts) logits[i] = negative_infinity();
  }
}

/// Where the block's warps stand after choosing.
struct FrontSlots {
  std::int64_t first;  // slot (token · K + slot of the token) of the warp
  std::int64_t end;
};

/// Choices of the warp's tokens, ranks among its own rows of an expert.
template <int kPerLane, bool kPlain>
__device__ __forceinline__ FrontSlots choose_tokens(const FrontArguments& p, float* partial,
                                                    Candidates& candidates, std::uint16_t* counts) {
  using Config = FrontConfig<kPerLane>;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int own = p.tile_tokens >> p.split_bits;
  const int per_warp = (own + Config::kWarps - 1) / Config::kWarps;
  const int block_first = static_cast<int>(blockIdx.x) * own;  // token
  const int end = min(block_first + min((warp + 1) * per_warp, own), p.tokens);
  const int first = min(block_first + min(warp * per_warp, own), end);
  const auto rank = static_cast<int>(cluster_rank());
  const auto row_of = [&](int token) {
    return partial + (token - block_first + rank * own) * Config::kPitch;
  };
  float next[kPerLane];
  if (first < end) load_row(row_of(first), p.split_bits, lane, p.experts, next);
  for (int token = first; token < end; ++token) {
    float row[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) row[i] = next[i];
    float* const in_memory = row_of(token);
    if constexpr (!kPlain) {  // the rule reads single logits again; nobody else reads this row
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) in_memory[lane * kPerLane + i] = row[i];
      __syncwarp();
    }
    if (token + 1 < end) {
      load_row(row_of(token + 1), p.split_bits, lane, p.experts, next);
    }
    const std::int64_t slot = static_cast<std::int64_t>(token) * p.top_k;
    const CountChoice<std::uint16_t> sink{p.topk_idx + slot, p.topk_weights + slot,
                                          p.dst_row + slot, counts};
    if constexpr (kPlain) {
      softmax_top_k_of_row(row, lane, p.experts, p.top_k, candidates, sink);
    } else {
      choose_of_row(p.rule, in_memory, row, lane, p.experts, p.top_k, candidates, sink);
    }
    __syncwarp();
  }
  return {static_cast<std::int64_t>(first) * p.top_k, static_cast<std::int64_t>(end) * p.top_k};
}

/// counts.before and counts.in_total from the counts of all blocks. `staged`: kMostExperts words a warp.
template <class Config>
__device__ __forceinline__ void add_up_grid(const std::uint16_t* block_counts, unsigned* staged,
                                            const RouteCounts<std::uint16_t>& counts) {
  constexpr int kWords =
      Config::kMostExperts;  // two counts each: half of them `before`, half `total`
  constexpr int kLoads = Config::kMostExperts / 8;  // of a block's counts
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  const int column = thread % kLoads;
  const auto* const given = reinterpret_cast<const uint4*>(block_counts);
  unsigned sums[8] = {};
#pragma unroll 4
  for (int block = thread / kLoads; block < static_cast<int>(gridDim.x);
       block += Config::kThreads / kLoads) {
    const uint4 value = __ldcg(given + block * kLoads + column);
    const unsigned words[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // a word holds two counts without overflow
      if (block < static_cast<int>(blockIdx.x)) sums[i] += words[i];
      sums[4 + i] += words[i];
    }
  }
#pragma unroll
  for (int distance = kLoads; distance < kWarpSize; distance *= 2) {
#pragma unroll
    for (unsigned& sum : sums) sum += __shfl_xor_sync(kAllLanes, sum, distance);
  }
  if (lane < kLoads) {
    auto* const to = reinterpret_cast<uint4*>(staged + warp * kWords);
    to[column] = make_uint4(sums[0], sums[1], sums[2], sums[3]);
    to[kLoads + column] = make_uint4(sums[4], sums[5], sums[6], sums[7]);
  }
  __syncthreads();
  if (thread < kWords) {
    unsigned sum = 0;
#pragma unroll 8
    for (int w = 0; w < Config::kWarps; ++w) sum += staged[w * kWords + thread];
    counts.words[thread] = sum;
  }
}

/// counts.base as add_up_experts() leaves it, by one warp: a lane has kPerLane experts.
template <int kPerLane>
__device__ __forceinline__ void find_bases(const RouteCounts<std::uint16_t>& counts, int experts,
                                           std::int32_t* expert_offsets) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  int rows[kPerLane];
  int sum = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = lane * kPerLane + i;
    rows[i] = expert < experts ? counts.in_total[expert] : 0;
    sum += rows[i];
  }
  const int upto = warp_inclusive_scan(sum);
  int offset = upto - sum;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = lane * kPerLane + i;
    if (expert < experts) {
      counts.base[expert] = offset + counts.before[expert];
      if (blockIdx.x == 0) expert_offsets[expert] = offset;
    }
    offset += rows[i];
  }
  if (blockIdx.x == 0 && lane == kWarpSize - 1) expert_offsets[experts] = upto;
}

template <int kPerLane, bool kPlain>
__global__ void __launch_bounds__(FrontConfig<kPerLane>::kThreads, 1)
    route_front_kernel(const __grid_constant__ FrontMaps maps,
                       const __grid_constant__ FrontArguments p) {
  using Config = FrontConfig<kPerLane>;
  extern __shared__ __align__(1024) std::byte raw[];
  __shared__ __align__(8) std::uint64_t barriers[2 * Config::kMostStages];
  __shared__ Candidates candidates[Config::kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  std::byte* const shared = raw + (1024 - shared_address(raw) % 1024) % 1024;
  constexpr int kCounts = Config::kMostExperts;
  const RouteCounts<std::uint16_t> counts(shared + Config::kRingBytes, Config::kWarps, kCounts);
  std::uint16_t* const mine = counts.of_warp + warp * counts.warp_pitch(kCounts);

  const auto rank = static_cast<int>(cluster_rank());
  const int first_token = (static_cast<int>(blockIdx.x) >> p.split_bits) * p.tile_tokens;
  const int first_k_block = p.k_blocks * rank >> p.split_bits;
  const FrontRing ring{.base = held(shared_address(shared)),
                       .barriers = held(shared_address(barriers)),
                       .stage_bytes = Config::stage_bytes(p.tile_tokens),
                       .stages = p.stages,
                       .first_k_block = first_k_block,
                       .k_blocks = (p.k_blocks * (rank + 1) >> p.split_bits) - first_k_block};
  if (warp == 1 && elect_lane()) {
    prefetch_tensor_map(&maps.router);
    prefetch_tensor_map(&maps.x);
  }
  if (warp == 0) {
    if (elect_lane()) {
      for (int stage = 0; stage < ring.stages; ++stage) {
        mbarrier_init(ring.full(stage), 1);
        mbarrier_init(ring.empty(stage),
                      static_cast<std::uint32_t>(Config::groups(p.tile_tokens)) * 4);
      }
      fence_mbarrier_init();
      const int filled = min(ring.stages, ring.k_blocks);
      // Weights are no other kernel's.
      for (int k = 0; k < filled; ++k) load_weights<Config>(ring, maps, k, k);
      wait_for_previous_kernel();
      for (int k = 0; k < filled; ++k) {
        load_tokens<Config>(ring, maps, k, k, first_token, p.tile_tokens);
      }
    }
    __syncwarp();
  }
  for (int expert = lane; expert < kCounts; expert += kWarpSize) mine[expert] = 0;
  for (int i = thread; i < kCounts; i += Config::kThreads) counts.words[i] = 0;
  wait_for_previous_kernel();
  allow_next_kernel();
  __syncthreads();

  auto* const partial = reinterpret_cast<float*>(shared);
  const auto multiply = [&]<int kTile>() {
    multiply_tile<Config, kTile>(ring, maps, first_token, partial);
  };
  if (p.tile_tokens == 128) {
    multiply.template operator()<128>();
  } else if (p.tile_tokens == 64) {
    multiply.template operator()<64>();
  } else {
    multiply.template operator()<32>();
  }
  if (p.split_bits > 0) {
    cluster_barrier();
  } else {
    __syncthreads();
  }

  const FrontSlots slots = choose_tokens<kPerLane, kPlain>(p, partial, candidates[warp], mine);
  const std::int64_t my_slot = slots.first + lane;
  std::int32_t* const row_to_token = p.row_tiles.row_to_token;
  const int my_token = static_cast<int>(my_slot) / p.top_k;
  int placed = my_slot < slots.end ? p.dst_row[my_slot] : 0;  // on its way during the barrier
  __syncthreads();
  if (p.split_bits > 0) cluster_arrive();  // the neighbours' logits are read

  add_up_warps(counts, kCounts,
               gridDim.x > 1 ? p.block_counts + static_cast<std::int64_t>(blockIdx.x) * kCounts
                             : const_cast<std::uint16_t*>(counts.in_total));
  if (gridDim.x > 1) {  // also: no block of the cluster reads this one's logits any more
    cooperative_groups::this_grid().sync();
    add_up_grid<Config>(p.block_counts, reinterpret_cast<unsigned*>(shared), counts);
  }
  __syncthreads();
  if (warp == 0) find_bases<kPerLane>(counts, p.experts, p.expert_offsets);
  __syncthreads();

  for (std::int64_t slot = my_slot; slot < slots.end; slot += kWarpSize) {
    if (slot != my_slot) placed = p.dst_row[slot];
    const int expert = placed & ((1 << kPlacedExpertBits) - 1);
    const int row = counts.base[expert] + mine[expert] + (placed >> kPlacedExpertBits);
    p.dst_row[slot] = row;
    if (row_to_token != nullptr) {
      row_to_token[row] = slot == my_slot ? my_token : static_cast<int>(slot) / p.top_k;
    }
  }
  if (p.row_tiles.tiles != nullptr) {
    auto& scratch = *reinterpret_cast<TileListScratch<Config::kMostExperts>*>(shared);
    const bool has_expert = thread < p.experts;
    const int begin = has_expert ? counts.base[thread] - counts.before[thread] : 0;
    const int rows = has_expert ? counts.in_total[thread] : 0;
    list_row_tiles(scratch, p.experts, begin, rows, p.tokens * p.top_k, p.largest_tile,
                   p.row_tiles);
  }
  __syncwarp();
  // So that nobody leaves while a neighbour reads its memory. The barrier of the grid has seen to that:
  // this one is for tools that do not know.
  if (p.split_bits > 0) cluster_wait();
}

}  // namespace moe::cuda
