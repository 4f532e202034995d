#include "cuda/ops/routed_steps.h"

#include "cuda/ops/activation.h"

namespace moe::cuda {

RoutedSteps::RoutedSteps(const Problem& problem, const Weights& weights, const StoredWidths& widths,
                         const float* down_bias)
    : problem_(problem),
      weights_(weights),
      widths_(widths),
      slots_(with_shared_slots(problem).top_k) {
  if (!problem.expert_bias) return;
  down_bias_ = down_bias != nullptr ? down_bias : weights.down_bias.as<const float>();
}

void RoutedSteps::permute(const void* x, std::int64_t tokens, const RoutedBuffers& b,
                          cudaStream_t stream) const {
  if (problem_.router.weight_on_input) {
    permute_scaled_rows(problem_.dtype, x, b.permutation.dst_row, b.topk_weights, tokens, slots_,
                        widths_.hidden, b.rows, stream);
  } else {
    permute_rows(x, b.permutation.dst_row, tokens, slots_,
                 widths_.hidden * static_cast<std::int64_t>(size_of(problem_.dtype)), b.rows,
                 stream, slots_of(problem_));
  }
}

void RoutedSteps::activate(const RoutedBuffers& b, std::int64_t first, std::int64_t rows,
                           cudaStream_t stream) const {
  const std::int64_t stride = gate_up_stride();
  std::byte* const at =
      b.gate_up + first * stride * static_cast<std::int64_t>(size_of(problem_.dtype));
  activate_rows(problem_.activation,
                activation_bias(problem_, weights_, b.permutation.expert_offsets),
                {.dtype = problem_.dtype,
                 .gate_up = at,
                 .first_row = first,
                 .rows = rows,
                 .width = widths_.intermediate,
                 .act = at,
                 .act_stride = stride},
                stream);
}

void RoutedSteps::combine(const RoutedBuffers& b, std::int64_t tokens, void* y,
                          cudaStream_t stream) const {
  CombineExtras extras;
  if (!plain_combine()) {
    extras = {.topk_idx = b.topk_idx,
              .row_bias = down_bias_,
              .biased = static_cast<int>(problem_.shape.experts)};
  }
  unpermute_rows(problem_.dtype, b.rows, b.permutation.dst_row,
                 problem_.router.weight_on_input ? nullptr : b.topk_weights, tokens, slots_,
                 widths_.hidden, y, stream, extras);
}

bool RoutedSteps::plain_activation() const {
  return problem_.activation == Activation{} && !problem_.expert_bias;
}
bool RoutedSteps::plain_combine() const {
  return slots_of(problem_) == Slots::kAll && !problem_.expert_bias &&
         !problem_.router.weight_on_input;
}

}  // namespace moe::cuda
