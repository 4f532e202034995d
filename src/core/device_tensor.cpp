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
  if (device.on_host() || host.data == nullptr) return tensor;
  tensor.memory_ = device.allocate(host.bytes());
  tensor.view_.data = tensor.memory_.get();
  device.copy_from_host(tensor.view_.data, host.data, host.bytes());
  return tensor;
}

DeviceWeights DeviceWeights::of(Device& device, const Weights& host) {
  DeviceWeights placed;
  const auto place = [&](const TensorView& tensor) {
    return placed.tensors_.emplace_back(DeviceTensor::of(device, tensor)).view();
  };
  Weights& view = placed.view_;
  view.router = place(host.router);
  view.gate = place(host.gate);
  view.up = place(host.up);
  view.down = place(host.down);
  view.router_bias = place(host.router_bias);
  view.selection_bias = place(host.selection_bias);
  view.gate_bias = place(host.gate_bias);
  view.up_bias = place(host.up_bias);
  view.down_bias = place(host.down_bias);
  view.shared_gate = place(host.shared_gate);
  view.shared_up = place(host.shared_up);
  view.shared_down = place(host.shared_down);
  view.shared_switch = place(host.shared_switch);
  return placed;
}

}  // namespace moe
