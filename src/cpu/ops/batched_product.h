// Batched matrix-vector product and the weighted sum of its rows (levels 1 and 2).
#pragma once

#include <cstdint>

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

/// y[t, h] = sum over slots k of topk_weights[t, k] · y_rows[t·K + k, h], slots in order, fp32.
template <class Element>
void combine_rows(const float* y_rows, const float* topk_weights, std::int64_t tokens,
                  std::int64_t top_k, std::int64_t hidden, int threads, Element* y) {
  for_each_row_block(
      tokens, hidden, threads, [&](std::int64_t token, std::int64_t first, std::int64_t end) {
        for (std::int64_t h = first; h < end; ++h) {
          float sum = 0;
          for (std::int64_t slot = 0; slot < top_k; ++slot) {
            sum += topk_weights[token * top_k + slot] * y_rows[(token * top_k + slot) * hidden + h];
          }
          y[token * hidden + h] = from_float<Element>(sum);
        }
      });
}

}  // namespace moe::cpu
