#include "cuda/ops/router.h"

#include "core/check.h"
#include "cuda/check.h"
#include "cuda/device/choose_row.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/overlap.cuh"
#include "cuda/device/top_k.cuh"
#include "cuda/device/warp.cuh"
#include "cuda/launch.h"

namespace moe::cuda {
namespace {

constexpr int kWarpsPerBlock = 8;

/// Writes a token's choice where the level keeps it.
struct StoreChoice {
  std::int32_t* idx;  // [K]
  float* weights;     // [K]
  __device__ void choose(int slot, int expert, float weight) const {
    idx[slot] = expert;
    weights[slot] = weight;
  }
  __device__ void divide(int slot, float sum) const { weights[slot] /= sum; }
};

/// One warp a token.
template <int kPerLane, bool kPlain>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpSize)
    choose_kernel(const RouterRule rule, const SharedSlots shared_slots,
                  const float* __restrict__ logits, std::int64_t tokens, int experts, int top_k,
                  std::int32_t* __restrict__ topk_idx, float* __restrict__ topk_weights) {
  __shared__ Candidates candidates[kWarpsPerBlock];
  wait_for_previous_kernel();
  allow_next_kernel();
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  if (token >= tokens) return;
  float row[kPerLane];
  load_logits(logits + token * experts, lane, experts, row);
  const std::int64_t slot = token * (top_k + shared_slots.count);
  const StoreChoice sink{topk_idx + slot, topk_weights + slot};
  if constexpr (kPlain) {
    softmax_top_k_of_row(row, lane, experts, top_k, candidates[warp], sink);
  } else {
    choose_of_row(rule, logits + token * experts, row, lane, experts, top_k, candidates[warp],
                  sink);
  }
  for (int part = lane; part < shared_slots.count; part += kWarpSize) {
    sink.choose(top_k + part, experts + part, shared_slots.weight_of(token));
  }
}

constexpr int kThreads = 256;

/// One thread a slot.
__global__ void __launch_bounds__(kThreads)
    take_routes_kernel(const Routes routes, const SharedSlots shared_slots, std::int64_t tokens,
                       int experts, int top_k, std::int32_t* __restrict__ topk_idx,
                       float* __restrict__ topk_weights) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int all_slots = top_k + shared_slots.count;
  const std::int64_t token = at / all_slots;
  if (token >= tokens) return;
  const int slot = static_cast<int>(at - token * all_slots);
  if (slot >= top_k) {
    topk_idx[at] = experts + slot - top_k;
    topk_weights[at] = shared_slots.weight_of(token);
    return;
  }
  const std::int32_t expert = routes.experts[token * top_k + slot];
  const bool used = expert >= 0 && expert < experts;
  topk_idx[at] = used ? expert : -1;
  topk_weights[at] = used ? routes.weights[token * top_k + slot] : 0.0F;
}

/// sigmoid(x·w) of every token, one warp a token.
template <class Element, int kWidth>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpSize)
    switch_kernel(const Element* __restrict__ x, const Element* __restrict__ w, std::int64_t tokens,
                  std::int64_t hidden, float* __restrict__ weights) {
  using Vector = Vec<Element, kWidth>;
  wait_for_previous_kernel();
  allow_next_kernel();
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const std::int64_t token =
      static_cast<std::int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpSize;
  if (token >= tokens) return;
  const Element* const row = x + token * hidden;
  float sum = 0;
#pragma unroll 4
  for (std::int64_t at = lane * kWidth; at < hidden; at += kWarpSize * kWidth) {
    const Vector input = *reinterpret_cast<const Vector*>(row + at);
    const Vector factor = *reinterpret_cast<const Vector*>(w + at);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum = fmaf(input.get(i), factor.get(i), sum);
  }
  sum = warp_sum(sum);
  if (lane == 0) weights[token] = 1.0F / (1.0F + expf(-sum));
}

}  // namespace

void softmax_top_k(const float* logits, std::int64_t tokens, std::int64_t experts,
                   std::int64_t top_k, std::int32_t* topk_idx, float* topk_weights,
                   cudaStream_t stream) {
  choose_experts({}, logits, tokens, experts, top_k, topk_idx, topk_weights, stream);
}

void choose_experts(const RouterRule& rule, const float* logits, std::int64_t tokens,
                    std::int64_t experts, std::int64_t top_k, std::int32_t* topk_idx,
                    float* topk_weights, cudaStream_t stream, const SharedSlots& shared_slots) {
  MOE_INTERNAL_CHECK(rule.plain() || top_k <= kMostRuleChoices, "top_k={} exceeds {}", top_k,
                     kMostRuleChoices);
  MOE_INTERNAL_CHECK(experts <= kMaxExperts, "experts={} exceeds {}", experts, kMaxExperts);
  const auto blocks = static_cast<unsigned>((tokens + kWarpsPerBlock - 1) / kWarpsPerBlock);
  with_registers_for(experts, [&]<int kPerLane>() {
    launch_overlapping(
        "choose_kernel",
        rule.plain() ? choose_kernel<kPerLane, true> : choose_kernel<kPerLane, false>, dim3(blocks),
        dim3(kWarpsPerBlock * kWarpSize), 0, stream, rule, shared_slots, logits, tokens,
        static_cast<int>(experts), static_cast<int>(top_k), topk_idx, topk_weights);
  });
}

void take_routes(const Routes& routes, std::int64_t tokens, std::int64_t experts,
                 std::int64_t top_k, std::int32_t* topk_idx, float* topk_weights,
                 cudaStream_t stream, const SharedSlots& shared_slots) {
  const std::int64_t slots = tokens * (top_k + shared_slots.count);
  launch_overlapping("take_routes_kernel", take_routes_kernel,
                     dim3(static_cast<unsigned>((slots + kThreads - 1) / kThreads)), dim3(kThreads),
                     0, stream, routes, shared_slots, tokens, static_cast<int>(experts),
                     static_cast<int>(top_k), topk_idx, topk_weights);
}

void shared_switch_weights(DType dtype, const void* x, const void* shared_switch,
                           std::int64_t tokens, std::int64_t hidden, float* weights,
                           cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((tokens + kWarpsPerBlock - 1) / kWarpsPerBlock);
  with_device_type(dtype, [&]<class Element>() {
    const auto launch = [&]<int kWidth>() {
      launch_overlapping("switch_kernel", switch_kernel<Element, kWidth>, dim3(blocks),
                         dim3(kWarpsPerBlock * kWarpSize), 0, stream,
                         static_cast<const Element*>(x), static_cast<const Element*>(shared_switch),
                         tokens, hidden, weights);
    };
    if (in_widest_vectors(hidden * static_cast<std::int64_t>(sizeof(Element)),
                          {x, shared_switch})) {
      launch.template operator()<kWidest<Element>>();
    } else {
      launch.template operator()<1>();
    }
  });
}

}  // namespace moe::cuda
