// What a layer has beyond softmax routing, renormalised, and SwiGLU, as level 09's kernels take it.
#pragma once

#include <cstdint>

#include "cuda/device/activation_step.h"
#include "cuda/device/router_rule.h"

namespace moe::cuda {

/// The default is the plain layer. Views: the memory is the caller's. bf16 but for biases and routes.
///
/// A shared expert of S features is `parts` experts of I, the last one narrower: experts E, E + 1, ...,
/// which every token has in its slots K, K + 1, ...
struct StreamBlock {
  bool plain = true;                            // nothing of what follows
  RouterRule rule = {};                         // without its bias
  bool plain_rule = true;                       // RouterRule::plain() of that
  const float* router_bias = nullptr;           // [E] or null; added where logits are made
  bool given = false;                           // Scoring::kGiven: no router but
  const std::int32_t* given_experts = nullptr;  // [T,K]; outside 0..E-1: the slot is not used
  const float* given_weights = nullptr;         // [T,K]
  bool weight_on_input = false;
  bool gated = true;  // else max(up, 0)²
  bool plain_activation = true;
  ActivationStep activation = {};
  const float* gate_bias = nullptr;     // [E,I] or null
  const float* up_bias = nullptr;       // [E,I] or null
  const float* down_bias = nullptr;     // [E,H] or null
  const void* shared_gate = nullptr;    // [S,H]
  const void* shared_up = nullptr;      // [S,H]
  const void* shared_down = nullptr;    // [H,S]
  const void* shared_switch = nullptr;  // [H] or null: weighs the shared expert by sigmoid(x · it)
  int shared = 0;                       // S
  int parts = 0;

  /// The block of a problem and its weights, without the routes of a call.
  [[nodiscard]] static StreamBlock of(const Problem& problem, const Weights& weights) {
    StreamBlock block;
    block.plain = is_plain(problem);
    block.rule = RouterRule::of(problem.router, weights);
    block.router_bias = block.rule.bias;
    block.rule.bias = nullptr;
    block.plain_rule = block.rule.plain();
    block.given = problem.router.scoring == Scoring::kGiven;
    block.weight_on_input = problem.router.weight_on_input;
    block.gated = problem.activation.gated();
    block.plain_activation = problem.activation == Activation{};
    if (block.gated) block.activation = ActivationStep::of(problem.activation);
    if (problem.expert_bias) {
      if (block.gated) block.gate_bias = weights.gate_bias.as<const float>();
      block.up_bias = weights.up_bias.as<const float>();
      block.down_bias = weights.down_bias.as<const float>();
    }
    block.shared_gate = weights.shared_gate.data;
    block.shared_up = weights.shared_up.data;
    block.shared_down = weights.shared_down.data;
    block.shared_switch = weights.shared_switch.data;
    block.shared = static_cast<int>(problem.shared_intermediate);
    block.parts = static_cast<int>((problem.shared_intermediate + problem.shape.intermediate - 1) /
                                   problem.shape.intermediate);
    return block;
  }
  [[nodiscard]] static bool is_plain(const Problem& problem) {
    return problem == Problem{.shape = problem.shape, .dtype = problem.dtype};
  }
  /// Whether a row of gate, up and down is all that its product takes: SwiGLU as it is, no biases, no
  /// shared expert, weights on the output.
  [[nodiscard]] bool plain_experts() const {
    return !weight_on_input && plain_activation && up_bias == nullptr && parts == 0;
  }
};

}  // namespace moe::cuda
