// Row-major weights from global memory to the registers that mma.sync multiplies, by one warp on its
// own, and what it multiplies them with.
//
// m16n8k16 does not care which 16 elements of the reduction it adds up, as long as both operands take
// the same ones. So a lane loads 16 contiguous bytes of a row, eight elements, where the fragment's
// layout names pairs, and two products use them:
//
//   step s, lane l:  elements 32·s + 8·(l % 4) .. + 8 of weight rows l / 4 ("low") and l / 4 + 8
//                    ("high"), and of the row of token l / 4 of each tile of eight tokens
//   sums:            rows l / 4 (0, 1) and l / 4 + 8 (2, 3); tokens 2·(l % 4) (0, 2) and the next (1, 3)
//
// Weights on their way are in shared memory, a ring of chunks: kChunk contiguous elements of each of
// the 16 rows, asked for together.
// NOTE: contiguous, because memory pays for every row that it opens. 64 bytes of 16 rows at a time
// reached 60 to 80 % of the rate (docs/levels/level09_streaming.md).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device/element.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/warp.cuh"

namespace moe::cuda {

inline constexpr int kStreamStep = 32;   // elements of the reduction
inline constexpr int kStreamTokens = 8;  // of a tile

/// PTX ISA, ld.global: 16 bytes that other warps of the multiprocessor read too.
__device__ __forceinline__ uint4 load_through_l1(const void* from) {
  uint4 value;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from)
               : "memory");
  return value;
}

/// PTX ISA, ld.shared and st.shared of 16 bytes.
__device__ __forceinline__ uint4 read_shared(unsigned address) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address)
               : "memory");
  return value;
}
__device__ __forceinline__ void write_shared(unsigned address, const uint4& value) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(value.x),
               "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}

/// Eight elements at any address, of which the first `count` exist; zeros behind them.
__device__ __forceinline__ uint4 load_elements(const Bf16* from, int count) {
  const auto* const bits = reinterpret_cast<const volatile unsigned short*>(from);
  unsigned words[4] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) words[i / 2] |= static_cast<unsigned>(bits[i]) << (i % 2 * 16);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

/// Sixteen rows of weights: eight from `low` on and eight from `high` on, of which the first
/// `low_rows` and `high_rows` exist. Rows are `depth` elements long and begin `stride` apart.
struct WeightRows {
  const Bf16* low = nullptr;
  const Bf16* high = nullptr;
  int low_rows = 0;
  int high_rows = 0;
  int depth = 0;
  int stride = 0;
};

/// Chunks first, first + stride, ... of a reduction, `count` of them. Warps that divide a reduction
/// take them in turn, so that together they read long runs of a row.
struct ChunkRange {
  int first = 0;
  int stride = 1;
  int count = 0;

  __device__ static ChunkRange of_part(int depth, int chunk, int part, int parts) {
    const int all = (depth + chunk - 1) / chunk;
    return {part, parts, part < all ? (all - part + parts - 1) / parts : 0};
  }
};

/// kAhead chunks of kChunk elements requested before they are used. kHalf: the high rows do not exist.
/// kAligned: rows of weights and of tokens begin at multiples of 16 bytes and are multiples of 16 bytes
/// long.
template <int kChunk_, int kAhead, bool kAligned, bool kHalf = false>
class WeightStream {
 public:
  static constexpr int kChunk = kChunk_;
  static constexpr int kRows = kHalf ? 8 : 16;
  static constexpr unsigned kRowBytes = kChunk * 2;
  static constexpr unsigned kChunkBytes = kRows * kRowBytes;
  /// Shared memory of a warp, 128-byte aligned. NOTE: 16 bytes off, the same copies take a sixth longer
  /// (docs/levels/level09_streaming.md).
  static constexpr unsigned kRingBytes = kAhead * kChunkBytes;

  __device__ __forceinline__ explicit WeightStream(std::byte* ring)
      : ring_(shared_address(ring)), lane_(static_cast<int>(threadIdx.x) % kWarpSize) {}

  /// Requests the first chunks. Reads nothing but weights.
  __device__ __forceinline__ void start(const WeightRows& weights, const ChunkRange& range) {
    weights_ = weights;
    range_ = range;
    __syncwarp();  // nobody is still reading the ring
#pragma unroll 1
    for (int n = 0; n < kAhead; ++n) request(n, ring_ + static_cast<unsigned>(n) * kChunkBytes);
  }

  /// Adds the products with kTiles tiles of tokens to `sums`. `rows[tile]` is where this lane's token of
  /// the tile starts, in elements from `base`. start() comes before every call.
  /// NOTE: a loop of its own for every number of tiles. With a branch for those that are not there, one
  /// tile took a tenth longer.
  template <int kTiles>
  __device__ __forceinline__ void multiply(const Bf16* base, const unsigned (&rows)[kTiles],
                                           float (&sums)[kTiles][4]) {
    uint4 tokens[kSteps][kTiles];  // of a chunk, asked for a chunk ahead; they are in L1 or L2
    fetch(base, rows, 0, tokens);
    unsigned chunk = ring_;
#pragma unroll 1
    for (int n = 0; n < range_.count; ++n) {
      wait_for_copies<kAhead - 1>();
      __syncwarp();  // what the other lanes asked for is there, too
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const uint4 low = read_shared(chunk + place(lane_ / 4, step * 4 + lane_ % 4));
        const uint4 high = kHalf ? make_uint4(0, 0, 0, 0)
                                 : read_shared(chunk + place(lane_ / 4 + 8, step * 4 + lane_ % 4));
        const unsigned front[4] = {low.x, high.x, low.y, high.y};
        const unsigned back[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const uint4& token = tokens[step][tile];
          multiply_bf16(sums[tile], front, token.x, token.y);
          multiply_bf16(sums[tile], back, token.z, token.w);
        }
      }
      fetch(base, rows, n + 1, tokens);
      __syncwarp();  // everybody has read the chunk
      request(n + kAhead, chunk);
      chunk = chunk == ring_ + (kAhead - 1) * kChunkBytes ? ring_ : chunk + kChunkBytes;
    }
  }

 private:
  static constexpr int kSteps = kChunk / kStreamStep;
  static constexpr int kPieces = kChunk / 8;  // of 16 bytes, of a row
  static_assert(kPieces >= 8 && kPieces <= kWarpSize, "place() exchanges halves of eight pieces");

  /// Where a piece of a row lies in a chunk. Eight lanes read four pieces of two rows at once: odd
  /// rows have them in the other four groups of banks.
  __device__ static unsigned place(int row, int piece) {
    return static_cast<unsigned>(row) * kRowBytes +
           static_cast<unsigned>((piece ^ (row % 2 * 4)) * 16);
  }

  /// Where the n-th chunk begins in a row.
  [[nodiscard]] __device__ int begin_of(int n) const {
    return (range_.first + n * range_.stride) * kChunk;
  }

  /// One group of copies a chunk, empty behind the last one.
  __device__ __forceinline__ void request(int n, unsigned chunk) const {
    if (n < range_.count) {
      const int piece = lane_ % kPieces;
      const int at = begin_of(n) + piece * 8;
      constexpr int kAtOnce = kWarpSize / kPieces;  // rows
#pragma unroll
      for (int first = 0; first < kRows; first += kAtOnce) {
        const int row = first + lane_ / kPieces;
        const bool is_high = first >= 8;
        const int of_half = is_high ? row - 8 : row;
        const bool exists = of_half < (is_high ? weights_.high_rows : weights_.low_rows);
        const Bf16* const from = (is_high ? weights_.high : weights_.low) +
                                 static_cast<std::int64_t>(of_half) * weights_.stride + at;
        const unsigned to = chunk + place(row, piece);
        const int left = exists ? weights_.depth - at : 0;
        if constexpr (kAligned) {
          copy_async_16(to, left > 0 ? from : weights_.low, left > 0);
        } else {
          write_shared(to, load_elements(from, left));
        }
      }
    }
    commit_copies();
  }

  /// Tokens of the n-th chunk.
  template <int kTiles>
  __device__ __forceinline__ void fetch(const Bf16* base, const unsigned (&rows)[kTiles], int n,
                                        uint4 (&tokens)[kSteps][kTiles]) const {
    if (n >= range_.count) return;
    const int at = begin_of(n) + lane_ % 4 * 8;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int left = weights_.depth - at - step * kStreamStep;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const Bf16* const from = base + rows[tile] + at + step * kStreamStep;
        if constexpr (kAligned) {
          tokens[step][tile] = left > 0 ? load_through_l1(from) : make_uint4(0, 0, 0, 0);
        } else {
          tokens[step][tile] = load_elements(from, left);
        }
      }
    }
  }

  unsigned ring_;
  int lane_;
  WeightRows weights_;
  ChunkRange range_;
};

}  // namespace moe::cuda
