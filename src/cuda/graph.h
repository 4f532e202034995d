// A CUDA graph recorded from work that is queued on a stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>

namespace moe::cuda {

/// An instantiated graph. Movable, not copyable. NOTE: it is never changed to another recording:
/// cudaGraphExecUpdate (CUDA 13.0) accepts a node of cuBLASLt recorded for other rows, and in a launch
/// that node then leaves its output unwritten.
class GraphExec {
 public:
  /// Records what `queue` puts on `stream`, which must be neither the legacy default stream nor in
  /// a capture already. Nothing runs.
  GraphExec(cudaStream_t stream, const std::function<void()>& queue);
  GraphExec(GraphExec&& other) noexcept;
  GraphExec& operator=(GraphExec&& other) noexcept;
  GraphExec(const GraphExec&) = delete;
  GraphExec& operator=(const GraphExec&) = delete;
  ~GraphExec();

  void launch(cudaStream_t stream) const;
  [[nodiscard]] std::size_t nodes() const { return nodes_; }

 private:
  cudaGraphExec_t exec_ = nullptr;
  std::size_t nodes_ = 0;
};

/// Whether work queued on the stream is being recorded into a graph at the moment.
[[nodiscard]] bool is_capturing(cudaStream_t stream);

}  // namespace moe::cuda
