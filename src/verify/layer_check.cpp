#include "verify/layer_check.h"

#include <cstring>
#include <utility>

#include "core/backend.h"
#include "core/check.h"
#include "core/device_tensor.h"

namespace moe {
namespace {

/// Elements of rows [first, end) of y that are not the NaN that poison() wrote.
std::int64_t written_elements(const TensorView& y, std::int64_t first) {
  const Tensor untouched(y.dtype, {1, y.dim(1)});
  poison(untouched.view());
  const std::size_t row_bytes = untouched.view().bytes();
  const std::size_t size = size_of(y.dtype);
  std::int64_t written = 0;
  for (std::int64_t row = first; row < y.dim(0); ++row) {
    const auto* bytes = y.as<const std::byte>() + static_cast<std::size_t>(row) * row_bytes;
    for (std::size_t at = 0; at < row_bytes; at += size) {
      if (std::memcmp(bytes + at, untouched.as<std::byte>() + at, size) != 0) ++written;
    }
  }
  return written;
}

/// Routes where a device computes: copies in its memory, or the host's own.
class PlacedRoutes {
 public:
  PlacedRoutes(Device& device, const OwnedRoutes& host) : view_(host.view()) {
    if (device.on_host() || host.experts.empty()) return;
    const auto place = [&](const auto& values) {
      const std::size_t bytes = values.size() * sizeof(values[0]);
      memory_.push_back(device.allocate(bytes));
      device.copy_from_host(memory_.back().get(), values.data(), bytes);
      return memory_.back().get();
    };
    view_ = {static_cast<const std::int32_t*>(place(host.experts)),
             static_cast<const float*>(place(host.weights))};
  }
  [[nodiscard]] const Routes& view() const { return view_; }

 private:
  std::vector<std::shared_ptr<void>> memory_;
  Routes view_;
};

}  // namespace

LayerCheck::Input::Input(const Problem& problem, const Weights& weights, const Skew& skew,
                         std::uint64_t seed, std::uint64_t variant, std::int64_t offset_elements)
    : original(make_input(problem, seed, variant, skew)),
      given(original.view(), offset_elements),
      routes(problem.router.scoring == Scoring::kGiven ? make_routes(problem.shape, seed, variant)
                                                       : OwnedRoutes{}),
      oracle(problem, weights, original.view(), {.sample_seed = seed, .routes = routes.view()}) {}

LayerCheck::LayerCheck(const Problem& problem, const Weights& weights, std::uint64_t seed,
                       const Skew& skew, std::int64_t offset_elements)
    : problem_(problem),
      weights_(weights),
      seed_(seed),
      inputs_{Input(problem, weights, skew, seed, 0, offset_elements),
              Input(problem, weights, skew, seed, 1, offset_elements)},
      y_(inputs_[0].original.view(), offset_elements) {}

const Oracle& LayerCheck::oracle(Input& input, Operands operands) {
  if (operands == Operands::kAsStored) return input.oracle;
  if (!input.fp8_oracle) {
    input.fp8_oracle.emplace(
        problem_, weights_, input.original.view(),
        OracleOptions{.sample_seed = seed_, .operands = operands, .routes = input.routes.view()});
  }
  return *input.fp8_oracle;
}

bool LayerCheck::step(VerifyResult& result, const Forward& forward, Operands operands,
                      std::string what, Input& input, std::int64_t rows) {
  poison(y_.view());
  forward(input.given.view().first_rows(rows), y_.view().first_rows(rows));
  const Comparison comparison = oracle(input, operands).compare(y_.view().first_rows(rows));

  std::string problem_found;
  if (!comparison.passed) {
    problem_found = comparison.describe();
  } else if (const std::int64_t written = written_elements(y_.view(), rows); written > 0) {
    problem_found = fmt::format("{} elements of y after row {} were written", written, rows);
  } else if (const std::int64_t damaged = y_.damaged_bytes() + input.given.damaged_bytes();
             damaged > 0) {
    problem_found = fmt::format("{} bytes before or after x or y were written", damaged);
  } else if (std::memcmp(input.given.view().data, input.original.view().data,
                         input.original.view().bytes()) != 0) {
    problem_found = "x was changed";
  }
  if (!problem_found.empty()) result.failure = what + ": " + problem_found;
  if (result.steps.empty() || !comparison.passed ||
      comparison.tolerance_used > result.worst.tolerance_used) {
    result.worst = comparison;
  }
  result.steps.push_back({std::move(what), comparison});
  return problem_found.empty();
}

VerifyResult LayerCheck::run(const Forward& forward, Operands operands) {
  VerifyResult result;
  const std::int64_t tokens = problem_.shape.tokens;
  if (!step(result, forward, operands, "input 0", inputs_[0], tokens)) return result;
  const GuardedTensor first_y(y_.view());
  if (!step(result, forward, operands, "input 1", inputs_[1], tokens)) return result;
  if (!step(result, forward, operands, "input 0 again", inputs_[0], tokens)) return result;
  if (std::memcmp(y_.view().data, first_y.view().data, first_y.view().bytes()) != 0) {
    result.failure = "input 0 again: y is not bitwise that of the first forward of the same input";
    return result;
  }
  if (tokens > 1 && !step(result, forward, operands, fmt::format("first {} tokens", tokens / 2),
                          inputs_[0], tokens / 2)) {
    return result;
  }
  if (!step(result, forward, operands, "no tokens", inputs_[0], 0)) return result;
  result.passed = true;
  return result;
}

VerifyResult LayerCheck::run(Layer& layer) {
  LayerOptions options;
  options.backend = layer.backend();
  const std::unique_ptr<Device> device = make_device(options);
  GuardedMirror y(*device, y_);
  std::array<GuardedMirror, 2> x = {GuardedMirror(*device, inputs_[0].given),
                                    GuardedMirror(*device, inputs_[1].given)};
  const bool routed = problem_.router.scoring == Scoring::kGiven;
  std::array<PlacedRoutes, 2> routes = {PlacedRoutes(*device, inputs_[0].routes),
                                        PlacedRoutes(*device, inputs_[1].routes)};
  const auto forward = [&](const TensorView& host_x, const TensorView& host_y) {
    const std::size_t which = host_x.data == inputs_[0].given.view().data ? 0 : 1;
    GuardedMirror& input = x[which];
    const TensorView rows = input.view().first_rows(host_x.dim(0));
    y.upload();
    if (routed) {
      layer.forward(rows, y.view().first_rows(host_y.dim(0)), routes[which].view());
    } else {
      layer.forward(rows, y.view().first_rows(host_y.dim(0)));
    }
    y.download();
    input.download();
  };
  return run(forward, layer.operands());
}

VerifyResult verify(Layer& layer, const Weights& weights, const VerifyOptions& options) {
  return LayerCheck(layer.problem(), weights, options.seed, Skew::parse(options.skew)).run(layer);
}

VerifyResult verify(const LayerOptions& layer_options, const VerifyOptions& options) {
  const Skew skew = Skew::parse(options.skew);
  // Asked before the weights are made: a layer that cannot run says so at once.
  (void)Layer::predict(layer_options);
  const OwnedWeights weights = make_weights(layer_options.problem, options.seed, skew);
  const std::unique_ptr<Device> device = make_device(layer_options);
  const DeviceWeights placed = DeviceWeights::of(*device, weights.view());
  Layer layer = Layer::create(layer_options, placed.view());
  return verify(layer, weights.view(), options);
}

}  // namespace moe
