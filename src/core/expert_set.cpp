#include "core/expert_set.h"

#include "core/weight_tensors.h"

namespace moe {

Shape with_shared_slots(const Problem& problem) {
  Shape shape = problem.shape;
  const std::int64_t parts = problem.shared_intermediate / shape.intermediate +
                             (problem.shared_intermediate % shape.intermediate != 0 ? 1 : 0);
  shape.experts += parts;
  shape.top_k += parts;
  return shape;
}

std::vector<WeightTensor> weight_tensors(const Problem& problem) {
  const std::int64_t e = problem.shape.experts;
  const std::int64_t h = problem.shape.hidden;
  const std::int64_t i = problem.shape.intermediate;
  const std::int64_t s = problem.shared_intermediate;
  const bool gated = problem.activation.gated();
  std::vector<WeightTensor> list;
  const auto add = [&](bool needed, const char* name, TensorView Weights::*view, DType dtype,
                       std::initializer_list<std::int64_t> sizes) {
    if (needed) list.push_back({name, view, TensorView(nullptr, dtype, sizes)});
  };
  const DType dtype = problem.dtype;
  add(problem.router.scoring != Scoring::kGiven, "router", &Weights::router, dtype, {e, h});
  add(gated, "gate", &Weights::gate, dtype, {e, i, h});
  add(true, "up", &Weights::up, dtype, {e, i, h});
  add(true, "down", &Weights::down, dtype, {e, h, i});
  add(problem.router.bias, "router_bias", &Weights::router_bias, DType::kF32, {e});
  add(problem.router.selection_bias, "selection_bias", &Weights::selection_bias, DType::kF32, {e});
  add(problem.expert_bias && gated, "gate_bias", &Weights::gate_bias, DType::kF32, {e, i});
  add(problem.expert_bias, "up_bias", &Weights::up_bias, DType::kF32, {e, i});
  add(problem.expert_bias, "down_bias", &Weights::down_bias, DType::kF32, {e, h});
  add(s > 0 && gated, "shared_gate", &Weights::shared_gate, dtype, {s, h});
  add(s > 0, "shared_up", &Weights::shared_up, dtype, {s, h});
  add(s > 0, "shared_down", &Weights::shared_down, dtype, {h, s});
  add(problem.shared_switch, "shared_switch", &Weights::shared_switch, dtype, {1, h});
  return list;
}

}  // namespace moe
