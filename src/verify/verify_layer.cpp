// verify(): a layer on seeded inputs, into poisoned outputs, against the oracle.
#include <cstring>

#include "core/check.h"
#include "core/workload.h"
#include "moe/verify.h"

namespace moe {
namespace {

/// Elements of rows [first, end) of y that are not the NaN that poison() wrote.
std::int64_t written_elements(const TensorView& y, std::int64_t first) {
  Tensor untouched(y.dtype, {1, y.dim(1)});
  poison(untouched.view());
  const std::size_t size = size_of(y.dtype);
  const auto* bytes = y.as<const std::byte>() + static_cast<std::size_t>(first * y.dim(1)) * size;
  const std::int64_t elements = (y.dim(0) - first) * y.dim(1);
  std::int64_t written = 0;
  for (std::int64_t i = 0; i < elements; ++i) {
    if (std::memcmp(bytes + static_cast<std::size_t>(i) * size, untouched.view().data, size) != 0)
      ++written;
  }
  return written;
}

/// Records one compared forward; false when verification is over.
bool add_step(VerifyResult& result, std::string what, const Comparison& comparison) {
  if (result.steps.empty() || !comparison.passed ||
      comparison.tolerance_used > result.worst.tolerance_used) {
    result.worst = comparison;
  }
  if (!comparison.passed) result.failure = what + ": " + comparison.describe();
  result.steps.push_back({std::move(what), comparison});
  return comparison.passed;
}

}  // namespace

VerifyResult verify(Layer& layer, const Weights& weights, const VerifyOptions& options) {
  const Problem& problem = layer.problem();
  const Skew skew = Skew::parse(options.skew);
  const Tensor x0 = make_input(problem, options.seed, 0, skew);
  const Tensor x1 = make_input(problem, options.seed, 1, skew);
  const Oracle oracle0(problem, weights, x0.view(), options.seed);
  const Oracle oracle1(problem, weights, x1.view(), options.seed);
  const Tensor y(problem.dtype, {problem.shape.tokens, problem.shape.hidden});
  const Tensor first_y(problem.dtype, {problem.shape.tokens, problem.shape.hidden});

  VerifyResult result;
  poison(first_y.view());
  layer.forward(x0.view(), first_y.view());
  if (!add_step(result, "input 0", oracle0.compare(first_y.view()))) return result;

  poison(y.view());
  layer.forward(x1.view(), y.view());
  if (!add_step(result, "input 1", oracle1.compare(y.view()))) return result;

  poison(y.view());
  layer.forward(x0.view(), y.view());
  if (!add_step(result, "input 0 again", oracle0.compare(y.view()))) return result;
  if (std::memcmp(y.view().data, first_y.view().data, y.view().bytes()) != 0) {
    result.failure = "input 0 again: y differs bitwise from the first forward of the same input";
    return result;
  }

  if (const std::int64_t rows = problem.shape.tokens / 2; rows > 0) {
    poison(y.view());
    layer.forward(x0.view().first_rows(rows), y.view().first_rows(rows));
    const std::string what = fmt::format("first {} tokens", rows);
    if (!add_step(result, what, oracle0.compare(y.view().first_rows(rows)))) return result;
    if (const std::int64_t written = written_elements(y.view(), rows); written > 0) {
      result.failure = fmt::format("{}: {} elements of y beyond them were written", what, written);
      return result;
    }
  }
  result.passed = true;
  return result;
}

VerifyResult verify(const LayerOptions& layer_options, const VerifyOptions& options) {
  validate(layer_options.problem.shape);
  // Asked before the weights are made: a layer that cannot run says so at once.
  (void)Layer::predict(layer_options);
  const OwnedWeights weights =
      make_weights(layer_options.problem, options.seed, Skew::parse(options.skew));
  Layer layer = Layer::create(layer_options, weights.view());
  return verify(layer, weights.view(), options);
}

}  // namespace moe
