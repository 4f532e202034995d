// The levels: successive ways to execute the same MoE layer. src/levels.def registers them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "moe/config.h"

namespace moe {

struct LevelInfo {
  int number = 0;
  std::string
      name;  ///< "grouped"; what the CLI and LayerOptions::level take (the number works too)
  std::string symbol;     ///< "level04_grouped": file name on every backend and docs page
  std::string technique;  ///< what the level does, in a few words
  int builds_on = 0;      ///< number of the level it extends; its own number for level 0
  bool on_cpu = false;    ///< an implementation for the backend is in the source tree
  bool on_cuda = false;
  /// Another way of doing what level `number` does, measured beside it when asked for by name. Not a
  /// step of the ladder; `symbol` is the file that holds it, its docs are on the level's page.
  bool variant = false;

  [[nodiscard]] bool on(Backend backend) const {
    return backend == Backend::kCpu ? on_cpu : on_cuda;
  }
};

/// All levels in ascending order, without the variants.
[[nodiscard]] const std::vector<LevelInfo>& list_levels();
/// All variants, by the number of their level.
[[nodiscard]] const std::vector<LevelInfo>& list_variants();
/// By number ("4"), name ("grouped"), alias ("cudagraphs") or name of a variant. Throws Error(kInvalidArgument) naming
/// the nearest match.
[[nodiscard]] const LevelInfo& find_level(std::string_view number_or_name);

}  // namespace moe
