// One launch for the products of all experts, whose row counts only the device knows.
//
// c[r,:] = a[r,:] · w[e]^T for every routed row r of expert e, expert_offsets[e] <= r <
// expert_offsets[e+1]. The grid covers the worst split of the rows over the experts; a block finds
// its expert and rows in expert_offsets, so the launch can be captured once and replayed whatever
// the routing is. bf16: mma.sync, which every GPU from sm_80 on has. fp32: FMA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "moe/config.h"

namespace moe::cuda {

/// Views: the memory is the caller's. Strides in elements.
struct GroupedGemm {
  const void* a = nullptr;  ///< [rows, k]
  std::int64_t a_stride = 0;
  const void* w = nullptr;  ///< [experts, n, k], contiguous
  /// Experts from `shared_first` on have theirs at shared_w [experts - shared_first, n, k] instead.
  const void* shared_w = nullptr;
  std::int64_t shared_first = INT64_MAX;
  void* c = nullptr;  ///< [rows, n]
  std::int64_t c_stride = 0;
  const std::int32_t* expert_offsets = nullptr;  ///< [experts + 1], ends with `rows` or less
  std::int64_t experts = 0;
  std::int64_t rows = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  /// Nothing that is still running writes expert_offsets or w: the kernel just before this one in
  /// the stream does not, and was itself launched by launch_overlapping(). Weights are then fetched
  /// while that kernel drains.
  bool weights_first = false;
};

/// What one block computes. A taller tile reads the weights of an expert less often and multiplies
/// more rows that do not exist.
struct GroupedGemmTile {
  int rows = 0;
  int columns = 0;
  bool operator==(const GroupedGemmTile&) const = default;
};
/// The tiles that exist for a type.
[[nodiscard]] std::vector<GroupedGemmTile> grouped_gemm_tiles(DType dtype);
/// The height by the rows that an expert is expected to have, the width so that every multiprocessor
/// gets a block. A host function of sizes alone.
[[nodiscard]] GroupedGemmTile choose_grouped_gemm_tile(DType dtype, std::int64_t rows,
                                                       std::int64_t experts, std::int64_t n,
                                                       int multiprocessors);

/// rows >= 1. Any n, k, strides and addresses; a fast path when all of them are multiples of 16
/// bytes. No atomics: a row of c depends on its row of a, on w and on the tile's size alone.
void grouped_gemm_mma(DType dtype, const GroupedGemm& gemm, const GroupedGemmTile& tile,
                      cudaStream_t stream);

}  // namespace moe::cuda
