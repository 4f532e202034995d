// What config.json says of a model's MoE layers, and whether it is what this library computes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "checkpoint/layer_plan.h"
#include "moe/config.h"

namespace moe::checkpoint {

/// From config.json or its text_config; absent where it says nothing.
struct ModelConfig {
  std::string model_type;   ///< "qwen3_moe"
  std::string activation;   ///< "silu"
  std::string topk_method;  ///< "greedy", "group_limited_greedy"; DeepSeek-V2
  std::string scoring;      ///< scoring_func: "sigmoid"
  std::optional<std::int64_t> hidden;
  std::optional<std::int64_t> intermediate;  ///< of one expert
  std::optional<std::int64_t> experts;
  std::optional<std::int64_t> top_k;
  std::optional<bool> renormalised;          ///< norm_topk_prob
  std::optional<std::int64_t> groups;        ///< n_group
  std::optional<std::int64_t> top_groups;    ///< topk_group
  std::optional<double> scale;               ///< routed_scaling_factor
  std::optional<double> limit;               ///< swiglu_limit
  std::optional<std::int64_t> shared_count;  ///< n_shared_experts
  std::optional<std::int64_t> shared;        ///< intermediate size of all shared experts together
};

/// Throws Error(kIo) for a checkpoint without config.json and for one that is damaged.
[[nodiscard]] ModelConfig read_config(const Checkpoint& checkpoint);
/// The same for the text of a file; `path` stands for the checkpoint in messages.
[[nodiscard]] ModelConfig parse_config(const std::string& path, const std::string& text_of_file);

/// The problem that a layer's MoE block is, for any number of tokens: shape.tokens is 1. Sizes, biases
/// and shared experts are what the layer's tensors say. Throws Error(kUnsupported) naming everything of
/// the block that is not computed; Error(kIo) when config.json and the tensors differ in a size or K is
/// not told.
[[nodiscard]] Problem problem_of(const ModelConfig& config, const LayerPlan& plan, DType dtype);
/// The same from config.json alone, which must tell all sizes; of 64 tokens, fp32.
[[nodiscard]] Problem problem_of(const ModelConfig& config);

}  // namespace moe::checkpoint
