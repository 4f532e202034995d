// A layer's weights as level 8's products read them: E routed experts and behind them the parts of the
// shared one (core/expert_set.h), in blocks (pack_blocked.h).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/backend.h"
#include "moe/layer.h"

namespace moe::cuda {

class PersistentWeights {
 public:
  PersistentWeights() = default;
  /// Queues packing on `stream`; `weights` must stay until it is done.
  PersistentWeights(const Problem& problem, const Weights& weights, cudaStream_t stream);

  /// Device memory that one holds.
  [[nodiscard]] static std::uint64_t bytes(const Problem& problem);

  [[nodiscard]] const void* gate_up() const { return gate_up_.data(); }
  [[nodiscard]] const void* down() const { return down_.data(); }
  // Null without biases.
  [[nodiscard]] const float* gate_up_bias() const { return gate_up_bias_.as<const float>(); }
  [[nodiscard]] const float* down_bias() const { return down_bias_.as<const float>(); }

 private:
  DeviceBuffer gate_up_;
  DeviceBuffer down_;
  DeviceBuffer gate_up_bias_;
  DeviceBuffer down_bias_;
};

}  // namespace moe::cuda
