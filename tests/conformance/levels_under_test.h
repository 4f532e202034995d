// The levels the conformance tests run: all that src/levels.def registers for one backend. A new level
// is tested without a line here. The tests are built once per backend (tests/CMakeLists.txt) and hand
// host tensors to a layer wherever it computes.
#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/device_tensor.h"
#include "moe/error.h"
#include "moe/layer.h"

namespace moe {

inline constexpr Backend kBackend = Backend::MOE_TEST_BACKEND;

inline std::vector<std::string> levels_under_test() {
  std::vector<std::string> names;
  for (const LevelInfo& level : list_levels()) {
    if (level.on(kBackend)) names.push_back(level.name);
  }
  return names;
}

inline LayerOptions options_of(const std::string& level, const Problem& problem) {
  return {.level = level,
          .backend = kBackend,
          .problem = problem,
          .tune_seconds = 0,
          .tune_cache = "off"};
}

/// A layer that takes host tensors: on a GPU its weights are copies, and each forward copies x and y
/// there and y back, so that what it did not write keeps what the test put there.
class HostLayer {
 public:
  HostLayer(const LayerOptions& options, const Weights& weights)
      : device_(make_device(options)),
        weights_(place(*device_, options, weights)),
        layer_(Layer::create(options, weights_.view())) {}

  void forward(const TensorView& x, const TensorView& y) {
    run(x, y, [&](const TensorView& on_x, const TensorView& on_y) { layer_.forward(on_x, on_y); });
  }
  /// Routes in host memory, as x and y are.
  void forward(const TensorView& x, const TensorView& y, const Routes& routes) {
    const std::int64_t slots = x.dim(0) * layer_.problem().shape.top_k;
    const auto place = [&](const auto* values) {
      const std::size_t bytes = static_cast<std::size_t>(slots) * sizeof(*values);
      std::shared_ptr<void> memory;
      if (!device_->on_host()) {
        memory = device_->allocate(bytes);
        device_->copy_from_host(memory.get(), values, bytes);
      }
      return memory;
    };
    const std::shared_ptr<void> experts = place(routes.experts);
    const std::shared_ptr<void> weights = place(routes.weights);
    const Routes placed{experts ? static_cast<const std::int32_t*>(experts.get()) : routes.experts,
                        weights ? static_cast<const float*>(weights.get()) : routes.weights};
    run(x, y, [&](const TensorView& on_x, const TensorView& on_y) {
      layer_.forward(on_x, on_y, placed);
    });
  }
  std::vector<TraceEvent> trace(const TensorView& x, const TensorView& y) {
    std::vector<TraceEvent> events;
    run(x, y,
        [&](const TensorView& on_x, const TensorView& on_y) { events = layer_.trace(on_x, on_y); });
    return events;
  }
  Layer& operator*() { return layer_; }
  Layer* operator->() { return &layer_; }

 private:
  static DeviceWeights place(Device& device, const LayerOptions& options, const Weights& weights) {
    // Says why the level cannot run before anything is copied to where that may be impossible.
    static_cast<void>(Layer::predict(options));
    return DeviceWeights::of(device, weights);
  }
  template <class Call>
  void run(const TensorView& x, const TensorView& y, Call&& call) {
    const DeviceTensor on_x = DeviceTensor::of(*device_, x);
    const DeviceTensor on_y = DeviceTensor::of(*device_, y);
    call(on_x.view(), on_y.view());
    if (!device_->on_host()) device_->copy_to_host(y.data, on_y.view().data, y.bytes());
  }

  std::unique_ptr<Device> device_;
  DeviceWeights weights_;
  Layer layer_;
};

/// The layer, or why this machine or build cannot run it.
struct LayerOrReason {
  std::optional<HostLayer> layer;
  std::string reason;
};
inline LayerOrReason create_layer(const LayerOptions& options, const Weights& weights) {
  LayerOrReason created;
  try {
    created.layer.emplace(options, weights);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported && error.code() != ErrorCode::kOutOfMemory) throw;
    created.reason = error.what();
  }
  return created;
}

}  // namespace moe

/// `HostLayer name = ...` or GTEST_SKIP with the level's own reason: what cannot run never passes.
#define MOE_CREATE_OR_SKIP(name, options, weights)                               \
  ::moe::LayerOrReason name##_or_reason = ::moe::create_layer(options, weights); \
  if (!name##_or_reason.layer) GTEST_SKIP() << name##_or_reason.reason;          \
  ::moe::HostLayer& name = *name##_or_reason.layer
