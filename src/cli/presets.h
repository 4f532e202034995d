// MoE layers of known models: sizes, router, activation, biases and shared expert.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "moe/config.h"

namespace moe::cli {

struct Preset {
  std::string name;
  Problem problem;     // tokens: what `moe bench run --preset` measures unless told otherwise
  std::string layers;  // of the model
  /// What of the model's block is not computed, or not sure; "" when nothing is.
  std::string limits;
};

[[nodiscard]] const std::vector<Preset>& list_presets();
/// By name or by a beginning that only one has. Throws kInvalidArgument with the nearest match.
[[nodiscard]] const Preset& find_preset(std::string_view name);

}  // namespace moe::cli
