#include "cuda/ops/grouped_gemm_mma.h"

#include <algorithm>
#include <type_traits>

#include "core/check.h"
#include "cuda/device/element.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/overlap.cuh"
#include "cuda/device/row_tiles.cuh"
#include "cuda/launch.h"
#include "cuda/ops/router.h"

namespace moe::cuda {
namespace {

/// Of shared memory, where a block keeps expert_offsets while it looks for its rows.
std::size_t offset_bytes(std::int64_t experts) {
  return static_cast<std::size_t>(experts + 1) * sizeof(std::int32_t);
}

// --- bf16 ----------------------------------------------------------------------------------------
/// kRows x kColumns outputs a block, kDepth of k a step, kStages steps in flight. Warps form a grid
/// of down x across outputs; `deep` warps share an output, each with its part of every step's k, and
/// are added up at the end. kBlocks blocks share a multiprocessor: their stages have to fit.
struct WarpGrid {
  int down, across, deep;
};
template <int kRows_, int kColumns_, int kDepth_, int kStages_, int kBlocks_, WarpGrid kWarps>
struct MmaTile {
  static constexpr int kRows = kRows_;
  static constexpr int kColumns = kColumns_;
  static constexpr int kDepth = kDepth_;
  static constexpr int kStages = kStages_;
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kAcross = kWarps.across;
  static constexpr int kDeep = kWarps.deep;
  static constexpr int kThreads = kWarps.down * kAcross * kDeep * kWarpSize;
  static constexpr int kWarpRows = kRows / kWarps.down;
  static constexpr int kWarpColumns = kColumns / kAcross;
  static constexpr int kWarpSteps = kDepth / 16 / kDeep;  // of k, 16 wide, in one stage
  static constexpr int kChunks = kDepth / 8;              // 16-byte pieces of a row of a stage
  static constexpr unsigned kABytes = kRows * kDepth * 2;
  static constexpr unsigned kStageBytes = kABytes + kColumns * kDepth * 2;
  static constexpr int kOutStride = kColumns + 8;  // elements; not a power of two: rows shift banks
  static constexpr int kOutBytes = kRows * kOutStride * kDeep * (kDeep > 1 ? 4 : 2);
  static_assert(kWarpRows % 16 == 0 && kWarpColumns % 16 == 0, "whole mma tiles and B pairs");
  static_assert(kChunks % 8 == 0, "the swizzle permutes eight chunks");
  static_assert(kDepth % (16 * kDeep) == 0, "the same k for every warp of an output");
  static_assert(kOutBytes <= static_cast<int>(kStages * kStageBytes),
                "the result is staged where the inputs were");
};
// Many rows: 64x64 outputs a warp, two blocks a multiprocessor.
// Few rows: what counts is bytes in flight, about 64 KiB a multiprocessor and more, and a short way
// from a stage's arrival to its release, so the warps divide k.
using Tile128 = MmaTile<128, 128, 64, 3, 2, WarpGrid{2, 2, 1}>;
using Tile64 = MmaTile<64, 128, 64, 4, 2, WarpGrid{2, 2, 1}>;
using Tile32 = MmaTile<32, 64, 64, 8, 2, WarpGrid{1, 1, 4}>;
using Tile32Narrow = MmaTile<32, 32, 128, 6, 2, WarpGrid{1, 1, 4}>;
using Tile16 = MmaTile<16, 64, 128, 5, 2, WarpGrid{1, 1, 4}>;
using Tile16Narrow = MmaTile<16, 32, 128, 8, 2, WarpGrid{1, 1, 4}>;

/// The matrix [n,k] of an expert.
template <class Element>
__device__ __forceinline__ const Element* weights_of(const GroupedGemm& gemm, int expert) {
  const bool shared = expert >= gemm.shared_first;
  const std::int64_t matrix = shared ? expert - gemm.shared_first : expert;
  return static_cast<const Element*>(shared ? gemm.shared_w : gemm.w) + matrix * gemm.n * gemm.k;
}

/// Where a 16-byte chunk of a stage's row lies. Eight rows that ldmatrix reads at one chunk would
/// meet in the same banks; the exclusive or deals them out over eight.
template <class Tile>
__device__ __forceinline__ unsigned chunk_offset(int row, int chunk) {
  return static_cast<unsigned>(row * Tile::kDepth * 2 + ((chunk ^ (row & 7)) << 4));
}

/// Eight elements, of which the first `count` exist, as one chunk.
__device__ __forceinline__ uint4 gather_chunk(const __nv_bfloat16* from, int count) {
  Vec<__nv_bfloat16, 8> chunk;
#pragma unroll
  for (int i = 0; i < 8; ++i) chunk.set(i, i < count ? to_float(from[i]) : 0.0F);
  return make_uint4(chunk.words[0], chunk.words[1], chunk.words[2], chunk.words[3]);
}

/// kHeight rows x kDepth of a matrix into a stage, zeros where it ends.
template <class Tile, int kHeight, bool kAligned>
__device__ __forceinline__ void fetch(std::byte* to, const __nv_bfloat16* from, std::int64_t stride,
                                      int rows, std::int64_t depth) {
  constexpr int kStep = Tile::kThreads / Tile::kChunks;
  const int chunk = static_cast<int>(threadIdx.x) % Tile::kChunks;
  const int first = static_cast<int>(threadIdx.x) / Tile::kChunks;
  const auto count = static_cast<int>(min(depth - chunk * 8, std::int64_t{8}));  // may be negative
  const __nv_bfloat16* const column = from + chunk * 8;
#pragma unroll
  for (int row = first; row < kHeight; row += kStep) {
    std::byte* const place = to + chunk_offset<Tile>(row, chunk);
    const bool present = row < rows && count > 0;
    if constexpr (kAligned) {
      copy_async_16(shared_address(place), present ? column + row * stride : from, present);
    } else {
      *reinterpret_cast<uint4*>(place) = gather_chunk(column + row * stride, present ? count : 0);
    }
  }
}

template <class Tile>
using Sums = float[Tile::kWarpRows / 16][Tile::kWarpColumns / 8][4];

/// Which outputs and which part of k a warp owns.
struct WarpPlace {
  int row, column, deep;
};
template <class Tile>
__device__ __forceinline__ WarpPlace place_of_warp() {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int output = warp / Tile::kDeep;
  return {output / Tile::kAcross * Tile::kWarpRows, output % Tile::kAcross * Tile::kWarpColumns,
          warp % Tile::kDeep};
}

/// The products of one stage, added to this warp's sums. Fragments of the next 16 of k are loaded
/// while those of this one are multiplied.
template <class Tile>
__device__ __forceinline__ void multiply_stage(unsigned stage, const WarpPlace& place,
                                               Sums<Tile>& sums) {
  constexpr int kDown = Tile::kWarpRows / 16;
  constexpr int kPairs = Tile::kWarpColumns / 16;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  unsigned a[2][kDown][4];
  unsigned b[2][kPairs][4];
  const auto load = [&](int step) {
    const int chunk = (step * Tile::kDeep + place.deep) * 2;
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
      const int row = place.row + i * 16 + lane % 16;
      load_matrices(stage + chunk_offset<Tile>(row, chunk + lane / 16), a[step % 2][i]);
    }
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int column = place.column + j * 16 + lane % 8 + lane / 16 * 8;
      load_matrices(stage + Tile::kABytes + chunk_offset<Tile>(column, chunk + lane / 8 % 2),
                    b[step % 2][j]);
    }
  };
  load(0);
#pragma unroll
  for (int step = 0; step < Tile::kWarpSteps; ++step) {
    if (step + 1 < Tile::kWarpSteps) load(step + 1);
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        multiply_bf16(sums[i][2 * j], a[step % 2][i], b[step % 2][j][0], b[step % 2][j][1]);
        multiply_bf16(sums[i][2 * j + 1], a[step % 2][i], b[step % 2][j][2], b[step % 2][j][3]);
      }
    }
  }
}

/// Stages the sums in shared memory, rounded unless warps have to be added up, and stores whole rows.
template <class Tile, bool kAligned>
__device__ __forceinline__ void store_tile(std::byte* shared, const WarpPlace& place,
                                           const Sums<Tile>& sums, __nv_bfloat16* c,
                                           std::int64_t stride, int rows, int columns) {
  using Staged = std::conditional_t<(Tile::kDeep > 1), float, __nv_bfloat16>;
  constexpr int kPlane = Tile::kRows * Tile::kOutStride;
  auto* const staged = reinterpret_cast<Staged*>(shared);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int i = 0; i < Tile::kWarpRows / 16; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kWarpColumns / 8; ++j) {
      const int row = place.row + i * 16 + lane / 4;
      const int column = place.column + j * 8 + lane % 4 * 2;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Vec<Staged, 2> pair;
        pair.set(0, sums[i][j][2 * half]);
        pair.set(1, sums[i][j][2 * half + 1]);
        *reinterpret_cast<Vec<Staged, 2>*>(staged + place.deep * kPlane +
                                           (row + half * 8) * Tile::kOutStride + column) = pair;
      }
    }
  }
  __syncthreads();
  constexpr int kWidth = kAligned ? 8 : 1;
  using Vector = Vec<__nv_bfloat16, kWidth>;
  constexpr int kPerRow = Tile::kColumns / kWidth;
  for (int at = static_cast<int>(threadIdx.x); at < rows * kPerRow; at += Tile::kThreads) {
    const int row = at / kPerRow;
    const int column = at % kPerRow * kWidth;
    if (column >= columns) continue;
    const Staged* const from = staged + row * Tile::kOutStride + column;
    auto* const to = reinterpret_cast<Vector*>(c + row * stride + column);
    if constexpr (Tile::kDeep == 1) {
      *to = *reinterpret_cast<const Vector*>(from);
    } else {
      Vector result;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        float sum = from[i];
#pragma unroll
        for (int deep = 1; deep < Tile::kDeep; ++deep) sum += from[deep * kPlane + i];
        result.set(i, sum);
      }
      *to = result;
    }
  }
}

template <class Tile, bool kAligned>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    grouped_gemm_mma_kernel(const __grid_constant__ GroupedGemm gemm, int column_tiles) {
  extern __shared__ __align__(128) std::byte shared[];
  if (!gemm.weights_first) wait_for_previous_kernel();
  const RowTile tile = find_row_tile<Tile::kRows>(
      gemm.expert_offsets, static_cast<int>(gemm.experts), column_tiles,
      reinterpret_cast<int*>(shared + Tile::kStages * Tile::kStageBytes));
  if (tile.expert < 0) return;
  const std::int64_t column = static_cast<std::int64_t>(tile.column_tile) * Tile::kColumns;
  const auto columns = static_cast<int>(min(gemm.n - column, std::int64_t{Tile::kColumns}));
  const auto* const w = weights_of<__nv_bfloat16>(gemm, tile.expert) + column * gemm.k;
  const auto* const a = static_cast<const __nv_bfloat16*>(gemm.a) + tile.first * gemm.a_stride;

  const auto stage_at = [&](int step) {
    return shared + static_cast<unsigned>(step % Tile::kStages) * Tile::kStageBytes;
  };
  const auto fetch_w = [&](int step) {
    const std::int64_t done = static_cast<std::int64_t>(step) * Tile::kDepth;
    fetch<Tile, Tile::kColumns, kAligned>(stage_at(step) + Tile::kABytes, w + done, gemm.k, columns,
                                          gemm.k - done);
  };
  const auto fetch_a = [&](int step) {
    const std::int64_t done = static_cast<std::int64_t>(step) * Tile::kDepth;
    fetch<Tile, Tile::kRows, kAligned>(stage_at(step), a + done, gemm.a_stride, tile.rows,
                                       gemm.k - done);
  };
  const auto steps = static_cast<int>((gemm.k + Tile::kDepth - 1) / Tile::kDepth);
  constexpr int kAhead = Tile::kStages - 1;
  for (int step = 0; step < min(kAhead, steps); ++step) fetch_w(step);
  if (gemm.weights_first) wait_for_previous_kernel();
  allow_next_kernel();
  for (int step = 0; step < kAhead; ++step) {
    if (step < steps) fetch_a(step);
    commit_copies();  // the first group has the weights of all steps in it
  }

  const WarpPlace place = place_of_warp<Tile>();
  Sums<Tile> sums = {};
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kAhead - 1>();
    __syncthreads();  // this step's stage is there, and the one before it has been used
    if (step + kAhead < steps) {
      fetch_w(step + kAhead);
      fetch_a(step + kAhead);
    }
    commit_copies();
    multiply_stage<Tile>(shared_address(stage_at(step)), place, sums);
  }
  wait_for_copies<0>();
  __syncthreads();
  store_tile<Tile, kAligned>(
      shared, place, sums,
      static_cast<__nv_bfloat16*>(gemm.c) + tile.first * gemm.c_stride + column, gemm.c_stride,
      tile.rows, columns);
}

// --- fp32 ----------------------------------------------------------------------------------------
/// 256 threads, each kRows / 16 x 4 outputs; k in steps of 16, transposed in shared memory.
template <int kRows_>
struct FmaTile {
  static constexpr int kRows = kRows_;
  static constexpr int kColumns = 64;
  static constexpr int kDepth = 16;
  static constexpr int kThreads = 256;
  static constexpr int kDown = kRows / 16;
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    grouped_gemm_fma_kernel(const __grid_constant__ GroupedGemm gemm, int column_tiles) {
  constexpr int kDepth = Tile::kDepth;
  constexpr int kPad = 4;  // rows of a and of w shift banks, and float4 stays aligned
  __shared__ __align__(16) float a_stage[kDepth][Tile::kRows + kPad];
  __shared__ __align__(16) float w_stage[kDepth][Tile::kColumns + kPad];
  extern __shared__ __align__(128) std::byte shared[];
  wait_for_previous_kernel();
  allow_next_kernel();
  const RowTile tile =
      find_row_tile<Tile::kRows>(gemm.expert_offsets, static_cast<int>(gemm.experts), column_tiles,
                                 reinterpret_cast<int*>(shared));
  if (tile.expert < 0) return;
  const std::int64_t column = static_cast<std::int64_t>(tile.column_tile) * Tile::kColumns;
  const auto columns = static_cast<int>(min(gemm.n - column, std::int64_t{Tile::kColumns}));
  const float* const w = weights_of<float>(gemm, tile.expert) + column * gemm.k;
  const float* const a = static_cast<const float*>(gemm.a) + tile.first * gemm.a_stride;

  // Loading: thread (row of 16, depth). Multiplying: thread (rows from down · kDown, columns from
  // across · 4).
  const int depth = static_cast<int>(threadIdx.x) % kDepth;
  const int row = static_cast<int>(threadIdx.x) / kDepth;
  const int across = static_cast<int>(threadIdx.x) % 16;
  const int down = static_cast<int>(threadIdx.x) / 16;
  float a_next[Tile::kDown];
  float w_next[Tile::kColumns / 16];
  const auto load = [&](std::int64_t at) {
#pragma unroll
    for (int i = 0; i < Tile::kDown; ++i) {
      const int r = row + i * 16;
      a_next[i] = r < tile.rows && at < gemm.k ? a[r * gemm.a_stride + at] : 0.0F;
    }
#pragma unroll
    for (int i = 0; i < Tile::kColumns / 16; ++i) {
      const int c = row + i * 16;
      w_next[i] = c < columns && at < gemm.k ? w[c * gemm.k + at] : 0.0F;
    }
  };
  float sums[Tile::kDown][4] = {};
  load(depth);
  for (std::int64_t done = 0; done < gemm.k; done += kDepth) {
    __syncthreads();  // the stage has been used
#pragma unroll
    for (int i = 0; i < Tile::kDown; ++i) a_stage[depth][row + i * 16] = a_next[i];
#pragma unroll
    for (int i = 0; i < Tile::kColumns / 16; ++i) w_stage[depth][row + i * 16] = w_next[i];
    __syncthreads();
    load(done + kDepth + depth);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const float4 weight = *reinterpret_cast<const float4*>(&w_stage[d][across * 4]);
#pragma unroll
      for (int i = 0; i < Tile::kDown; ++i) {
        const float input = a_stage[d][down * Tile::kDown + i];
        sums[i][0] = fmaf(input, weight.x, sums[i][0]);
        sums[i][1] = fmaf(input, weight.y, sums[i][1]);
        sums[i][2] = fmaf(input, weight.z, sums[i][2]);
        sums[i][3] = fmaf(input, weight.w, sums[i][3]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < Tile::kDown; ++i) {
    const int r = down * Tile::kDown + i;
    if (r >= tile.rows) continue;
    float* const out = static_cast<float*>(gemm.c) + (tile.first + r) * gemm.c_stride + column;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (across * 4 + j < columns) out[across * 4 + j] = sums[i][j];
    }
  }
}

// --- host ----------------------------------------------------------------------------------------
/// Row tiles for the worst split of `rows` over the experts: every expert that has rows may end with
/// a tile that has one.
std::int64_t most_row_tiles(std::int64_t rows, std::int64_t experts, int height) {
  const std::int64_t hit = std::min(rows, experts);
  return (rows - hit) / height + hit;
}

template <class Tile, class Kernel>
void launch_grouped(const char* name, Kernel kernel, const GroupedGemm& gemm,
                    std::size_t stage_bytes, cudaStream_t stream) {
  const std::size_t shared = stage_bytes + offset_bytes(gemm.experts);
  const std::int64_t column_tiles = (gemm.n + Tile::kColumns - 1) / Tile::kColumns;
  const std::int64_t blocks = most_row_tiles(gemm.rows, gemm.experts, Tile::kRows) * column_tiles;
  MOE_INTERNAL_CHECK(blocks <= INT32_MAX, "{} blocks exceed the grid ({} rows, n={})", blocks,
                     gemm.rows, gemm.n);
  MOE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared)));
  launch_overlapping(name, kernel, dim3(static_cast<unsigned>(blocks)), dim3(Tile::kThreads),
                     shared, stream, gemm, static_cast<int>(column_tiles));
}

template <class Tile>
void launch(const GroupedGemm& gemm, cudaStream_t stream) {
  if constexpr (requires { Tile::kStages; }) {
    const bool aligned = in_widest_vectors(gemm.k * 2, {gemm.a, gemm.w, gemm.shared_w, gemm.c}) &&
                         gemm.a_stride % 8 == 0 && gemm.c_stride % 8 == 0 && gemm.n % 8 == 0;
    const auto kernel =
        aligned ? grouped_gemm_mma_kernel<Tile, true> : grouped_gemm_mma_kernel<Tile, false>;
    launch_grouped<Tile>("grouped_gemm_mma_kernel", kernel, gemm, Tile::kStages * Tile::kStageBytes,
                         stream);
  } else {
    launch_grouped<Tile>("grouped_gemm_fma_kernel", grouped_gemm_fma_kernel<Tile>, gemm, 0, stream);
  }
}

/// body.operator()<Tile>() for every tile of a type, lowest and narrowest first.
template <class Body>
void for_each_tile(DType dtype, Body&& body) {
  if (dtype == DType::kF32) {
    body.template operator()<FmaTile<16>>();
    body.template operator()<FmaTile<64>>();
  } else {
    body.template operator()<Tile16Narrow>();
    body.template operator()<Tile16>();
    body.template operator()<Tile32Narrow>();
    body.template operator()<Tile32>();
    body.template operator()<Tile64>();
    body.template operator()<Tile128>();
  }
}

}  // namespace

std::vector<GroupedGemmTile> grouped_gemm_tiles(DType dtype) {
  std::vector<GroupedGemmTile> tiles;
  for_each_tile(dtype, [&]<class Tile>() { tiles.push_back({Tile::kRows, Tile::kColumns}); });
  return tiles;
}

GroupedGemmTile choose_grouped_gemm_tile(DType dtype, std::int64_t rows, std::int64_t experts,
                                         std::int64_t n, int multiprocessors) {
  const double per_expert = static_cast<double>(rows) / static_cast<double>(experts);
  if (dtype == DType::kF32) return {per_expert <= 24 ? 16 : 64, 64};
  // The last tile of an expert is half empty on average.
  const auto rows_multiplied = [&](int height) {
    return std::max(1.0, per_expert / height + 0.5) * height;
  };
  // What a row costs in a tile, with that of the tallest as the unit: short tiles read w more often
  // for each product (docs/levels/level05_graphs.md).
  struct Height {
    int rows;
    double row_cost;
  };
  constexpr Height kHeights[] = {{16, 2.7}, {32, 2.0}, {64, 1.4}, {128, 1.0}};
  const auto cost = [&](const Height& h) { return rows_multiplied(h.rows) * h.row_cost; };
  int height = std::min_element(std::begin(kHeights), std::end(kHeights),
                                [&](const Height& x, const Height& y) { return cost(x) < cost(y); })
                   ->rows;
  const auto blocks_of = [&](int columns) {
    const std::int64_t row_tiles = std::max(rows / height, std::min(rows, experts));
    return row_tiles * ((n + columns - 1) / columns);
  };
  if (height == 128 && blocks_of(128) < multiprocessors) height = 64;
  if (height >= 64) return {height, 128};
  return {height, blocks_of(64) > multiprocessors ? 64 : 32};
}

void grouped_gemm_mma(DType dtype, const GroupedGemm& gemm, const GroupedGemmTile& tile,
                      cudaStream_t stream) {
  MOE_INTERNAL_CHECK(gemm.experts <= kMaxExperts, "experts={} exceeds {}", gemm.experts,
                     kMaxExperts);
  bool found = false;
  for_each_tile(dtype, [&]<class Tile>() {
    if (tile != GroupedGemmTile{Tile::kRows, Tile::kColumns}) return;
    found = true;
    launch<Tile>(gemm, stream);
  });
  MOE_INTERNAL_CHECK(found, "no {} kernel for tiles of {} x {}", name_of(dtype), tile.rows,
                     tile.columns);
}

}  // namespace moe::cuda
