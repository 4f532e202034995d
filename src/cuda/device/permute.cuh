// A token's row to its K places among the rows grouped by expert, and the way back.
#pragma once

#include <cstdint>

#include "cuda/device/block_extras.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/warp.cuh"

namespace moe::cuda {

/// x_perm[row_of(slot),:] = x[:] for all K slots (kSome: where row_of(slot) >= 0), by `segments` warps of which this one is number
/// `segment`: kUnroll units of the row per lane in flight, then K stores of each.
template <int kUnroll, Slots kSlots = Slots::kAll, class Unit, class RowOf>
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
      const std::int64_t row = row_of(slot);
      if (kSlots == Slots::kSome && row < 0) continue;
      Unit* const out = x_perm + row * units_per_row;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        // Plain store: the GEMM reads these rows next, so they should stay in L2.
        if (column + u * kWarpSize < units_per_row) out[column + u * kWarpSize] = values[u];
      }
    }
  }
}

/// The same with every value multiplied by its slot's weight in fp32, rounded to the element.
template <class Element, int kWidth, int kUnroll, class RowOf>
__device__ __forceinline__ void scatter_scaled_row(const Element* x, std::int64_t hidden,
                                                   int segment, int segments, int top_k,
                                                   const float* weights, RowOf&& row_of,
                                                   Element* x_perm) {
  using Vector = Vec<Element, kWidth>;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const std::int64_t vectors = hidden / kWidth;
  const std::int64_t stride = static_cast<std::int64_t>(segments) * kUnroll * kWarpSize;
  for (std::int64_t first = static_cast<std::int64_t>(segment) * kUnroll * kWarpSize;
       first < vectors; first += stride) {
    Vector values[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t at = first + lane + u * kWarpSize;
      if (at < vectors) values[u] = reinterpret_cast<const Vector*>(x)[at];
    }
    for (int slot = 0; slot < top_k; ++slot) {
      const std::int64_t row = row_of(slot);
      if (row < 0) continue;
      const float weight = weights[slot];
      Vector* const out = reinterpret_cast<Vector*>(x_perm + row * hidden);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const std::int64_t at = first + lane + u * kWarpSize;
        if (at >= vectors) continue;
        Vector scaled;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) scaled.set(i, weight * values[u].get(i));
        out[at] = scaled;
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

/// Of loads that nothing repeats: what they bring leaves L2 first. PTX ISA, createpolicy.
__device__ __forceinline__ std::uint64_t policy_of_last_use() {
  std::uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

/// The vector at `from`, under policy_of_last_use(), so that rows that L2 still holds are not evicted for
/// those that it has lost. PTX ISA, ld.global.nc with .L2::cache_hint.
template <class Vector>
__device__ __forceinline__ Vector load_last(const Vector* from,
                                            [[maybe_unused]] std::uint64_t policy) {
  if constexpr (sizeof(Vector) == 16) {
    Vector vector;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.b32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(vector.words[0]), "=r"(vector.words[1]), "=r"(vector.words[2]),
                   "=r"(vector.words[3])
                 : "l"(from), "l"(policy));
    return vector;
  } else {
    return *from;
  }
}

/// Of combine_row(): its rows need not be waited for.
struct NothingBefore {
  __device__ __forceinline__ void operator()() const {}
};

/// sum[i] += factor · values[i], 16 bytes a load where there are that many.
template <int kWidth>
__device__ __forceinline__ void add_scaled(float factor, const float* values,
                                           float (&sum)[kWidth]) {
  if constexpr (kWidth % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kWidth; i += 4) {
      const float4 four = __ldg(reinterpret_cast<const float4*>(values + i));
      sum[i] = fmaf(factor, four.x, sum[i]);
      sum[i + 1] = fmaf(factor, four.y, sum[i + 1]);
      sum[i + 2] = fmaf(factor, four.z, sum[i + 2]);
      sum[i + 3] = fmaf(factor, four.w, sum[i + 3]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum[i] = fmaf(factor, __ldg(values + i), sum[i]);
  }
}

/// y[:] = sum over slots of weights[slot] · y_perm[rows[slot],:] in fp32 and in slot order, by
/// `segments` warps of which this one is number `segment`. rows and weights are of this token; rows
/// null: first_row + slot. With CombineExtras, weights may be null: 1. kSlots rows x kCombineLoads / kSlots vectors are loaded before the first
/// is added; the sum does not depend on kSlots. Row addresses are looked up once per token, so that
/// nothing waits for an index between one segment and the next. `before_rows` is called once, after the first
/// of them and before any row is read.
template <class Element, int kWidth, int kSlots, class Extras = NoCombineExtras,
          class BeforeRows = NothingBefore>
__device__ __forceinline__ void combine_row(const Element* y_perm, const std::int32_t* row_numbers,
                                            std::int64_t first_row, const float* weights, int top_k,
                                            std::int64_t hidden, int segment, int segments,
                                            Element* y, const Extras& extras = {},
                                            const BeforeRows& before_rows = {}) {
  using Vector = Vec<Element, kWidth>;
  constexpr int kUnroll = kCombineLoads / kSlots;
  const int vectors = static_cast<int>(hidden / kWidth);  // of a row
  const auto lane = static_cast<int>(threadIdx.x) % kWarpSize;

  const Vector* rows[kSlots];
  float weight[kSlots];
  [[maybe_unused]] const float* bias[kSlots];
  const auto is_there = [](const Vector* row) { return !Extras::kAny || row != nullptr; };
  const auto look_up = [&](int first) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (first + s >= top_k) continue;
      if constexpr (Extras::kAny) {
        const int expert = extras.topk_idx[first + s];
        rows[s] = nullptr;
        if (expert < 0) continue;
        weight[s] = weights == nullptr ? 1.0F : weights[first + s];
        bias[s] = extras.row_bias != nullptr && expert < extras.biased
                      ? extras.row_bias + static_cast<std::int64_t>(expert) * hidden
                      : nullptr;
      } else {
        weight[s] = weights[first + s];
      }
      const std::int64_t row =
          row_numbers == nullptr ? first_row + first + s : row_numbers[first + s];
      rows[s] = reinterpret_cast<const Vector*>(y_perm + row * hidden);
    }
  };
  look_up(0);
  before_rows();
  const std::uint64_t policy = policy_of_last_use();
  Vector* const out = reinterpret_cast<Vector*>(y);
  for (int base = segment * kUnroll * kWarpSize; base < vectors;
       base += segments * kUnroll * kWarpSize) {
    float sum[kUnroll][kWidth] = {};
    for (int first = 0; first < top_k; first += kSlots) {
      if (top_k > kSlots) look_up(first);
      Vector values[kSlots][kUnroll];
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        if (first + s >= top_k || !is_there(rows[s])) continue;
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int at = base + u * kWarpSize + lane;
          if (at < vectors) values[s][u] = load_last(rows[s] + at, policy);
        }
      }
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        if (first + s >= top_k || !is_there(rows[s])) continue;
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
          for (int i = 0; i < kWidth; ++i) {
            sum[u][i] = fmaf(weight[s], values[s][u].get(i), sum[u][i]);
          }
        }
        if constexpr (Extras::kAny) {
          if (bias[s] == nullptr) continue;
#pragma unroll
          for (int u = 0; u < kUnroll; ++u) {
            const int at = base + u * kWarpSize + lane;
            if (at >= vectors) continue;
            add_scaled<kWidth>(weight[s], bias[s] + static_cast<std::int64_t>(at) * kWidth, sum[u]);
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
