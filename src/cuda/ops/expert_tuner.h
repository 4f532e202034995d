// Times the ways of running a layer's experts and keeps the best: streams and pipeline, and which of
// the library's kernels.
//
// What is timed is all experts of a load together, under a routing drawn uniformly: which kernel is
// best for one GEMM alone says little when several run side by side.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <string>
#include <vector>

#include "cuda/ops/expert_choices.h"
#include "cuda/ops/expert_gemms.h"
#include "cuda/ops/layer_kernels.h"
#include "moe/layer.h"

namespace moe::cuda {

/// Gives `gemms` the kernels of `choices`. Returns "" or, as a sentence, which of them the library
/// refuses; its first proposals serve there.
[[nodiscard]] std::string apply_choices(const std::vector<ExpertChoice>& choices,
                                        ExpertGemms& gemms);

struct TunedExperts {
  ExpertGemms* gemms = nullptr;
  LayerKernels* kernels = nullptr;
  Problem problem;
  Weights weights;
  cudaStream_t stream = nullptr;
  const std::atomic<bool>* cancel = nullptr;  ///< where it is set, time is over; may be null
};
/// Bytes of device memory that tune_experts() allocates and frees: rows, gate_up and expert_offsets of
/// RoutedBuffers.
[[nodiscard]] std::uint64_t tuning_bytes(const Problem& problem);

/// Times every load of `choices` within about `seconds`; loads that time does not reach keep what
/// they have. Waits for `stream`. Returns whether every load got all of its candidates timed.
bool tune_experts(const TunedExperts& experts, double seconds, std::vector<ExpertChoice>& choices);

}  // namespace moe::cuda
