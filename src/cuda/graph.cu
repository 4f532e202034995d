#include "cuda/graph.h"

#include <utility>

#include "cuda/check.h"

namespace moe::cuda {
namespace {

/// A graph that is not instantiated.
class Recording {
 public:
  Recording(cudaStream_t stream, const std::function<void()>& queue) {
    // Relaxed: a kernel may be loaded at its first launch, which the stricter modes refuse.
    MOE_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    try {
      queue();
    } catch (...) {
      MOE_CUDA_CHECK_NOTHROW(cudaStreamEndCapture(stream, &graph_));
      if (graph_ != nullptr) MOE_CUDA_CHECK_NOTHROW(cudaGraphDestroy(graph_));
      throw;
    }
    MOE_CUDA_CHECK(cudaStreamEndCapture(stream, &graph_));
  }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  ~Recording() { MOE_CUDA_CHECK_NOTHROW(cudaGraphDestroy(graph_)); }

  [[nodiscard]] cudaGraph_t get() const { return graph_; }
  [[nodiscard]] std::size_t nodes() const {
    std::size_t count = 0;
    MOE_CUDA_CHECK(cudaGraphGetNodes(graph_, nullptr, &count));
    return count;
  }

 private:
  cudaGraph_t graph_ = nullptr;
};

}  // namespace

GraphExec::GraphExec(cudaStream_t stream, const std::function<void()>& queue) {
  const Recording recording(stream, queue);
  nodes_ = recording.nodes();
  MOE_CUDA_CHECK(cudaGraphInstantiate(&exec_, recording.get(), 0));
}
GraphExec::GraphExec(GraphExec&& other) noexcept
    : exec_(std::exchange(other.exec_, nullptr)), nodes_(other.nodes_) {}
GraphExec& GraphExec::operator=(GraphExec&& other) noexcept {
  std::swap(exec_, other.exec_);
  std::swap(nodes_, other.nodes_);
  return *this;
}
GraphExec::~GraphExec() {
  if (exec_ != nullptr) MOE_CUDA_CHECK_NOTHROW(cudaGraphExecDestroy(exec_));
}

void GraphExec::launch(cudaStream_t stream) const {
  MOE_CUDA_CHECK(cudaGraphLaunch(exec_, stream));
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  MOE_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace moe::cuda
