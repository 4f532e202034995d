#include "cuda/ops/activation.h"

#include <algorithm>

#include "core/expert_set.h"
#include "cuda/check.h"
#include "cuda/device/activate_rows.cuh"
#include "cuda/device/overlap.cuh"
#include "cuda/launch.h"
#include "cuda/ops/swiglu.h"

namespace moe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 2;

template <class Element, int kWidth, bool kGated>
__global__ void __launch_bounds__(kThreads)
    activate_rows_kernel(const ActivationStep step, const Element* gate_up, std::int64_t rows,
                         std::int64_t width, Element* act, std::int64_t act_stride) {
  wait_for_previous_kernel();
  allow_next_kernel();
  activate_rows<Element, kWidth, kUnroll, kThreads, kGated>(step, gate_up, rows, width, act,
                                                            act_stride);
}

template <class Element, int kWidth, bool kGated>
__global__ void __launch_bounds__(kThreads)
    activate_biased_rows_kernel(const ActivationStep step, const ActivationBias bias,
                                const Element* gate_up, std::int64_t first_row, std::int64_t rows,
                                int thread_rows, std::int64_t width, Element* act,
                                std::int64_t act_stride) {
  wait_for_previous_kernel();
  allow_next_kernel();
  activate_biased_rows<Element, kWidth, kUnroll, kThreads, kGated>(
      step, bias, gate_up, first_row, rows, thread_rows, width, act, act_stride);
}

std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

template <bool kGated>
void launch(const ActivationStep& step, const ActivationBias& bias, const ActivationRows& of,
            cudaStream_t stream) {
  with_device_type(of.dtype, [&]<class Element>() {
    const auto* const gate_up = static_cast<const Element*>(of.gate_up);
    auto* const act = static_cast<Element*>(of.act);
    const auto go = [&]<int kWidth>() {
      const std::int64_t row_vectors = of.width / kWidth;
      const dim3 threads(kThreads);
      if (bias.up == nullptr) {
        const std::int64_t blocks = divide_up(of.rows * row_vectors, kThreads * kUnroll);
        launch_overlapping("activate_rows_kernel", activate_rows_kernel<Element, kWidth, kGated>,
                           dim3(static_cast<unsigned>(blocks)), threads, 0, stream, step, gate_up,
                           of.rows, of.width, act, of.act_stride);
        return;
      }
      constexpr std::int64_t kThreadsWanted = 1 << 18;  // about what a Hopper GPU keeps resident
      const std::int64_t thread_rows =
          std::clamp<std::int64_t>(of.rows * row_vectors / kThreadsWanted, 1, 16);
      const std::int64_t blocks =
          divide_up(divide_up(of.rows, thread_rows) * row_vectors, kThreads);
      launch_overlapping(
          "activate_biased_rows_kernel", activate_biased_rows_kernel<Element, kWidth, kGated>,
          dim3(static_cast<unsigned>(blocks)), threads, 0, stream, step, bias, gate_up,
          of.first_row, of.rows, static_cast<int>(thread_rows), of.width, act, of.act_stride);
    };
    constexpr auto kBytes = static_cast<std::int64_t>(sizeof(Element));
    if (in_widest_vectors(of.width * kBytes, {of.gate_up, of.act}) &&
        of.act_stride * kBytes % 16 == 0) {
      go.template operator()<kWidest<Element>>();
    } else {
      go.template operator()<1>();
    }
  });
}

/// One thread an element.
template <class Element, bool kGated>
__global__ void __launch_bounds__(kThreads)
    activate_slots_kernel(const ActivationStep step, const SlotActivation of,
                          const float* __restrict__ gate_bias, const float* __restrict__ up_bias,
                          int biased) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= of.rows * of.columns) return;
  const std::int64_t row = at / of.columns;
  const std::int64_t expert = of.experts == nullptr ? of.expert : of.experts[row];
  if (expert < 0) return;
  float scale = 1;
  if (of.weights != nullptr) scale = of.weights[of.slots == nullptr ? row : of.slots[row]];
  const std::int64_t bias_at = expert * of.columns + at % of.columns;
  const bool has_bias = up_bias != nullptr && expert < biased;
  const float up = scale * to_float(static_cast<const Element*>(of.up)[at]) +
                   (has_bias ? up_bias[bias_at] : 0.0F);
  float gate = 0;
  if constexpr (kGated) {
    gate = scale * to_float(static_cast<const Element*>(of.gate)[at]) +
           (has_bias ? gate_bias[bias_at] : 0.0F);
  }
  static_cast<Element*>(of.act)[at] =
      from_float<Element>(activate<Element, kGated>(step, gate, up));
}

}  // namespace

void activate_rows(const Activation& activation, const ActivationBias& bias,
                   const ActivationRows& rows, cudaStream_t stream) {
  if (activation == Activation{} && bias.up == nullptr) {
    swiglu_rows(rows.dtype, rows.gate_up, rows.rows, rows.width, rows.act, rows.act_stride, stream);
    return;
  }
  if (activation.gated()) {
    launch<true>(ActivationStep::of(activation), bias, rows, stream);
  } else {
    launch<false>({}, bias, rows, stream);
  }
}

void activate_slots(const Problem& problem, const Weights& weights, const SlotActivation& rows,
                    cudaStream_t stream) {
  const bool gated = problem.activation.gated();
  const ActivationStep step = gated ? ActivationStep::of(problem.activation) : ActivationStep{};
  const ActivationBias bias = activation_bias(problem, weights, nullptr);
  const auto blocks = static_cast<unsigned>((rows.rows * rows.columns + kThreads - 1) / kThreads);
  with_device_type(rows.dtype, [&]<class Element>() {
    const auto kernel =
        gated ? activate_slots_kernel<Element, true> : activate_slots_kernel<Element, false>;
    kernel<<<blocks, kThreads, 0, stream>>>(step, rows, bias.gate, bias.up, bias.biased);
  });
  MOE_CUDA_CHECK_LAUNCH("activate_slots_kernel");
}

ActivationBias activation_bias(const Problem& problem, const Weights& weights,
                               const std::int32_t* expert_offsets) {
  if (!problem.expert_bias) return {};
  return {.gate = problem.activation.gated() ? weights.gate_bias.as<const float>() : nullptr,
          .up = weights.up_bias.as<const float>(),
          .expert_offsets = expert_offsets,
          .experts = static_cast<int>(with_shared_slots(problem).experts),
          .biased = static_cast<int>(problem.shape.experts),
          .columns = problem.shape.intermediate};
}

}  // namespace moe::cuda
