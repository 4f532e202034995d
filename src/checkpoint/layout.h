// How checkpoints of model families name the tensors of an MoE block, and what shapes they have.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace moe::checkpoint {

enum class Layout : std::uint8_t {
  kMixtral,    ///< experts.N.{w1,w3} [I,H], w2 [H,I]: Mixtral, MiniMax-M2, Phi-3.5-MoE
  kPerExpert,  ///< experts.N.{gate,up}_proj [I,H], down_proj [H,I]: Qwen3-MoE, OLMoE, DeepSeek, GLM
  kFused,      ///< gate_up_proj [E,2I,H], gate rows first, down_proj [E,H,I]: Qwen3.5-MoE
  kLlama4,     ///< gate_up_proj [E,H,2I], gate columns first, down_proj [E,I,H]
  kGptOss,     ///< gate_up_proj [E,H,2I], gate and up columns in turn, down_proj [E,I,H], biases
  kGptOssMxfp4,  ///< gate_up_proj_blocks [E,2I,H/32,16], gate and up rows in turn, _scales, biases
  kGranite,      ///< input_linear [E,2I,H], gate rows first, output_linear [E,H,I]
};
/// "mixtral", "per-expert", "fused", "llama4", "gpt-oss", "gpt-oss-mxfp4", "granite"
[[nodiscard]] std::string_view name_of(Layout layout);

enum class Role : std::uint8_t {
  kRouter,
  kRouterBias,     ///< added to the logits
  kSelectionBias,  ///< added for the choice of experts, not for their weights
  kGate,
  kUp,
  kGateUp,  ///< both in one tensor
  kDown,
  kGateUpScales,  ///< of kGateUp in MXFP4
  kDownScales,
  kGateUpBias,
  kDownBias,
  kSharedGate,
  kSharedUp,
  kSharedGateUp,
  kSharedDown,
  kSharedSwitch,  ///< x times it, through a sigmoid, scales the shared expert
};
[[nodiscard]] std::string_view name_of(Role role);  ///< "gate", "shared down", ...

/// The sizes that shapes are made of. kShared: the intermediate size of all shared experts together.
enum class Size : std::uint8_t { kExperts, kHidden, kIntermediate, kShared };
[[nodiscard]] char letter_of(Size size);  ///< E, H, I, S

/// One dimension of a shape: size * times / over, or a number.
struct Dimension {
  std::optional<Size> size;
  int times = 1;  ///< without a size, the number
  int over = 1;
};

/// What the types of a tensor can be.
enum class Types : std::uint8_t {
  kFloat,            ///< F32, BF16, F16
  kFloatOrBlockFp8,  ///< those, or F8_E4M3 with one scale per 128x128 block beside it
  kBytes,            ///< U8
};

/// A kind of tensor that a layout has.
struct Pattern {
  std::string_view name;  ///< after "layers.L."; "{}" stands for the expert's number
  Role role;
  bool required;
  Types types;
  std::vector<Dimension> shape;
};

[[nodiscard]] const std::vector<Layout>& all_layouts();
[[nodiscard]] const std::vector<Pattern>& patterns_of(Layout layout);
/// "mlp.", ...: where the layout's block begins; tensors of the layer elsewhere are not the block's.
[[nodiscard]] std::string_view block_of(Layout layout);

/// A name that a pattern stands for.
struct Match {
  const Pattern* pattern = nullptr;  ///< null: none
  int expert = -1;                   ///< the number in it; -1 where it has none
  bool block_scales = false;  ///< the name is that of its scales: with "_scale_inv" behind it
};
/// `name` as in Pattern::name, with a number for "{}": at most 65535, without leading zeros.
[[nodiscard]] Match match(Layout layout, std::string_view name);

inline constexpr std::int64_t kMostExperts = 65536;

}  // namespace moe::checkpoint
