#include "cpu/ops/gather.h"

#include <cstring>

namespace moe::cpu {

void gather_weights(const TensorView& weights, const std::int32_t* topk_idx,
                    std::int64_t num_routed, RowSlice slice, std::int64_t row_stride, void* out,
                    int threads) {
  const std::size_t element = size_of(weights.dtype);
  const auto columns = static_cast<std::size_t>(weights.dim(2));
  const std::size_t expert_bytes = static_cast<std::size_t>(weights.dim(1)) * columns * element;
  const std::size_t slice_begin = static_cast<std::size_t>(slice.first) * columns * element;
  const std::size_t slice_bytes = static_cast<std::size_t>(slice.count) * columns * element;
  const std::size_t stride_bytes = static_cast<std::size_t>(row_stride) * element;
  const auto* source = weights.as<const std::byte>();
  auto* target = static_cast<std::byte*>(out);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (std::int64_t row = 0; row < num_routed; ++row) {
    std::memcpy(target + static_cast<std::size_t>(row) * stride_bytes,
                source + static_cast<std::size_t>(topk_idx[row]) * expert_bytes + slice_begin,
                slice_bytes);
  }
}

}  // namespace moe::cpu
