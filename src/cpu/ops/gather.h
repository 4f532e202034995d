// Weight gathering: one copy of its expert's matrix for every routed row (levels 1 and 2).
#pragma once

#include <cstdint>

#include "core/expert_set.h"

namespace moe::cpu {

/// A run of rows inside every expert's matrix.
struct RowSlice {
  std::int64_t first = 0;
  std::int64_t count = 0;
};

enum class Matrix : std::uint8_t { kGate, kUp, kDown };

/// For every routed row r: out[r, 0..slice.count, columns] with `row_stride` elements between
/// routed rows = the slice of that matrix of expert topk_idx[r], zeros where a shared expert's part is
/// narrower; nothing for an expert below 0. Splits routed rows over `threads`.
void gather_weights(const ExpertSet& experts, Matrix matrix, const std::int32_t* topk_idx,
                    std::int64_t num_routed, RowSlice slice, std::int64_t row_stride, void* out,
                    int threads);

}  // namespace moe::cpu
