// What the CUDA benchmarks of whole layers share: recorded graphs and the timing of one.
#pragma once

#include <fmt/format.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cuda/activity.h"
#include "cuda/backend.h"
#include "cuda/check.h"
#include "device_data.cuh"

namespace moe::cuda {

/// What `queue` puts on the stream, recorded once.
class Graph {
 public:
  Graph(cudaStream_t stream, const std::function<void()>& queue) {
    cudaGraph_t graph = nullptr;
    MOE_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    queue();
    MOE_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
    MOE_CUDA_CHECK(cudaGraphInstantiate(&exec_, graph, 0));
    MOE_CUDA_CHECK(cudaGraphDestroy(graph));
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() { MOE_CUDA_CHECK_NOTHROW(cudaGraphExecDestroy(exec_)); }
  void launch(cudaStream_t stream) const { MOE_CUDA_CHECK(cudaGraphLaunch(exec_, stream)); }

 private:
  cudaGraphExec_t exec_ = nullptr;
};

/// Times one piece of work with L2 cold and clean (CacheFlush).
class Timer {
 public:
  explicit Timer(cudaStream_t stream) : stream_(stream), flush_(stream) {}
  void flush() { flush_.run(); }
  /// `host_idle`: the host waits for the flush first, so that it is not ahead of the device.
  double microseconds(const std::function<void()>& work, bool host_idle = false) {
    flush_.run();
    if (host_idle) MOE_CUDA_CHECK(cudaStreamSynchronize(stream_));
    start_.record(stream_);
    work();
    end_.record(stream_);
    end_.wait();
    return end_.milliseconds_since(start_) * 1e3;
  }

 private:
  cudaStream_t stream_;
  CacheFlush flush_;
  Event start_;
  Event end_;
};

/// Microseconds of each kernel of one forward in the order in which they start, and of the span of all.
inline std::string kernel_times(const std::function<void()>& forward, cudaStream_t stream) {
  std::string reason;
  const std::unique_ptr<ActivityRecorder> recorder = ActivityRecorder::open(reason);
  if (recorder == nullptr) return reason;
  recorder->start();
  forward();
  MOE_CUDA_CHECK(cudaStreamSynchronize(stream));
  const std::vector<KernelRecord> records = recorder->stop();
  if (records.empty()) return "nothing recorded";
  std::string text;
  for (const KernelRecord& record : records) {
    const std::string name = record.name.substr(0, record.name.find('<'));
    text += fmt::format("{} {:.1f}+{:.1f}, ", name.substr(0, 40),
                        static_cast<double>(record.start_ns - records.front().start_ns) * 1e-3,
                        static_cast<double>(record.end_ns - record.start_ns) * 1e-3);
  }
  return text +
         fmt::format("end {:.1f}",
                     static_cast<double>(records.back().end_ns - records.front().start_ns) * 1e-3);
}

}  // namespace moe::cuda
