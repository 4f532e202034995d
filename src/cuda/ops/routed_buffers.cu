#include "cuda/ops/routed_buffers.h"

#include <utility>

#include "cuda/check.h"

namespace moe::cuda {

std::uint64_t gate_up_bytes(const Problem& problem) {
  const Shape& shape = problem.shape;
  return static_cast<std::uint64_t>(shape.experts * 2 * shape.intermediate * shape.hidden) *
         size_of(problem.dtype);
}

DeviceBuffer pack_gate_up(const Problem& problem, const Weights& weights, cudaStream_t stream) {
  DeviceBuffer packed(gate_up_bytes(problem));
  const auto experts = static_cast<std::size_t>(problem.shape.experts);
  const std::uint64_t half = gate_up_bytes(problem) / experts / 2;
  for (const auto& [source, offset] :
       {std::pair{weights.gate.data, std::uint64_t{0}}, std::pair{weights.up.data, half}}) {
    MOE_CUDA_CHECK(cudaMemcpy2DAsync(packed.as<std::byte>() + offset, 2 * half, source, half, half,
                                     experts, cudaMemcpyDeviceToDevice, stream));
  }
  return packed;
}

}  // namespace moe::cuda
