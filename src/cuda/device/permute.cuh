// A token's row to its K places among the rows grouped by expert, and the way back.
#pragma once

#include <cstdint>

#include "cuda/device/element.cuh"
#include "cuda/device/warp.cuh"

namespace moe::cuda {

/// x_perm[row_of(slot),:] = x[:] for all K slots, by `segments` warps of which this one is number
/// `segment`: kUnroll units of the row per lane in flight, then K stores of each.
template <int kUnroll, class Unit, class RowOf>
__device__ __forceinline__ void scatter_row(const Unit* x, std::int64_t units_per_row, int segment,
                                            int segments, int top_k, RowOf&& row_of, Unit* x_perm) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const std::int64_t stride = static_cast<std::int64_t>(segments) * kUnroll * kWarpSize;
  for (std::int64_t first = static_cast<std::int64_t>(segment) * kUnroll * kWarpSize;
       first < units_per_row; first += stride) {
    const std::int64_t column = first + lane;
    Unit values[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (column + u * kWarpSize < units_per_row) values[u] = x[column + u * kWarpSize];
    }
    for (int slot = 0; slot < top_k; ++slot) {
      Unit* const out = x_perm + static_cast<std::int64_t>(row_of(slot)) * units_per_row;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        // Plain store: the GEMM reads these rows next, so they should stay in L2.
        if (column + u * kWarpSize < units_per_row) out[column + u * kWarpSize] = values[u];
      }
    }
  }
}

/// 16-byte loads that one lane keeps in flight. 16 of them spill registers beside the fp32 sums.
inline constexpr int kCombineLoads = 8;
/// Rows whose loads are in flight together; the other loads go to further columns.
__host__ __device__ constexpr int combine_slots(int top_k, bool widest) {
  return !widest ? 4 : top_k <= 2 ? 2 : top_k <= 4 ? 4 : 8;
}

/// y[:] = sum over slots of weights[slot] · y_perm[rows[slot],:] in fp32 and in slot order, by
/// `segments` warps of which this one is number `segment`. rows and weights are of this token; rows
/// null: first_row + slot. kSlots rows x kCombineLoads / kSlots vectors are loaded before the first
/// is added; the sum does not depend on kSlots. Row addresses are looked up once per token, so that
/// nothing waits for an index between one segment and the next.
template <class Element, int kWidth, int kSlots>
__device__ __forceinline__ void combine_row(const Element* y_perm, const std::int32_t* row_numbers,
                                            std::int64_t first_row, const float* weights, int top_k,
                                            std::int64_t hidden, int segment, int segments,
                                            Element* y) {
  using Vector = Vec<Element, kWidth>;
  constexpr int kUnroll = kCombineLoads / kSlots;
  const int vectors = static_cast<int>(hidden / kWidth);  // of a row
  const auto lane = static_cast<int>(threadIdx.x) % kWarpSize;

  const Vector* rows[kSlots];
  float weight[kSlots];
  const auto look_up = [&](int first) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (first + s >= top_k) continue;
      weight[s] = weights[first + s];
      const std::int64_t row =
          row_numbers == nullptr ? first_row + first + s : row_numbers[first + s];
      rows[s] = reinterpret_cast<const Vector*>(y_perm + row * hidden);
    }
  };
  look_up(0);
  Vector* const out = reinterpret_cast<Vector*>(y);
  for (int base = segment * kUnroll * kWarpSize; base < vectors;
       base += segments * kUnroll * kWarpSize) {
    float sum[kUnroll][kWidth] = {};
    for (int first = 0; first < top_k; first += kSlots) {
      if (top_k > kSlots) look_up(first);
      Vector values[kSlots][kUnroll];
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        if (first + s >= top_k) continue;
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int at = base + u * kWarpSize + lane;
          if (at < vectors) values[s][u] = rows[s][at];
        }
      }
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        if (first + s >= top_k) continue;
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
          for (int i = 0; i < kWidth; ++i) {
            sum[u][i] = fmaf(weight[s], values[s][u].get(i), sum[u][i]);
          }
        }
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int at = base + u * kWarpSize + lane;
      if (at >= vectors) continue;
      Vector result;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) result.set(i, sum[u][i]);
      out[at] = result;
    }
  }
}

}  // namespace moe::cuda
