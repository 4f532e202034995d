// Layer sizes of known models, and what of each model this version does not compute.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "moe/config.h"

namespace moe::cli {

struct Preset {
  std::string name;
  Shape shape;             // tokens: what `moe bench run --preset` measures unless told otherwise
  std::string layers;      // of the model
  std::string router;      // the model's own
  std::string shared;      // shared experts; "none"
  std::string activation;  // the model's own
  /// What differs from what is computed here; "" when nothing does. Computed for every preset:
  /// softmax over all experts, top-k, renormalised; SwiGLU; routed experts only.
  std::string limits;
};

[[nodiscard]] const std::vector<Preset>& list_presets();
/// By name or by a beginning that only one has. Throws kInvalidArgument with the nearest match.
[[nodiscard]] const Preset& find_preset(std::string_view name);

}  // namespace moe::cli
