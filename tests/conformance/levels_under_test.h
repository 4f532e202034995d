// The levels the conformance tests run: all that src/levels.def registers for the CPU. A new level is
// tested without a line here.
#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moe/error.h"
#include "moe/layer.h"

namespace moe {

inline std::vector<std::string> cpu_levels() {
  std::vector<std::string> names;
  for (const LevelInfo& level : list_levels()) {
    if (level.on(Backend::kCpu)) names.push_back(level.name);
  }
  return names;
}

inline LayerOptions options_of(const std::string& level, const Problem& problem) {
  return {.level = level, .problem = problem, .tune_seconds = 0, .tune_cache = "off"};
}

/// The layer, or why this machine or build cannot run it.
struct LayerOrReason {
  std::optional<Layer> layer;
  std::string reason;
};
inline LayerOrReason create_layer(const LayerOptions& options, const Weights& weights) {
  try {
    return {Layer::create(options, weights), {}};
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported && error.code() != ErrorCode::kOutOfMemory) throw;
    return {std::nullopt, error.what()};
  }
}

}  // namespace moe

/// `Layer name = ...` or GTEST_SKIP with the level's own reason: what cannot run never passes.
#define MOE_CREATE_OR_SKIP(name, options, weights)                               \
  ::moe::LayerOrReason name##_or_reason = ::moe::create_layer(options, weights); \
  if (!name##_or_reason.layer) GTEST_SKIP() << name##_or_reason.reason;          \
  ::moe::Layer& name = *name##_or_reason.layer
