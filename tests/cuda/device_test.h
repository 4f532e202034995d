// What the CUDA tests share: skipping without a GPU, and arrays on the device between canaries.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <vector>

#include "cuda/backend.h"
#include "cuda/check.h"

namespace moe::cuda {

/// Skips where no GPU can run this build.
class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    device_ = std::make_unique<CudaDevice>(LayerOptions());
    if (const std::string reason = device_->unavailable(); !reason.empty()) GTEST_SKIP() << reason;
  }
  [[nodiscard]] CudaDevice& device() { return *device_; }
  [[nodiscard]] cudaStream_t stream() { return device_->stream(); }

 private:
  std::unique_ptr<CudaDevice> device_;
};

/// `count` elements on the device, all bits set (NaN, -1) until they are written, between two zones
/// of known bytes. Element 0 lies `offset` elements behind a 256-byte boundary.
template <class Element>
class DeviceArray {
 public:
  DeviceArray(CudaDevice& device, std::int64_t count, std::int64_t offset = 0)
      : device_(&device),
        count_(static_cast<std::size_t>(count)),
        begin_(kZone + static_cast<std::size_t>(offset) * sizeof(Element)),
        buffer_(begin_ + bytes() + kZone) {
    std::vector<std::byte> image(buffer_.size(), kCanary);
    std::memset(image.data() + begin_, 0xff, bytes());
    device.copy_from_host(buffer_.data(), image.data(), image.size());
  }
  DeviceArray(CudaDevice& device, const std::vector<Element>& values, std::int64_t offset = 0)
      : DeviceArray(device, static_cast<std::int64_t>(values.size()), offset) {
    device.copy_from_host(data(), values.data(), bytes());
  }

  [[nodiscard]] Element* data() const {
    return reinterpret_cast<Element*>(buffer_.template as<std::byte>() + begin_);
  }
  [[nodiscard]] std::vector<Element> download() const {
    std::vector<Element> values(count_);
    device_->copy_to_host(values.data(), data(), bytes());
    return values;
  }
  /// Whether the zones before and after still hold what the constructor wrote.
  [[nodiscard]] bool intact() const {
    std::vector<std::byte> image(buffer_.size());
    device_->copy_to_host(image.data(), buffer_.data(), image.size());
    std::memset(image.data() + begin_, static_cast<int>(kCanary), bytes());
    return image == std::vector<std::byte>(buffer_.size(), kCanary);
  }

 private:
  static constexpr std::size_t kZone = 256;
  static constexpr std::byte kCanary{0xA5};
  [[nodiscard]] std::size_t bytes() const { return count_ * sizeof(Element); }

  CudaDevice* device_;
  std::size_t count_;
  std::size_t begin_;
  DeviceBuffer buffer_;
};

}  // namespace moe::cuda
