#include "verify/guarded.h"

#include <algorithm>
#include <cstring>

namespace moe {
namespace {

/// Wider than a stray vector store or a tile row; not a page, for fuzz makes thousands of these.
constexpr std::size_t kZone = 1024;
constexpr std::byte kCanary{0xA7};

}  // namespace

GuardedTensor::GuardedTensor(const TensorView& source, std::int64_t offset_elements)
    : buffer_(2 * kZone + source.bytes() +
              static_cast<std::size_t>(offset_elements) * size_of(source.dtype)),
      view_(source) {
  std::fill_n(buffer_.as<std::byte>(), buffer_.size(), kCanary);
  view_.data = buffer_.as<std::byte>() + kZone +
               static_cast<std::size_t>(offset_elements) * size_of(source.dtype);
  if (source.bytes() > 0) std::memcpy(view_.data, source.data, source.bytes());
}

std::size_t GuardedTensor::begin() const {
  return static_cast<std::size_t>(view_.as<std::byte>() - buffer_.as<std::byte>());
}

std::int64_t GuardedTensor::damaged_bytes() const {
  const auto* bytes = buffer_.as<std::byte>();
  const auto damaged = [](std::byte value) { return value != kCanary; };
  return std::count_if(bytes, bytes + begin(), damaged) +
         std::count_if(bytes + begin() + view_.bytes(), bytes + buffer_.size(), damaged);
}

GuardedMirror::GuardedMirror(Device& device, GuardedTensor& tensor)
    : device_(&device), tensor_(&tensor), view_(tensor.view()) {
  if (device.on_host()) return;
  memory_ = device.allocate(tensor.buffer_.size());
  view_.data = static_cast<std::byte*>(memory_.get()) + tensor.begin();
  upload();
}

void GuardedMirror::upload() {
  if (memory_ == nullptr) return;
  device_->copy_from_host(memory_.get(), tensor_->buffer_.data(), tensor_->buffer_.size());
}

void GuardedMirror::download() {
  if (memory_ == nullptr) return;
  device_->copy_to_host(tensor_->buffer_.data(), memory_.get(), tensor_->buffer_.size());
}

}  // namespace moe
