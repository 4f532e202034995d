#include "cuda/ops/router.h"

#include "core/check.h"
#include "cuda/check.h"
#include "cuda/device/warp.cuh"

namespace moe::cuda {
namespace {

constexpr int kWarpsPerBlock = 8;

/// An unsigned number that orders as the logit does; 0 is below all of them.
__device__ __forceinline__ unsigned key_of(float logit) {
  // NaN ranks as -infinity; adding 0 turns -0 into +0, which is its equal.
  const float rankable = logit != logit ? -INFINITY : logit + 0.0F;
  const unsigned bits = __float_as_uint(rankable);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}
__device__ __forceinline__ float logit_of(unsigned key) {
  return __uint_as_float((key & 0x80000000U) != 0 ? key ^ 0x80000000U : ~key);
}

/// Keys of the experts [lane·kPerLane, ...) of one row: a lower lane has lower indices, which makes
/// "lowest index wins" the first lane of a ballot.
template <int kPerLane>
__device__ __forceinline__ void load_keys(const float* row, int lane, int experts,
                                          unsigned (&keys)[kPerLane]) {
  if constexpr (kPerLane % 4 == 0) {
    if (experts % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kPerLane; i += 4) {
        const int expert = lane * kPerLane + i;
        if (expert < experts) {
          const float4 four = *reinterpret_cast<const float4*>(row + expert);
          keys[i] = key_of(four.x);
          keys[i + 1] = key_of(four.y);
          keys[i + 2] = key_of(four.z);
          keys[i + 3] = key_of(four.w);
        } else {
          keys[i] = keys[i + 1] = keys[i + 2] = keys[i + 3] = 0;
        }
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = lane * kPerLane + i;
    keys[i] = expert < experts ? key_of(row[expert]) : 0;
  }
}

/// One warp a token: K times the largest key of the row, taken out after each.
template <int kPerLane>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpSize)
    softmax_top_k_kernel(const float* __restrict__ logits, std::int64_t tokens, int experts,
                         int top_k, std::int32_t* __restrict__ topk_idx,
                         float* __restrict__ topk_weights) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * kWarpsPerBlock +
                             static_cast<int>(threadIdx.x) / kWarpSize;
  if (token >= tokens) return;
  std::int32_t* const idx = topk_idx + token * top_k;
  float* const weights = topk_weights + token * top_k;

  unsigned keys[kPerLane];
  load_keys(logits + token * experts, lane, experts, keys);
  unsigned best = keys[0];
#pragma unroll
  for (int i = 1; i < kPerLane; ++i) best = max(best, keys[i]);

  float largest = 0;
  float sum = 0;
  for (int first = 0; first < top_k; first += kWarpSize) {
    const int end = min(top_k, first + kWarpSize);
    unsigned my_key = 0;  // of slot first + lane
    int my_expert = 0;
    for (int slot = first; slot < end; ++slot) {
      const unsigned top = __reduce_max_sync(kAllLanes, best);
      const int winner = __ffs(__ballot_sync(kAllLanes, best == top)) - 1;
      int position = 0;
      if (lane == winner) {
        bool taken = false;
        best = 0;
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) {
          if (!taken && keys[i] == top) {
            taken = true;
            position = i;
            keys[i] = 0;
          }
          best = max(best, keys[i]);
        }
      }
      const int expert = winner * kPerLane + __shfl_sync(kAllLanes, position, winner);
      if (lane == slot - first) {
        my_key = top;
        my_expert = expert;
      }
      if (slot == 0) largest = logit_of(top);
    }
    // Softmax over all E and renormalisation over the chosen K cancel the sum over all E: what is
    // left is the softmax of the K chosen logits. Equal logits, infinite ones included, weigh the
    // same; without that inf - inf would be NaN.
    const bool mine = lane < end - first;
    const float logit = logit_of(my_key);
    float weight = mine ? (logit == largest ? 1.0F : expf(logit - largest)) : 0.0F;
    sum += warp_sum(weight);
    if (top_k <= kWarpSize) weight /= sum;
    if (mine) {
      idx[first + lane] = my_expert;
      weights[first + lane] = weight;
    }
  }
  if (top_k > kWarpSize) {  // each lane rescales what it wrote
    for (int slot = lane; slot < top_k; slot += kWarpSize) weights[slot] /= sum;
  }
}

}  // namespace

void softmax_top_k(const float* logits, std::int64_t tokens, std::int64_t experts,
                   std::int64_t top_k, std::int32_t* topk_idx, float* topk_weights,
                   cudaStream_t stream) {
  MOE_INTERNAL_CHECK(experts <= kMaxExperts, "experts={} exceeds {}", experts, kMaxExperts);
  const auto blocks = static_cast<unsigned>((tokens + kWarpsPerBlock - 1) / kWarpsPerBlock);
  const auto launch = [&](auto kernel) {
    kernel<<<blocks, kWarpsPerBlock * kWarpSize, 0, stream>>>(
        logits, tokens, static_cast<int>(experts), static_cast<int>(top_k), topk_idx, topk_weights);
  };
  if (experts <= 32) {
    launch(softmax_top_k_kernel<1>);
  } else if (experts <= 64) {
    launch(softmax_top_k_kernel<2>);
  } else if (experts <= 128) {
    launch(softmax_top_k_kernel<4>);
  } else if (experts <= 256) {
    launch(softmax_top_k_kernel<8>);
  } else if (experts <= 512) {
    launch(softmax_top_k_kernel<16>);
  } else {
    launch(softmax_top_k_kernel<32>);
  }
  MOE_CUDA_CHECK_LAUNCH("softmax_top_k_kernel");
}

}  // namespace moe::cuda
