// Times work on a stream with events, from a known state of the caches and of the host.
#pragma once

#include <functional>

#include "core/instrument.h"
#include "cuda/backend.h"

namespace moe::cuda {

/// One launch of a kernel that does nothing.
void launch_empty(cudaStream_t stream);

/// Reads `bytes` bytes (a multiple of 16) at the rate of the memory. `sink` is 4 bytes that are
/// practically never written.
void read_memory(const void* data, std::size_t bytes, unsigned* sink, cudaStream_t stream);

/// Keeps the stream busy for 100 us, long enough for the host to queue a graph behind it: an event between them is
/// then recorded when the graph's first kernel can begin.
void hold(cudaStream_t stream);

class Stopwatch {
 public:
  explicit Stopwatch(CudaDevice& device);

  /// Milliseconds between the events around `work`, which are waited for.
  ///
  /// Cold: more than the L2 cache holds is written, and then as much other memory is read.
  /// Dirty: it is written only. NOTE: that leaves the cache full of dirty lines, and work that starts
  /// then pays for writing them back.
  /// Eager: the host waits for everything before, so that the time of the launches is in the sample.
  /// Graph: the device is kept busy until the launch is queued, so that it is not.
  [[nodiscard]] double milliseconds(const std::function<void()>& work, const Timing& timing);

 private:
  void flush(bool clean);

  CudaDevice& device_;
  std::size_t flush_bytes_;
  DeviceBuffer written_;  // both allocated by the first sample that is not hot
  DeviceBuffer read_;
  DeviceBuffer sink_;
  Event start_;
  Event end_;
};

}  // namespace moe::cuda
