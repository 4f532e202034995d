#include "cuda/ops/persistent_weights.h"

#include "core/expert_set.h"
#include "cuda/check.h"
#include "cuda/ops/pack_blocked.h"
#include "cuda/ops/persistent_plan.h"

namespace moe::cuda {
namespace {

std::uint64_t bias_bytes(const BlockedShape& shape, std::int64_t experts) {
  return static_cast<std::uint64_t>(experts * shape.feature_blocks * kBlockFeatures) *
         sizeof(float);
}

/// Biases of the routed experts; the parts of a shared one have none.
DeviceBuffer pack_bias(const TensorView& gate, const TensorView& bias, const BlockedShape& shape,
                       std::int64_t experts, cudaStream_t stream) {
  DeviceBuffer packed(bias_bytes(shape, experts));
  MOE_CUDA_CHECK(cudaMemsetAsync(packed.data(), 0, packed.size(), stream));
  pack_bias_blocked(gate.as<const float>(), bias.as<const float>(), bias.dim(0), bias.dim(1),
                    shape.feature_blocks, packed.as<float>(), stream);
  return packed;
}

/// Of one of the two matrices: blocks, and the table of pages.
std::uint64_t matrix_bytes(const BlockedShape& shape, std::int64_t experts) {
  return shape.bytes(experts) + l2_page_words(shape.bytes(experts)) * sizeof(std::uint32_t);
}

}  // namespace

PersistentWeights::Matrices PersistentWeights::allocate(const BlockedShape& shape,
                                                        std::int64_t experts,
                                                        const DeviceFacts& facts,
                                                        cudaStream_t stream) {
  const std::uint64_t bytes = shape.bytes(experts);
  Matrices matrices{
      DeviceBuffer(bytes), DeviceBuffer(l2_page_words(bytes) * sizeof(std::uint32_t)), {}, false};
  matrices.packed = {.data = matrices.memory.data(), .experts = experts};
  if (are_placed(shape, experts, facts)) {
    matrices.packed.homes = find_l2_homes(facts, matrices.memory.data(), bytes,
                                          matrices.pages.as<std::uint32_t>(), stream);
    matrices.unplaced = !matrices.packed.homes.known();
  }
  return matrices;
}

std::uint64_t PersistentWeights::bytes(const Problem& problem) {
  const PaddedShape padded(problem);
  const std::int64_t experts = with_shared_slots(problem).experts;
  const BlockedShape first = padded.gate_up();
  const BlockedShape second = padded.down();
  return matrix_bytes(first, experts) + matrix_bytes(second, experts) +
         (problem.expert_bias ? bias_bytes(first, experts) + bias_bytes(second, experts) : 0);
}

std::string PersistentWeights::placed() const {
  const bool first = gate_up().homes.known();
  const bool second = down().homes.known();
  return first && second ? "gate|up and down" : first ? "gate|up" : second ? "down" : "";
}

PersistentWeights::PersistentWeights(const Problem& problem, const Weights& weights,
                                     const DeviceFacts& facts, cudaStream_t stream) {
  const Shape& shape = problem.shape;
  const PaddedShape padded(problem);
  const BlockedShape first = padded.gate_up();
  const BlockedShape second = padded.down();
  const ExpertSet experts(problem, weights);
  gate_up_ = allocate(first, experts.count(), facts, stream);
  down_ = allocate(second, experts.count(), facts, stream);
  if (problem.activation.gated()) {
    pack_gate_up_blocked(weights.gate.data, weights.up.data, shape.experts, shape.hidden,
                         shape.intermediate, gate_up(), stream);
  } else {
    pack_rows_blocked(weights.up.data, shape.experts, shape.intermediate, shape.hidden, gate_up(),
                      stream);
  }
  pack_rows_blocked(weights.down.data, shape.experts, shape.hidden, shape.intermediate, down(),
                    stream);
  for (std::int64_t part = shape.experts; part < experts.count(); ++part) {
    const ExpertMatrices from = experts.at(part);
    const auto element = static_cast<std::int64_t>(size_of(problem.dtype));
    pack_part_blocked({.gate = from.gate,
                       .rows = from.up,
                       .features = from.width,
                       .depth = shape.hidden,
                       .stride = shape.hidden},
                      part, first, gate_up(), stream);
    pack_part_blocked({.rows = from.down,
                       .features = shape.hidden,
                       .depth = from.width,
                       .stride = from.down_stride / element},
                      part, second, down(), stream);
  }
  if (problem.expert_bias) {
    gate_up_bias_ = pack_bias(weights.gate_bias, weights.up_bias, first, experts.count(), stream);
    down_bias_ = pack_bias({}, weights.down_bias, second, experts.count(), stream);
  }
}

}  // namespace moe::cuda
