// What routing leaves in the arena for the products of rows grouped by expert.
#pragma once

#include <cstdint>

#include "core/expert_set.h"
#include "cpu/ops/permute.h"
#include "cpu/ops/router.h"

namespace moe::cpu {

/// K counts the shared expert's parts, which every token takes. Views: the memory is the arena's.
struct RoutedRows {
  std::int32_t* topk_idx = nullptr;  // [T,K]
  float* topk_weights = nullptr;     // [T,K]
  float* input_weights =
      nullptr;                 // [T,K] where weights multiply the input, like the next; else null
  float* row_scale = nullptr;  // [T·K] the same by routed row
  Permutation permutation;

  /// Where choose_experts() puts what tokens from `first` on take.
  [[nodiscard]] RoutedSlots slots_from(std::int64_t first, std::int64_t top_k) const {
    const std::int64_t at = first * top_k;
    return {topk_idx + at, topk_weights + at,
            input_weights == nullptr ? nullptr : input_weights + at};
  }
  /// Groups the rows of `tokens` tokens by expert once all have chosen; shape with shared slots. Serial.
  void group_by_expert(const Shape& shape, std::int64_t tokens) const {
    build_permutation(topk_idx, tokens, shape.experts, shape.top_k, permutation);
    if (row_scale != nullptr) {
      permute_weights(input_weights, permutation.dst_row, tokens * shape.top_k, row_scale);
    }
  }
};

/// From an Arena, or an ArenaPlan that adds the bytes up.
template <class Memory>
RoutedRows take_routed_rows(Memory& memory, const Problem& problem, std::int64_t tokens) {
  const Shape shape = with_shared_slots(problem);
  const std::int64_t routed = tokens * shape.top_k;
  RoutedRows rows;
  rows.topk_idx = memory.template take<std::int32_t>(routed);
  rows.topk_weights = memory.template take<float>(routed);
  if (problem.router.weight_on_input) {
    rows.input_weights = memory.template take<float>(routed);
    rows.row_scale = memory.template take<float>(routed);
  }
  rows.permutation = {memory.template take<std::int64_t>(shape.experts + 1),
                      memory.template take<std::int64_t>(routed),
                      memory.template take<std::int64_t>(routed)};
  return rows;
}

}  // namespace moe::cpu
