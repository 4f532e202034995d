#include "cpu/ops/permute.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "core/scalar.h"

namespace moe::cpu {

void build_permutation(const std::int32_t* topk_idx, std::int64_t tokens, std::int64_t experts,
                       std::int64_t top_k, const Permutation& permutation) {
  const std::int64_t routed = tokens * top_k;
  std::int64_t* offsets = permutation.expert_offsets;
  std::fill(offsets, offsets + experts + 1, std::int64_t{0});
  for (std::int64_t i = 0; i < routed; ++i) {
    if (topk_idx[i] >= 0) ++offsets[topk_idx[i] + 1];
  }
  for (std::int64_t expert = 0; expert < experts; ++expert) offsets[expert + 1] += offsets[expert];
  // offsets[e] serves as the cursor of expert e and so ends at the start of expert e+1: shift back.
  for (std::int64_t i = 0; i < routed; ++i) {
    if (topk_idx[i] < 0) {
      permutation.dst_row[i] = -1;
      continue;
    }
    const std::int64_t row = offsets[topk_idx[i]]++;
    permutation.dst_row[i] = row;
    permutation.src_row[row] = i / top_k;
  }
  for (std::int64_t expert = experts; expert > 0; --expert) offsets[expert] = offsets[expert - 1];
  offsets[0] = 0;
}

void permute_weights(const float* weights, const std::int64_t* dst_row, std::int64_t count,
                     float* permuted) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (dst_row[i] >= 0) permuted[dst_row[i]] = weights[i];
  }
}

void permute_rows(const void* x, const std::int64_t* src_row, std::int64_t first, std::int64_t end,
                  std::size_t row_bytes, void* x_perm) {
  const auto* from = static_cast<const std::byte*>(x);
  auto* to = static_cast<std::byte*>(x_perm);
  for (std::int64_t row = first; row < end; ++row) {
    std::memcpy(to + static_cast<std::size_t>(row) * row_bytes,
                from + static_cast<std::size_t>(src_row[row]) * row_bytes, row_bytes);
  }
}

template <class Element>
void unpermute_rows(const float* y_perm, const std::int64_t* dst_row, const float* topk_weights,
                    std::int64_t first, std::int64_t end, std::int64_t top_k, std::int64_t columns,
                    Element* y, std::int64_t y_stride) {
  // Columns go in blocks whose fp32 sums stay in L1 while the K rows pass by.
  constexpr std::int64_t kBlock = 512;
  std::array<float, kBlock> sum;
  for (std::int64_t token = first; token < end; ++token) {
    for (std::int64_t column = 0; column < columns; column += kBlock) {
      const std::int64_t count = std::min(kBlock, columns - column);
      std::fill_n(sum.data(), count, 0.0F);
      for (std::int64_t slot = 0; slot < top_k; ++slot) {
        if (dst_row[token * top_k + slot] < 0) continue;
        const float weight = topk_weights[token * top_k + slot];
        const float* row = y_perm + dst_row[token * top_k + slot] * columns + column;
        for (std::int64_t i = 0; i < count; ++i)
          sum[static_cast<std::size_t>(i)] += weight * row[i];
      }
      Element* out = y + token * y_stride + column;
      for (std::int64_t i = 0; i < count; ++i)
        out[i] = from_float<Element>(sum[static_cast<std::size_t>(i)]);
    }
  }
}

template void unpermute_rows<float>(const float*, const std::int64_t*, const float*, std::int64_t,
                                    std::int64_t, std::int64_t, std::int64_t, float*, std::int64_t);
template void unpermute_rows<BFloat16>(const float*, const std::int64_t*, const float*,
                                       std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                                       BFloat16*, std::int64_t);

}  // namespace moe::cpu
