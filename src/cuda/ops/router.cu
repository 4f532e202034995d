#include "cuda/ops/router.h"

#include "core/check.h"
#include "cuda/check.h"
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
template <int kPerLane>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpSize)
    softmax_top_k_kernel(const float* __restrict__ logits, std::int64_t tokens, int experts,
                         int top_k, std::int32_t* __restrict__ topk_idx,
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
  softmax_top_k_of_row(row, lane, experts, top_k, candidates[warp],
                       StoreChoice{topk_idx + token * top_k, topk_weights + token * top_k});
}

}  // namespace

void softmax_top_k(const float* logits, std::int64_t tokens, std::int64_t experts,
                   std::int64_t top_k, std::int32_t* topk_idx, float* topk_weights,
                   cudaStream_t stream) {
  MOE_INTERNAL_CHECK(experts <= kMaxExperts, "experts={} exceeds {}", experts, kMaxExperts);
  const auto blocks = static_cast<unsigned>((tokens + kWarpsPerBlock - 1) / kWarpsPerBlock);
  with_registers_for(experts, [&]<int kPerLane>() {
    launch_overlapping("softmax_top_k_kernel", softmax_top_k_kernel<kPerLane>, dim3(blocks),
                       dim3(kWarpsPerBlock * kWarpSize), 0, stream, logits, tokens,
                       static_cast<int>(experts), static_cast<int>(top_k), topk_idx, topk_weights);
  });
}

}  // namespace moe::cuda
