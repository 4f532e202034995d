#include "verify/dump_check.h"

#include "core/backend.h"

namespace moe {
namespace {

/// All rows: the file has as many as somebody wanted to hold against us.
OracleOptions every_row(Operands operands) {
  return {.affordable_work = 1e18, .operands = operands};
}

}  // namespace

DumpCheck::DumpCheck(const Problem& problem, const Weights& weights, const TensorView& x,
                     const TensorView& expected)
    : problem_(problem),
      weights_(weights),
      x_(x),
      expected_(expected),
      y_(x),
      oracle_(problem, weights, x, every_row(Operands::kAsStored)) {}

Comparison DumpCheck::of_expected() const {
  return oracle_.compare(expected_);
}

const Oracle& DumpCheck::oracle(Operands operands) {
  if (operands == Operands::kAsStored) return oracle_;
  if (!fp8_oracle_) fp8_oracle_.emplace(problem_, weights_, x_.view(), every_row(operands));
  return *fp8_oracle_;
}

Comparison DumpCheck::of(Layer& layer) {
  LayerOptions options;
  options.backend = layer.backend();
  const std::unique_ptr<Device> device = make_device(options);
  poison(y_.view());
  GuardedMirror x(*device, x_);
  GuardedMirror y(*device, y_);
  layer.forward(x.view(), y.view());
  y.download();
  return oracle(layer.operands()).compare(y_.view(), expected_);
}

}  // namespace moe
