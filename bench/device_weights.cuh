// Weights of any problem for the CUDA benchmarks, made on the device.
#pragma once

#include <cmath>
#include <cstdint>
#include <list>
#include <vector>

#include "core/rng.h"
#include "core/weight_tensors.h"
#include "cuda/backend.h"
#include "cuda/check.h"
#include "device_data.cuh"
#include "moe/layer.h"

namespace moe::cuda {

/// Normal numbers that give sums of variance 1; biases of a tenth of that. Those of the router are 0: what
/// they are in a model balances its experts, what is drawn would skew them.
class MadeWeights {
 public:
  MadeWeights(const Problem& problem, cudaStream_t stream) {
    std::uint64_t seed = 1;
    for (const WeightTensor& tensor : weight_tensors(problem)) {
      TensorView view = tensor.expected;
      const std::int64_t depth = view.dim(view.rank - 1);
      if (view.dtype == DType::kF32) {
        std::vector<float> biases(static_cast<std::size_t>(view.elements()));
        const bool of_router =
            tensor.view == &Weights::router_bias || tensor.view == &Weights::selection_bias;
        for (std::size_t i = 0; i < biases.size() && !of_router; ++i) {
          biases[i] = 0.1F * static_cast<float>(random_normal(seed, 0, i));
        }
        buffers_.emplace_back(view.bytes());
        MOE_CUDA_CHECK(cudaMemcpyAsync(buffers_.back().data(), biases.data(), view.bytes(),
                                       cudaMemcpyHostToDevice, stream));
        MOE_CUDA_CHECK(cudaStreamSynchronize(stream));
      } else {
        buffers_.push_back(normal_values(view.elements(), seed,
                                         1.0F / std::sqrt(static_cast<float>(depth)), stream));
      }
      view.data = buffers_.back().data();
      weights_.*tensor.view = view;
      ++seed;
    }
  }
  /// The part of them that a problem of the same sizes has.
  [[nodiscard]] Weights of(const Problem& problem) const {
    Weights some;
    for (const WeightTensor& tensor : weight_tensors(problem)) {
      some.*tensor.view = weights_.*tensor.view;
    }
    return some;
  }

 private:
  std::list<DeviceBuffer> buffers_;
  Weights weights_;
};

}  // namespace moe::cuda
