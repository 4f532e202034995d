#include "cuda/ops/router.h"

#include "core/check.h"
#include "cuda/check.h"
#include "cuda/device/choose_row.cuh"
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
    choose_kernel(const RouterRule rule, const float* __restrict__ logits, std::int64_t tokens,
                  int experts, int top_k, std::int32_t* __restrict__ topk_idx,
                  float* __restrict__ topk_weights) {
  __shared__ Candidates candidates[kWarpsPerBlock];
  wait_for_previous_kernel();
  allow_next_kernel();
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  if (token >= tokens) return;
  float row[kPerLane];
  load_logits(logits + token * experts, lane, experts, row);
  const StoreChoice sink{topk_idx + token * top_k, topk_weights + token * top_k};
  if constexpr (kPlain) {
    softmax_top_k_of_row(row, lane, experts, top_k, candidates[warp], sink);
  } else {
    choose_of_row(rule, logits + token * experts, row, lane, experts, top_k, candidates[warp],
                  sink);
  }
}

}  // namespace

void softmax_top_k(const float* logits, std::int64_t tokens, std::int64_t experts,
                   std::int64_t top_k, std::int32_t* topk_idx, float* topk_weights,
                   cudaStream_t stream) {
  choose_experts({}, logits, tokens, experts, top_k, topk_idx, topk_weights, stream);
}

void choose_experts(const RouterRule& rule, const float* logits, std::int64_t tokens,
                    std::int64_t experts, std::int64_t top_k, std::int32_t* topk_idx,
                    float* topk_weights, cudaStream_t stream) {
  MOE_INTERNAL_CHECK(rule.plain() || top_k <= kMostRuleChoices, "top_k={} exceeds {}", top_k,
                     kMostRuleChoices);
  MOE_INTERNAL_CHECK(experts <= kMaxExperts, "experts={} exceeds {}", experts, kMaxExperts);
  const auto blocks = static_cast<unsigned>((tokens + kWarpsPerBlock - 1) / kWarpsPerBlock);
  with_registers_for(experts, [&]<int kPerLane>() {
    launch_overlapping(
        "choose_kernel",
        rule.plain() ? choose_kernel<kPerLane, true> : choose_kernel<kPerLane, false>, dim3(blocks),
        dim3(kWarpsPerBlock * kWarpSize), 0, stream, rule, logits, tokens,
        static_cast<int>(experts), static_cast<int>(top_k), topk_idx, topk_weights);
  });
}

}  // namespace moe::cuda
