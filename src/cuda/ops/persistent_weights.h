// A layer's weights as level 8's products read them: E routed experts and behind them the parts of the
// shared one (core/expert_set.h), in blocks (pack_blocked.h), where it is known each behind the partition of L2 that is
// near those who read it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "cuda/backend.h"
#include "cuda/ops/pack_blocked.h"
#include "moe/layer.h"

namespace moe::cuda {

class PersistentWeights {
 public:
  PersistentWeights() = default;
  /// Queues packing on `stream`; `weights` must stay until it is done.
  PersistentWeights(const Problem& problem, const Weights& weights, const DeviceFacts& facts,
                    cudaStream_t stream);

  /// Device memory that one holds.
  [[nodiscard]] static std::uint64_t bytes(const Problem& problem);

  [[nodiscard]] const PackedWeights& gate_up() const { return gate_up_.packed; }
  [[nodiscard]] const PackedWeights& down() const { return down_.packed; }
  /// Which of them lie near those who read them, "gate|up and down"; "" where none does: L2 holds them all, or what is
  /// near is not known.
  [[nodiscard]] std::string placed() const;
  /// Whether some should and do not.
  [[nodiscard]] bool unplaced() const { return gate_up_.unplaced || down_.unplaced; }
  // Null without biases.
  [[nodiscard]] const float* gate_up_bias() const { return gate_up_bias_.as<const float>(); }
  [[nodiscard]] const float* down_bias() const { return down_bias_.as<const float>(); }

 private:
  struct Matrices {
    DeviceBuffer memory;
    DeviceBuffer pages;
    PackedWeights packed;
    bool unplaced = false;
  };
  static Matrices allocate(const BlockedShape& shape, std::int64_t experts,
                           const DeviceFacts& facts, cudaStream_t stream);

  Matrices gate_up_;
  Matrices down_;
  DeviceBuffer gate_up_bias_;
  DeviceBuffer down_bias_;
};

}  // namespace moe::cuda
