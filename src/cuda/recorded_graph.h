// A recorded graph as the Replay that a bench launches.
#pragma once

#include <functional>

#include "core/instrument.h"
#include "cuda/graph.h"

namespace moe::cuda {

class RecordedGraph final : public Replay {
 public:
  /// Records what `queue` queues on `stream`. An error in between ends the recording and is passed on.
  RecordedGraph(cudaStream_t stream, const std::function<void()>& queue)
      : stream_(stream), graph_(stream, queue) {}
  void launch() override { graph_.launch(stream_); }

 private:
  cudaStream_t stream_;
  GraphExec graph_;
};

}  // namespace moe::cuda
