// --data ckpt:DIR#LAYER: a layer's weights from a checkpoint in place of seeded ones.
#pragma once

#include <memory>
#include <string>

#include "checkpoint/load.h"
#include "checkpoint/model_config.h"

namespace moe::cli {

/// A layer whose MoE block this version computes; headers read, no weights yet.
struct CheckpointData {
  std::string text;  // as typed: "ckpt:DIR#LAYER"
  checkpoint::Checkpoint model;
  checkpoint::LayerPlan plan;
  checkpoint::ModelConfig config;
};

/// `text` is the value of --data. Throws what opening, planning and problem_of() throw.
[[nodiscard]] std::shared_ptr<CheckpointData> open_checkpoint(const std::string& text);

/// Reads the weights. Throws kOutOfMemory when the machine has no room for them.
[[nodiscard]] checkpoint::LayerContents load_weights(const CheckpointData& data,
                                                     const Problem& problem);

/// The text as one word of a shell.
[[nodiscard]] std::string shell_word(const std::string& text);

}  // namespace moe::cli
