#include "cuda/twin.h"

#include <cmath>

#include "cuda/check.h"
#include "cuda/ops/fill.h"
#include "cuda/ops/gemm_cublaslt.h"
#include "cuda/recorded_graph.h"

namespace moe::cuda {
namespace {

class DenseTwin final : public Replay {
 public:
  DenseTwin(CudaDevice& device, const Problem& problem)
      : rows_(problem.shape.routed_rows()),
        x_(bytes(problem, rows_ * problem.shape.hidden)),
        inner_(bytes(problem, rows_ * 2 * problem.shape.intermediate)),
        y_(bytes(problem, rows_ * problem.shape.hidden)),
        gate_up_weights_(bytes(problem, 2 * problem.shape.intermediate * problem.shape.hidden)),
        down_weights_(bytes(problem, problem.shape.intermediate * problem.shape.hidden)),
        gate_up_(library_, {.n = 2 * problem.shape.intermediate,
                            .k = problem.shape.hidden,
                            .in = problem.dtype,
                            .out = problem.dtype}),
        down_(library_, {.n = problem.shape.hidden,
                         .k = problem.shape.intermediate,
                         .in = problem.dtype,
                         .out = problem.dtype}) {
    const Shape& shape = problem.shape;
    const cudaStream_t stream = device.stream();
    const auto scale = [](std::int64_t size) { return 1.0F / std::sqrt(static_cast<float>(size)); };
    fill_normal(problem.dtype, x_.data(), rows_ * shape.hidden, 1, 1, stream);
    fill_normal(problem.dtype, gate_up_weights_.data(), 2 * shape.intermediate * shape.hidden,
                scale(shape.hidden), 2, stream);
    fill_normal(problem.dtype, down_weights_.data(), shape.intermediate * shape.hidden,
                scale(shape.intermediate), 3, stream);
    queue(stream);  // loads the library's kernels, which a recording must not do
    device.synchronise();
    graph_ = std::make_unique<RecordedGraph>(stream, [&] { queue(stream); });
  }

  void launch() override { graph_->launch(); }

 private:
  static std::size_t bytes(const Problem& problem, std::int64_t count) {
    return static_cast<std::size_t>(count) * size_of(problem.dtype);
  }
  void queue(cudaStream_t stream) {
    gate_up_.run(x_.data(), gate_up_weights_.data(), inner_.data(), rows_, stream);
    down_.run(inner_.data(), down_weights_.data(), y_.data(), rows_, stream);
  }

  std::int64_t rows_;
  CublasLt library_;
  DeviceBuffer x_;      // [T·K,H]
  DeviceBuffer inner_;  // [T·K,2·I]; the second GEMM takes its first half as [T·K,I]
  DeviceBuffer y_;      // [T·K,H]
  DeviceBuffer gate_up_weights_;
  DeviceBuffer down_weights_;
  Matmul gate_up_;
  Matmul down_;
  std::unique_ptr<RecordedGraph> graph_;
};

}  // namespace

std::uint64_t dense_twin_bytes(const Problem& problem) {
  const Shape& shape = problem.shape;
  return CublasLt::kWorkspaceBytes +
         static_cast<std::uint64_t>(2 * shape.routed_rows() * (shape.hidden + shape.intermediate) +
                                    3 * shape.intermediate * shape.hidden) *
             size_of(problem.dtype);
}

std::unique_ptr<Replay> make_dense_twin(CudaDevice& device, const Problem& problem) {
  return std::make_unique<DenseTwin>(device, problem);
}

}  // namespace moe::cuda
