// Owners of CUDA things, what the device is, and the GPU as a Device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/backend.h"

namespace moe::cuda {

/// What the runtime says about one device. No figure of a particular GPU is written in this
/// backend.
struct DeviceFacts {
  int ordinal = 0;
  std::string name;
  std::string uuid;  // "GPU-01234567-89ab-..." as nvidia-smi prints it
  int major = 0;     // compute capability
  int minor = 0;
  int multiprocessors = 0;
  std::size_t l2_bytes = 0;
  std::size_t shared_bytes_per_block = 0;  // most that a block can opt in to
  std::size_t memory_bytes = 0;
  int driver_version = 0;   // newest CUDA version that the driver supports, 1000·major + 10·minor
  int runtime_version = 0;  // of the toolkit that this build links
};
[[nodiscard]] DeviceFacts query_device(int ordinal);
/// What timings of this build's kernels on such a device are valid for.
[[nodiscard]] DeviceIdentity identity_of(const DeviceFacts& facts);

/// A stream: its own, or one that the caller owns.
class Stream {
 public:
  Stream() : Stream(unsigned{cudaStreamDefault}) {}  // of its own; ordered with the default stream
  explicit Stream(unsigned flags);                   // of its own; as for cudaStreamCreateWithFlags
  explicit Stream(cudaStream_t borrowed) : stream_(borrowed), owned_(false) {}
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream();
  [[nodiscard]] cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
  bool owned_ = true;
};

class Event {
 public:
  /// `flags` as for cudaEventCreateWithFlags; cudaEventDefault records times.
  explicit Event(unsigned flags = cudaEventDefault);
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event();
  void record(cudaStream_t stream) const;
  void wait() const;  // on the host
  [[nodiscard]] cudaEvent_t get() const { return event_; }
  /// Milliseconds from `start`; both were recorded with times and have happened.
  [[nodiscard]] double milliseconds_since(const Event& start) const;

 private:
  cudaEvent_t event_ = nullptr;
};

/// Device memory. Throws Error(kOutOfMemory) with what is free when the device refuses.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t bytes);
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer();
  [[nodiscard]] void* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  template <class Element>
  [[nodiscard]] Element* as() const {
    return static_cast<Element*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Page-locked host memory, which the device copies to without a staging copy.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(std::size_t bytes);
  PinnedBuffer(PinnedBuffer&& other) noexcept;
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  ~PinnedBuffer();
  template <class Element>
  [[nodiscard]] Element* as() const {
    return static_cast<Element*>(data_);
  }

 private:
  void* data_ = nullptr;
};

/// The GPU that is current when it is made.
class CudaDevice final : public Device {
 public:
  explicit CudaDevice(const LayerOptions& options);
  ~CudaDevice() override;

  [[nodiscard]] std::string unavailable() const override { return unavailable_; }
  [[nodiscard]] DeviceIdentity identity() const override { return identity_of(facts_); }
  [[nodiscard]] std::uint64_t available_memory() const override;
  void check_reachable(const char* name, const TensorView& tensor) const override;
  [[nodiscard]] void* allocate_workspace(std::size_t bytes) override;
  void release_workspace_pages() override {}  // device memory has no lazily resident pages
  [[nodiscard]] std::shared_ptr<void> allocate(std::size_t bytes) override;
  [[nodiscard]] bool on_host() const override { return false; }
  [[nodiscard]] void* native_stream() const override { return stream(); }
  void synchronise() override;
  void copy_from_host(void* to, const void* from, std::size_t bytes) override;
  void copy_to_host(void* to, const void* from, std::size_t bytes) override;

  [[nodiscard]] cudaStream_t stream() const { return stream_->get(); }
  [[nodiscard]] const DeviceFacts& facts() const { return facts_; }

 private:
  std::string unavailable_;
  DeviceFacts facts_;
  std::unique_ptr<Stream> stream_;
  DeviceBuffer workspace_;
};

}  // namespace moe::cuda
