// What one layer's MoE block is made of in a checkpoint: which tensor plays which part, and what is
// missing. Reads headers only.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/layout.h"

namespace moe::checkpoint {

enum class Use : std::uint8_t { kConsumed, kIgnored, kMissing };
[[nodiscard]] std::string_view name_of(Use use);  ///< "consumed" | "ignored" | "missing"

/// A line of the report.
struct LayerTensor {
  std::string name;
  Use use = Use::kConsumed;
  std::string role = {};    ///< "gate", "gate scales"; "" when ignored
  int expert = -1;          ///< -1: not of one expert
  std::string reason = {};  ///< why it is ignored
  bool in_block = true;
  std::string shard = {};  ///< "" when missing
  std::optional<StoredTensor> stored =
      {};  ///< absent when missing, and for ignored ones until described
};

/// A tensor that is used, and the block scales of an FP8 one (else null).
struct Part {
  Located at;
  Located scales;
};

struct LayerPlan {
  std::int64_t layer = 0;
  std::string prefix;  ///< what stands before "mlp." in names: "model.layers.3."
  Layout layout = Layout::kMixtral;
  std::int64_t experts = 0;                    ///< E
  std::int64_t hidden = 0;                     ///< H
  std::int64_t intermediate = 0;               ///< I; like all of them 0 when no tensor tells
  std::int64_t shared = 0;                     ///< I of all shared experts together; 0: none
  std::vector<LayerTensor> tensors;            ///< by use, then name
  std::map<std::pair<Role, int>, Part> parts;  ///< of role and expert (-1: of no single one)

  [[nodiscard]] std::vector<const LayerTensor*> with(Use use) const;
  [[nodiscard]] bool has(Role role) const;
  /// Throws Error(kIo) naming the first missing tensor; kUnsupported naming the first tensor in the
  /// block that the layout does not know.
  void check_complete() const;
};

/// Opens the shards of the block's tensors, no others. Throws with one sentence: no such layer, no
/// MoE block of a known layout in it, tensors of two layouts, two tensors for one part (all
/// kInvalidArgument), a tensor of a wrong type or shape (kIo). Missing tensors are in the plan.
[[nodiscard]] LayerPlan plan_layer(Checkpoint& checkpoint, std::int64_t layer);

/// Adds type, shape and place of the ignored tensors; opens the shards that hold them.
void describe_ignored(Checkpoint& checkpoint, LayerPlan& plan);

/// One layer in the overview of a checkpoint, from names alone.
struct LayerSummary {
  std::int64_t layer = 0;
  std::string layout;               ///< "" without an MoE block; "ambiguous" with two layouts
  std::int64_t tensors = 0;         ///< of the layer, not only of the block
  std::vector<std::string> shards;  ///< that the layer's tensors are in
};
[[nodiscard]] std::vector<LayerSummary> list_layers(const Checkpoint& checkpoint);

}  // namespace moe::checkpoint
