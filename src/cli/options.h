// Options that several commands share: what to compute, and how.
#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "cli/checkpoint_data.h"
#include "cli/presets.h"
#include "moe/layer.h"

namespace moe::cli {

/// As typed. Everything is read as text first, so that a bad value is reported by cli/parse.h.
struct WorkloadOptions {
  std::string preset;
  std::string thiek;
  std::string axis;
  std::string router;
  std::string activation;
  bool expert_bias = false;
  std::string shared;
  bool plain = false;
  std::string dtype;    // "": bf16 on a GPU, fp32 on the CPU
  std::string backend;  // "": cuda where this build and this machine have it, else cpu
  std::string threads = "0";
  std::string seed = "0";
  std::string skew = "uniform";
  std::string isa = "auto";
  std::string workspace_limit;
  std::string tune_seconds = "5";
  std::string tune_cache;
  std::string data = "normal";

  void add_to(CLI::App& command);
  /// --data, for the commands that run on a checkpoint's weights too.
  void add_data_to(CLI::App& command);
};

/// The same, understood and checked.
struct Workload {
  const Preset* preset = nullptr;                    // null when --thiek or --data gave the shape
  std::shared_ptr<const CheckpointData> checkpoint;  // null: seeded weights
  LayerOptions layer;                                // of the first of `tokens`; no level yet
  std::vector<std::int64_t> tokens;
  bool axis_given = false;
  bool plain = false;  // of the preset only the sizes
  std::string skew;
  std::uint64_t seed = 0;
};
[[nodiscard]] Workload resolve(const WorkloadOptions& options);

/// Options that reproduce `workload` at `tokens`, each with its value: "--thiek 64,... --dtype ...".
[[nodiscard]] std::string repro_options(const Workload& workload, const std::string& tokens);

/// "moe_journey", "moe_scale" or "moe_decode" and level names, "auto" among them, empty = the suite's;
/// "moe_myths" and myths' names, empty = all.
struct Targets {
  std::string suite;
  std::vector<std::string> levels;
  std::vector<std::string> myths;
};
/// From every -t. Throws kInvalidArgument for unknown names and mixed suites.
[[nodiscard]] Targets parse_targets(const std::vector<std::string>& targets);

inline constexpr const char* kJourney = "moe_journey";
inline constexpr const char* kScale = "moe_scale";
inline constexpr const char* kDecode = "moe_decode";
inline constexpr const char* kMyths = "moe_myths";

}  // namespace moe::cli
