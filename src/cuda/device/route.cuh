// Routing with the counts on the way: top-k, ranks among the rows of an expert, expert_offsets.
//
// A block routes a contiguous range of tokens, each of its warps a contiguous part of it. A token
// takes an expert once, so the lane that holds a slot can count it alone; counts live per warp, and
// no rank depends on which warp came first. The last block to finish adds up the blocks' counts:
//   placed[t,k]        rank among the rows of its expert in its block << 10 | expert
//   block_rows[b,e]    routed row of the first row of block b and expert e
//   routed row         block_rows[block of t, expert] + rank
#pragma once

#include <cstdint>

#include "cuda/device/launch_shape.cuh"
#include "cuda/device/top_k.cuh"
#include "cuda/device/warp.cuh"

namespace moe::cuda {

inline constexpr int kExpertBits = 10;  // kMaxExperts = 1024

__device__ __forceinline__ int expert_of(std::int32_t placed) {
  return placed & ((1 << kExpertBits) - 1);
}
__device__ __forceinline__ int rank_of(std::int32_t placed) {
  return placed >> kExpertBits;
}

/// Where routing leaves what it found. Views.
struct Placement {
  std::int32_t* placed;          // [T,K]
  float* topk_weights;           // [T,K]
  std::int32_t* block_rows;      // [blocks,E]
  std::int32_t* expert_offsets;  // [E+1]
  unsigned* finished;            // blocks that are done; 0 between two launches
  // For the host, in page-locked memory; null when it does not ask.
  std::int32_t* host_offsets;  // [E+1]
  unsigned* host_sequence;     // becomes `sequence` once host_offsets is written
  unsigned sequence;
};

/// PTX ISA: st.release.sys.
__device__ __forceinline__ void store_release_system(unsigned* address, unsigned value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

/// Exclusive prefix sum of one value per thread over a block of kWarps warps; `sum` of all of them.
template <int kWarps>
__device__ __forceinline__ int block_scan(int value, int (&warp_totals)[kWarpSize], int& sum) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int inclusive = warp_inclusive_scan(value);
  if (lane == kWarpSize - 1) warp_totals[warp] = inclusive;
  __syncthreads();
  if (warp == 0) {
    const int total = lane < kWarps ? warp_totals[lane] : 0;
    warp_totals[lane] = warp_inclusive_scan(total);
  }
  __syncthreads();
  const int before = inclusive - value + (warp > 0 ? warp_totals[warp - 1] : 0);
  sum = warp_totals[kWarps - 1];
  __syncthreads();
  return before;
}

/// block_rows: from counts to rows. By one block; thread (part, expert) owns a contiguous range of
/// blocks of its expert.
template <int kExperts>
__device__ __forceinline__ void add_up_blocks(const Placement& out, int blocks) {
  constexpr int kWarps = route_warps(kExperts);
  constexpr int kThreads = kWarps * kWarpSize;
  constexpr int kAtOnce = kExperts < kThreads ? kExperts : kThreads;
  constexpr int kParts = kThreads / kAtOnce;
  __shared__ int part_counts[kThreads];
  __shared__ int first_rows[kAtOnce];
  __shared__ int warp_totals[kWarpSize];
  const int thread = static_cast<int>(threadIdx.x);
  const int part = thread / kAtOnce;
  const int blocks_per_part = (blocks + kParts - 1) / kParts;
  const int first_block = part * blocks_per_part;
  const int end_block = min(first_block + blocks_per_part, blocks);

  int rows = 0;  // of the experts before those of this round
  for (int first_expert = 0; first_expert < kExperts; first_expert += kAtOnce) {
    const int column = thread % kAtOnce;
    const int expert = first_expert + column;
    const bool active = part < kParts && expert < kExperts;
    std::int32_t* const counts = out.block_rows + expert;
    int count = 0;
    if (active) {
#pragma unroll 16
      for (int block = first_block; block < end_block; ++block) {
        count += __ldcg(counts + static_cast<std::int64_t>(block) * kExperts);
      }
    }
    part_counts[thread] = count;
    __syncthreads();
    int before = 0;  // in the parts before this one
    int total = 0;   // of the expert
    for (int p = 0; p < kParts; ++p) {
      const int other = part_counts[p * kAtOnce + column];
      if (p < part) before += other;
      total += other;
    }
    const bool owner = part == 0 && expert < kExperts;
    int sum = 0;
    const int first_row = rows + block_scan<kWarps>(owner ? total : 0, warp_totals, sum);
    if (owner) {
      first_rows[column] = first_row;
      out.expert_offsets[expert] = first_row;
      if (out.host_offsets != nullptr) out.host_offsets[expert] = first_row;
    }
    rows += sum;
    __syncthreads();
    if (active) {
      int row = first_rows[column] + before;
#pragma unroll 16
      for (int block = first_block; block < end_block; ++block) {
        std::int32_t* const at = counts + static_cast<std::int64_t>(block) * kExperts;
        const int here = __ldcg(at);
        *at = row;
        row += here;
      }
    }
    __syncthreads();
  }
  if (thread == 0) {
    *out.finished = 0;
    out.expert_offsets[kExperts] = rows;
    if (out.host_offsets != nullptr) out.host_offsets[kExperts] = rows;
  }
  if (out.host_offsets != nullptr) {
    __threadfence_system();
    __syncthreads();
    if (thread == 0) store_release_system(out.host_sequence, out.sequence);
  }
}

/// Counts a slot for its warp and writes it down.
template <int kTopK>
struct CountChoice {
  std::int32_t* placed;
  float* weights;
  std::uint16_t* counts;  // [E] of this warp
  __device__ void choose(int slot, int expert, float weight) const {
    const int rank = counts[expert];
    counts[expert] = static_cast<std::uint16_t>(rank + 1);
    placed[slot] = rank << kExpertBits | expert;
    weights[slot] = weight;
  }
  __device__ void divide(int slot, float sum) const { weights[slot] /= sum; }
};

/// The kernel's body. Blocks of route_warps(kExperts) warps.
template <int kExperts, int kTopK, int kTokensPerWarp>
__device__ __forceinline__ void route_tokens(const float* logits, std::int64_t tokens,
                                             const Placement& out) {
  constexpr int kWarps = route_warps(kExperts);
  constexpr int kPerLane = kExperts <= 32    ? 1
                           : kExperts <= 64  ? 2
                           : kExperts <= 128 ? 4
                           : kExperts <= 256 ? 8
                           : kExperts <= 512 ? 16
                                             : 32;
  __shared__ std::uint16_t counts[kWarps][kExperts];
  __shared__ Candidates candidates[kWarps];
  __shared__ bool last;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * kWarps + warp) * kTokensPerWarp;

  for (int expert = lane; expert < kExperts; expert += kWarpSize) counts[warp][expert] = 0;
  __syncwarp();
  for (int i = 0; i < kTokensPerWarp && first + i < tokens; ++i) {
    const std::int64_t token = first + i;
    float row[kPerLane];
    load_logits(logits + token * kExperts, lane, kExperts, row);
    softmax_top_k_of_row(row, lane, kExperts, kTopK, candidates[warp],
                         CountChoice<kTopK>{out.placed + token * kTopK,
                                            out.topk_weights + token * kTopK, counts[warp]});
    __syncwarp();
  }
  __syncthreads();

  for (int expert = thread; expert < kExperts; expert += kWarps * kWarpSize) {
    int sum = 0;
#pragma unroll 8
    for (int w = 0; w < kWarps; ++w) {
      const int count = counts[w][expert];
      counts[w][expert] = static_cast<std::uint16_t>(sum);
      sum += count;
    }
    out.block_rows[static_cast<std::int64_t>(blockIdx.x) * kExperts + expert] = sum;
  }
  __syncthreads();
  const std::int64_t slots = min(first + kTokensPerWarp, tokens) * kTopK;
  for (std::int64_t slot = first * kTopK + lane; slot < slots; slot += kWarpSize) {
    const std::int32_t placed = out.placed[slot];
    out.placed[slot] = placed + (counts[warp][expert_of(placed)] << kExpertBits);
  }

  __threadfence();
  __syncthreads();
  if (thread == 0) last = atomicAdd(out.finished, 1U) == gridDim.x - 1;
  __syncthreads();
  if (last) {
    __threadfence();
    add_up_blocks<kExperts>(out, static_cast<int>(gridDim.x));
  }
}

}  // namespace moe::cuda
