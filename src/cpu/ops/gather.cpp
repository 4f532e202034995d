#include "cpu/ops/gather.h"

#include <algorithm>
#include <cstring>

namespace moe::cpu {
namespace {

/// Rows of the slice, `stride` bytes apart, into rows of `columns` bytes of which `row_bytes` are
/// given; what a matrix of `rows` rows does not have is zero.
void copy_slice(const std::byte* matrix, std::int64_t rows, std::int64_t row_bytes,
                std::int64_t stride, RowSlice slice, std::int64_t columns, std::byte* out) {
  const std::int64_t given = std::clamp<std::int64_t>(rows - slice.first, 0, slice.count);
  const std::byte* from = matrix + slice.first * stride;
  if (stride == columns) {
    std::memcpy(out, from, static_cast<std::size_t>(given * columns));
  } else {
    for (std::int64_t row = 0; row < given; ++row) {
      std::byte* to = out + row * columns;
      std::memcpy(to, from + row * stride, static_cast<std::size_t>(row_bytes));
      std::memset(to + row_bytes, 0, static_cast<std::size_t>(columns - row_bytes));
    }
  }
  std::memset(out + given * columns, 0, static_cast<std::size_t>((slice.count - given) * columns));
}

}  // namespace

void gather_weights(const ExpertSet& experts, Matrix matrix, const std::int32_t* topk_idx,
                    std::int64_t num_routed, RowSlice slice, std::int64_t row_stride, void* out,
                    int threads) {
  const Problem& problem = experts.problem();
  const auto element = static_cast<std::int64_t>(size_of(problem.dtype));
  const std::int64_t hidden = problem.shape.hidden;
  auto* target = static_cast<std::byte*>(out);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (std::int64_t row = 0; row < num_routed; ++row) {
    if (topk_idx[row] < 0) continue;
    const ExpertMatrices from = experts.at(topk_idx[row]);
    std::byte* to = target + row * row_stride * element;
    if (matrix == Matrix::kDown) {
      copy_slice(from.down, hidden, from.width * element, from.down_stride, slice,
                 problem.shape.intermediate * element, to);
    } else {
      const std::int64_t bytes = hidden * element;
      copy_slice(matrix == Matrix::kGate ? from.gate : from.up, from.width, bytes, bytes, slice,
                 bytes, to);
    }
  }
}

}  // namespace moe::cpu
