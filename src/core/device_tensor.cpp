#include "core/device_tensor.h"

namespace moe {

DeviceTensor::DeviceTensor(Device& device, DType dtype, std::initializer_list<std::int64_t> sizes)
    : view_(nullptr, dtype, sizes) {
  memory_ = device.allocate(view_.bytes());
  view_.data = memory_.get();
}

DeviceTensor DeviceTensor::of(Device& device, const TensorView& host) {
  DeviceTensor tensor;
  tensor.view_ = host;
  if (device.on_host()) return tensor;
  tensor.memory_ = device.allocate(host.bytes());
  tensor.view_.data = tensor.memory_.get();
  device.copy_from_host(tensor.view_.data, host.data, host.bytes());
  return tensor;
}

DeviceWeights DeviceWeights::of(Device& device, const Weights& host) {
  return {DeviceTensor::of(device, host.router), DeviceTensor::of(device, host.gate),
          DeviceTensor::of(device, host.up), DeviceTensor::of(device, host.down)};
}

}  // namespace moe
