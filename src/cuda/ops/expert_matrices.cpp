#include "cuda/ops/expert_matrices.h"

namespace moe::cuda {

ExpertMatrixSet::ExpertMatrixSet(const Problem& problem, const Weights& weights,
                                 cudaStream_t stream)
    : shared_gate_up_(pack_shared_gate_up(problem, weights, stream)),
      shared_down_(pack_shared_down(problem, weights, StoredWidths::of(problem), stream)) {
  const std::int64_t matrix = problem.shape.intermediate * problem.shape.hidden;
  const std::int64_t matrices = matrices_before_activation(problem);
  const auto of = [&](const TensorView& routed, const DeviceBuffer& shared, std::int64_t first,
                      std::int64_t stride) {
    MatrixByExpert found{.data = routed.data, .stride = matrix};
    if (problem.shared_intermediate > 0) {
      found.shared_data =
          shared.as<std::byte>() + first * static_cast<std::int64_t>(size_of(problem.dtype));
      found.shared_stride = stride;
      found.shared_first = problem.shape.experts;
    }
    return found;
  };
  if (problem.activation.gated()) gate = of(weights.gate, shared_gate_up_, 0, matrices * matrix);
  up = of(weights.up, shared_gate_up_, (matrices - 1) * matrix, matrices * matrix);
  down = of(weights.down, shared_down_, 0, matrix);
}

}  // namespace moe::cuda
