// The tensors that a problem's weights consist of.
#pragma once

#include <vector>

#include "moe/layer.h"

namespace moe {

/// One tensor that a problem's weights consist of.
struct WeightTensor {
  const char* name;
  TensorView Weights::*view;
  TensorView expected;  // without data
};
/// All of them, in the order of Weights.
[[nodiscard]] std::vector<WeightTensor> weight_tensors(const Problem& problem);

}  // namespace moe
