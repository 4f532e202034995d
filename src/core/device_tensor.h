// Tensors where a device computes: copies in its memory, or the host's own where that is the same.
#pragma once

#include <initializer_list>
#include <memory>
#include <vector>

#include "core/backend.h"
#include "moe/layer.h"

namespace moe {

/// An owning tensor on a device. Copies share the memory.
class DeviceTensor {
 public:
  DeviceTensor() = default;
  /// Memory for a tensor; what it holds is not defined.
  DeviceTensor(Device& device, DType dtype, std::initializer_list<std::int64_t> sizes);
  /// A copy of `host` that a layer on `device` can use; a view of `host` itself, which then must
  /// outlive it, where the device computes in the host's memory.
  [[nodiscard]] static DeviceTensor of(Device& device, const TensorView& host);

  [[nodiscard]] const TensorView& view() const { return view_; }

 private:
  std::shared_ptr<void> memory_;
  TensorView view_;
};

/// The weights of a layer on a device.
class DeviceWeights {
 public:
  [[nodiscard]] static DeviceWeights of(Device& device, const Weights& host);
  [[nodiscard]] const Weights& view() const { return view_; }

 private:
  std::vector<DeviceTensor> tensors_;
  Weights view_;
};

}  // namespace moe
