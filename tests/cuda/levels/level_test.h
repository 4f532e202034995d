// What the tests of whole levels share: problems placed on the device.
#pragma once

#include <list>

#include "core/workload.h"
#include "cuda/device_test.h"
#include "moe/layer.h"

namespace moe::cuda {

class CudaLevelTest : public CudaTest {
 protected:
  TensorView place(const TensorView& host) {
    buffers_.emplace_back(host.bytes());
    TensorView view = host;
    view.data = buffers_.back().data();
    device().copy_from_host(view.data, host.data, host.bytes());
    return view;
  }
  Weights place(const OwnedWeights& host) {
    Weights placed = host.view();
    for (TensorView Weights::*tensor :
         {&Weights::router, &Weights::gate, &Weights::up, &Weights::down, &Weights::router_bias,
          &Weights::selection_bias, &Weights::gate_bias, &Weights::up_bias, &Weights::down_bias,
          &Weights::shared_gate, &Weights::shared_up, &Weights::shared_down,
          &Weights::shared_switch}) {
      if ((placed.*tensor).data != nullptr) placed.*tensor = place(placed.*tensor);
    }
    return placed;
  }
  Tensor download(const TensorView& y) {
    Tensor got(y.dtype, {y.dim(0), y.dim(1)});
    device().copy_to_host(got.view().data, y.data, y.bytes());
    return got;
  }
  void release() { buffers_.clear(); }

 private:
  std::list<DeviceBuffer> buffers_;
};

}  // namespace moe::cuda
