// Batched matrix-vector product and the weighted sum of its rows (levels 1 and 2).
#pragma once

#include <array>
#include <cstdint>

#include "core/expert_set.h"
#include "core/scalar.h"
#include "cpu/isa/kernels.h"
#include "cpu/ops/row_blocks.h"

namespace moe::cpu {

/// out[r, i] = matrices[r, i, :] · inputs[r / rows_per_input, :] in fp32 for r < rows, i < outputs.
/// matrices[rows, outputs, depth], inputs[rows / rows_per_input, depth].
template <class Element>
void batched_product(const Kernels& kernels, const Element* matrices, const Element* inputs,
                     std::int64_t rows, std::int64_t outputs, std::int64_t depth,
                     std::int64_t rows_per_input, int threads, float* out) {
  for_each_row_block(
      rows, outputs, threads, [&](std::int64_t row, std::int64_t first, std::int64_t end) {
        const Element* matrix = matrices + row * outputs * depth;
        const Element* input = inputs + row / rows_per_input * depth;
        for (std::int64_t i = first; i < end; ++i) {
          out[row * outputs + i] = dot<Element>(kernels, matrix + i * depth, input, depth);
        }
      });
}

/// y[t, h] = sum over slots k of topk_weights[t, k] · (y_rows[t·K + k, h] + bias of the slot's expert),
/// slots in order, fp32; slots whose expert is below 0 are left out.
template <class Element>
void combine_rows(const ExpertSet& experts, const float* y_rows, const std::int32_t* topk_idx,
                  const float* topk_weights, std::int64_t tokens, std::int64_t top_k,
                  std::int64_t hidden, int threads, Element* y) {
  for_each_row_block(
      tokens, hidden, threads, [&](std::int64_t token, std::int64_t first, std::int64_t end) {
        std::array<float, kColumnBlock> sum{};
        for (std::int64_t row = token * top_k; row < (token + 1) * top_k; ++row) {
          if (topk_idx[row] < 0) continue;
          const float* bias = experts.at(topk_idx[row]).down_bias;
          for (std::int64_t h = first; h < end; ++h) {
            const float value = y_rows[row * hidden + h] + (bias != nullptr ? bias[h] : 0.0F);
            sum[static_cast<std::size_t>(h - first)] += topk_weights[row] * value;
          }
        }
        for (std::int64_t h = first; h < end; ++h) {
          y[token * hidden + h] = from_float<Element>(sum[static_cast<std::size_t>(h - first)]);
        }
      });
}

}  // namespace moe::cpu
