// The tensors that a problem's weights consist of.
#pragma once

#include <vector>

#include "moe/layer.h"

namespace moe {

/// Which one. NOTE: without the name nvcc writes parentheses, of which g++ warns.
using WeightMember = TensorView Weights::*;

/// One tensor that a problem's weights consist of.
struct WeightTensor {
  const char* name;
  WeightMember view;
  TensorView expected;  // without data
};
/// All of them, in the order of Weights.
[[nodiscard]] std::vector<WeightTensor> weight_tensors(const Problem& problem);

}  // namespace moe
