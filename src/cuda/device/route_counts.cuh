// Counting rows by expert over a whole grid, so that every block knows where its rows go: what the kernels
// that route share. Warps own contiguous ranges of tokens and count for themselves; blocks publish sums,
// and after a grid barrier every block adds up those of all.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device/warp.cuh"

namespace moe::cuda {

/// Of CountChoice::placed: kMaxExperts = 1024.
inline constexpr int kPlacedExpertBits = 10;

/// What the warps and then the blocks count, in dynamic shared memory. Count is 16 bits wide where a
/// whole batch fits: half the bytes between the blocks.
template <class Count>
struct RouteCounts {
  Count* of_warp;         // [warps][warp_pitch] rows of an expert; later those of the warps before
  unsigned* words;        // [2][pitch] as words: `before`, then `total`
  const Count* before;    // [pitch] in the blocks before this one
  const Count* in_total;  // [pitch] in all blocks
  int* base;              // [pitch] routed row of the block's first row of an expert

  /// An odd number of words: the same count of all warps meets all banks.
  static __host__ __device__ constexpr int warp_pitch(int pitch) {
    return pitch + 4 / static_cast<int>(sizeof(Count));
  }
  static __host__ __device__ constexpr std::size_t bytes(int warps, int pitch) {
    return static_cast<std::size_t>(warps) * warp_pitch(pitch) * sizeof(Count) +
           static_cast<std::size_t>(pitch) * (2 * sizeof(Count) + sizeof(int));
  }
  __device__ RouteCounts(std::byte* shared, int warps, int pitch)
      : of_warp(reinterpret_cast<Count*>(shared)),
        words(reinterpret_cast<unsigned*>(of_warp + warps * warp_pitch(pitch))),
        before(reinterpret_cast<const Count*>(words)),
        in_total(before + pitch),
        base(reinterpret_cast<int*>(const_cast<Count*>(in_total) + pitch)) {}
};

/// Writes a slot down and counts it. A token takes an expert once, so no two lanes count the same.
template <class Count>
struct CountChoice {
  std::int32_t* idx;  // [K]
  float* weights;     // [K]
  std::int32_t*
      placed;     // [K] rank among the warp's rows of the expert << kPlacedExpertBits | expert
  Count* counts;  // [E] of this warp
  __device__ void choose(int slot, int expert, float weight) const {
    const int rank = counts[expert];
    counts[expert] = static_cast<Count>(rank + 1);
    idx[slot] = expert;
    weights[slot] = weight;
    placed[slot] = rank << kPlacedExpertBits | expert;
  }
  __device__ void divide(int slot, float sum) const { weights[slot] /= sum; }
};

/// counts.of_warp: from a warp's rows to those of the warps before it; `block`[pitch] those of all. A
/// word of counts at once, a warp's count a lane.
template <class Count>
__device__ __forceinline__ void add_up_warps(const RouteCounts<Count>& counts, int pitch,
                                             Count* block) {
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int words = pitch * static_cast<int>(sizeof(Count)) / 4;
  const int row_words = counts.warp_pitch(pitch) * static_cast<int>(sizeof(Count)) / 4;
  for (int word = static_cast<int>(threadIdx.x) / kWarpSize; word < words; word += warps) {
    unsigned* const mine =
        reinterpret_cast<unsigned*>(counts.of_warp) + min(lane, warps - 1) * row_words + word;
    const unsigned rows = lane < warps ? *mine : 0;
    unsigned upto = rows;
#pragma unroll
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
      const unsigned below = __shfl_up_sync(kAllLanes, upto, distance);
      if (lane >= distance) upto += below;
    }
    if (lane < warps) *mine = upto - rows;
    if (lane == warps - 1) reinterpret_cast<unsigned*>(block)[word] = upto;
  }
}

/// counts.before and counts.in_total from the counts of all blocks, 16 bytes a load.
template <class Count>
__device__ __forceinline__ void add_up_blocks(const Count* block_counts, int pitch,
                                              const RouteCounts<Count>& counts) {
  constexpr int kPerLoad = 16 / static_cast<int>(sizeof(Count));
  const int thread = static_cast<int>(threadIdx.x);
  const int blocks = static_cast<int>(gridDim.x);
  const int loads = pitch / kPerLoad;  // of one block's counts
  const int step = static_cast<int>(blockDim.x) / loads;
  const int first = thread / loads;
  if (first >= min(step, blocks)) return;
  const int column = thread % loads;
  uint4 before{};
  uint4 total{};
  const auto add = [](uint4& sum, const uint4& value) {  // a word holds two counts without overflow
    sum.x += value.x;
    sum.y += value.y;
    sum.z += value.z;
    sum.w += value.w;
  };
#pragma unroll 4
  for (int block = first; block < blocks; block += step) {
    const uint4 value = __ldcg(
        reinterpret_cast<const uint4*>(block_counts + static_cast<std::int64_t>(block) * pitch) +
        column);
    add(total, value);
    if (block < static_cast<int>(blockIdx.x)) add(before, value);
  }
  const auto add_to = [column](unsigned* words, const uint4& value) {
    atomicAdd(words + column * 4, value.x);
    atomicAdd(words + column * 4 + 1, value.y);
    atomicAdd(words + column * 4 + 2, value.z);
    atomicAdd(words + column * 4 + 3, value.w);
  };
  add_to(counts.words + pitch * sizeof(Count) / 4, total);
  if (first < static_cast<int>(blockIdx.x)) add_to(counts.words, before);
}

/// counts.base from before and in_total; block 0 also leaves expert_offsets.
template <class Count>
__device__ __forceinline__ void add_up_experts(int experts, const RouteCounts<Count>& counts,
                                               std::int32_t* expert_offsets) {
  const int threads = static_cast<int>(blockDim.x);
  const int warps = threads / kWarpSize;
  __shared__ int warp_totals[kWarpSize];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  int rows = 0;  // of the experts before those of this round
  for (int first = 0; first < experts; first += threads) {
    const int expert = first + static_cast<int>(threadIdx.x);
    const int total = expert < experts ? counts.in_total[expert] : 0;
    const int upto = warp_inclusive_scan(total);
    if (lane == kWarpSize - 1) warp_totals[warp] = upto;
    __syncthreads();
    if (warp == 0) warp_totals[lane] = warp_inclusive_scan(lane < warps ? warp_totals[lane] : 0);
    __syncthreads();
    const int offset = rows + upto - total + (warp > 0 ? warp_totals[warp - 1] : 0);
    rows += warp_totals[warps - 1];
    if (expert < experts) {
      counts.base[expert] = offset + counts.before[expert];
      if (blockIdx.x == 0) expert_offsets[expert] = offset;
    }
    __syncthreads();
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) expert_offsets[experts] = rows;
}

}  // namespace moe::cuda
