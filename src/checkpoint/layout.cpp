#include "checkpoint/layout.h"

#include <charconv>

#include "core/check.h"

namespace moe::checkpoint {
namespace {

constexpr Dimension kE{Size::kExperts};
constexpr Dimension kH{Size::kHidden};
constexpr Dimension kI{Size::kIntermediate};
constexpr Dimension kTwoI{Size::kIntermediate, 2};
constexpr Dimension kS{Size::kShared};
constexpr Dimension kTwoS{Size::kShared, 2};
constexpr Dimension kOne{std::nullopt, 1};
// MXFP4: 32 values share a scale and lie in 16 bytes.
constexpr Dimension kHiddenBlocks{Size::kHidden, 1, 32};
constexpr Dimension kIntermediateBlocks{Size::kIntermediate, 1, 32};
constexpr Dimension kBlockBytes{std::nullopt, 16};

constexpr std::string_view kScaleSuffix = "_scale_inv";

std::vector<Pattern> operator+(std::vector<Pattern> left, const std::vector<Pattern>& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

/// Router and shared experts as Qwen and DeepSeek name them.
std::vector<Pattern> qwen_around() {
  return {{"mlp.gate.weight", Role::kRouter, true, Types::kFloat, {kE, kH}},
          {"mlp.gate.e_score_correction_bias", Role::kSelectionBias, false, Types::kFloat, {kE}},
          {"mlp.shared_experts.gate_proj.weight",
           Role::kSharedGate,
           false,
           Types::kFloatOrBlockFp8,
           {kS, kH}},
          {"mlp.shared_experts.up_proj.weight",
           Role::kSharedUp,
           false,
           Types::kFloatOrBlockFp8,
           {kS, kH}},
          {"mlp.shared_experts.down_proj.weight",
           Role::kSharedDown,
           false,
           Types::kFloatOrBlockFp8,
           {kH, kS}},
          {"mlp.shared_expert.gate_proj.weight",
           Role::kSharedGate,
           false,
           Types::kFloatOrBlockFp8,
           {kS, kH}},
          {"mlp.shared_expert.up_proj.weight",
           Role::kSharedUp,
           false,
           Types::kFloatOrBlockFp8,
           {kS, kH}},
          {"mlp.shared_expert.down_proj.weight",
           Role::kSharedDown,
           false,
           Types::kFloatOrBlockFp8,
           {kH, kS}},
          {"mlp.shared_expert_gate.weight", Role::kSharedSwitch, false, Types::kFloat, {kOne, kH}}};
}

/// Router and biases of gpt-oss.
std::vector<Pattern> gpt_oss_around() {
  return {{"mlp.router.weight", Role::kRouter, true, Types::kFloat, {kE, kH}},
          {"mlp.router.bias", Role::kRouterBias, true, Types::kFloat, {kE}},
          {"mlp.experts.gate_up_proj_bias", Role::kGateUpBias, true, Types::kFloat, {kE, kTwoI}},
          {"mlp.experts.down_proj_bias", Role::kDownBias, true, Types::kFloat, {kE, kH}}};
}

std::vector<Pattern> make_patterns(Layout layout) {
  switch (layout) {
    case Layout::kMixtral:
      return {{"block_sparse_moe.gate.weight", Role::kRouter, true, Types::kFloat, {kE, kH}},
              {"block_sparse_moe.e_score_correction_bias",
               Role::kSelectionBias,
               false,
               Types::kFloat,
               {kE}},
              {"block_sparse_moe.experts.{}.w1.weight",
               Role::kGate,
               true,
               Types::kFloatOrBlockFp8,
               {kI, kH}},
              {"block_sparse_moe.experts.{}.w3.weight",
               Role::kUp,
               true,
               Types::kFloatOrBlockFp8,
               {kI, kH}},
              {"block_sparse_moe.experts.{}.w2.weight",
               Role::kDown,
               true,
               Types::kFloatOrBlockFp8,
               {kH, kI}}};
    case Layout::kPerExpert:
      return qwen_around() + std::vector<Pattern>{{"mlp.experts.{}.gate_proj.weight",
                                                   Role::kGate,
                                                   true,
                                                   Types::kFloatOrBlockFp8,
                                                   {kI, kH}},
                                                  {"mlp.experts.{}.up_proj.weight",
                                                   Role::kUp,
                                                   true,
                                                   Types::kFloatOrBlockFp8,
                                                   {kI, kH}},
                                                  {"mlp.experts.{}.down_proj.weight",
                                                   Role::kDown,
                                                   true,
                                                   Types::kFloatOrBlockFp8,
                                                   {kH, kI}}};
    case Layout::kFused:
      return qwen_around() +
             std::vector<Pattern>{
                 {"mlp.experts.gate_up_proj", Role::kGateUp, true, Types::kFloat, {kE, kTwoI, kH}},
                 {"mlp.experts.down_proj", Role::kDown, true, Types::kFloat, {kE, kH, kI}}};
    case Layout::kLlama4:
      return {{"feed_forward.router.weight", Role::kRouter, true, Types::kFloat, {kE, kH}},
              {"feed_forward.experts.gate_up_proj",
               Role::kGateUp,
               true,
               Types::kFloat,
               {kE, kH, kTwoI}},
              {"feed_forward.experts.down_proj", Role::kDown, true, Types::kFloat, {kE, kI, kH}},
              {"feed_forward.shared_expert.gate_proj.weight",
               Role::kSharedGate,
               false,
               Types::kFloat,
               {kS, kH}},
              {"feed_forward.shared_expert.up_proj.weight",
               Role::kSharedUp,
               false,
               Types::kFloat,
               {kS, kH}},
              {"feed_forward.shared_expert.down_proj.weight",
               Role::kSharedDown,
               false,
               Types::kFloat,
               {kH, kS}}};
    case Layout::kGptOss:
      return gpt_oss_around() +
             std::vector<Pattern>{
                 {"mlp.experts.gate_up_proj", Role::kGateUp, true, Types::kFloat, {kE, kH, kTwoI}},
                 {"mlp.experts.down_proj", Role::kDown, true, Types::kFloat, {kE, kI, kH}}};
    case Layout::kGptOssMxfp4:
      return gpt_oss_around() + std::vector<Pattern>{{"mlp.experts.gate_up_proj_blocks",
                                                      Role::kGateUp,
                                                      true,
                                                      Types::kBytes,
                                                      {kE, kTwoI, kHiddenBlocks, kBlockBytes}},
                                                     {"mlp.experts.gate_up_proj_scales",
                                                      Role::kGateUpScales,
                                                      true,
                                                      Types::kBytes,
                                                      {kE, kTwoI, kHiddenBlocks}},
                                                     {"mlp.experts.down_proj_blocks",
                                                      Role::kDown,
                                                      true,
                                                      Types::kBytes,
                                                      {kE, kH, kIntermediateBlocks, kBlockBytes}},
                                                     {"mlp.experts.down_proj_scales",
                                                      Role::kDownScales,
                                                      true,
                                                      Types::kBytes,
                                                      {kE, kH, kIntermediateBlocks}}};
    case Layout::kGranite:
      return {
          {"block_sparse_moe.router.layer.weight", Role::kRouter, true, Types::kFloat, {kE, kH}},
          {"block_sparse_moe.input_linear.weight",
           Role::kGateUp,
           true,
           Types::kFloat,
           {kE, kTwoI, kH}},
          {"block_sparse_moe.output_linear.weight", Role::kDown, true, Types::kFloat, {kE, kH, kI}},
          {"shared_mlp.input_linear.weight",
           Role::kSharedGateUp,
           false,
           Types::kFloat,
           {kTwoS, kH}},
          {"shared_mlp.output_linear.weight", Role::kSharedDown, false, Types::kFloat, {kH, kS}}};
  }
  return {};
}

/// The number in `name` where `pattern` has "{}"; -1 when the pattern has none, nullopt when the name
/// is another.
std::optional<int> expert_in(std::string_view pattern, std::string_view name) {
  const std::size_t hole = pattern.find("{}");
  if (hole == std::string_view::npos) {
    if (name != pattern) return std::nullopt;
    return -1;
  }
  const std::string_view before = pattern.substr(0, hole);
  const std::string_view after = pattern.substr(hole + 2);
  if (!name.starts_with(before) || !name.ends_with(after) ||
      name.size() <= before.size() + after.size()) {
    return std::nullopt;
  }
  const std::string_view digits =
      name.substr(before.size(), name.size() - before.size() - after.size());
  int expert = 0;
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), expert);
  if (parsed.ec != std::errc() || parsed.ptr != digits.data() + digits.size() || expert < 0 ||
      expert >= kMostExperts || digits != std::to_string(expert)) {
    return std::nullopt;
  }
  return expert;
}

}  // namespace

std::string_view name_of(Layout layout) {
  switch (layout) {
    case Layout::kMixtral:
      return "mixtral";
    case Layout::kPerExpert:
      return "per-expert";
    case Layout::kFused:
      return "fused";
    case Layout::kLlama4:
      return "llama4";
    case Layout::kGptOss:
      return "gpt-oss";
    case Layout::kGptOssMxfp4:
      return "gpt-oss-mxfp4";
    case Layout::kGranite:
      return "granite";
  }
  return {};
}

std::string_view name_of(Role role) {
  switch (role) {
    case Role::kRouter:
      return "router";
    case Role::kRouterBias:
      return "router bias";
    case Role::kSelectionBias:
      return "selection bias";
    case Role::kGate:
      return "gate";
    case Role::kUp:
      return "up";
    case Role::kGateUp:
      return "gate and up";
    case Role::kDown:
      return "down";
    case Role::kGateUpScales:
      return "gate and up scales";
    case Role::kDownScales:
      return "down scales";
    case Role::kGateUpBias:
      return "gate and up bias";
    case Role::kDownBias:
      return "down bias";
    case Role::kSharedGate:
      return "shared gate";
    case Role::kSharedUp:
      return "shared up";
    case Role::kSharedGateUp:
      return "shared gate and up";
    case Role::kSharedDown:
      return "shared down";
    case Role::kSharedSwitch:
      return "gate of the shared expert";
  }
  return {};
}

char letter_of(Size size) {
  switch (size) {
    case Size::kExperts:
      return 'E';
    case Size::kHidden:
      return 'H';
    case Size::kIntermediate:
      return 'I';
    case Size::kShared:
      return 'S';
  }
  return '?';
}

const std::vector<Layout>& all_layouts() {
  static const std::vector<Layout> layouts = {
      Layout::kMixtral, Layout::kPerExpert,   Layout::kFused,  Layout::kLlama4,
      Layout::kGptOss,  Layout::kGptOssMxfp4, Layout::kGranite};
  return layouts;
}

const std::vector<Pattern>& patterns_of(Layout layout) {
  static const std::vector<std::vector<Pattern>> patterns = [] {
    std::vector<std::vector<Pattern>> made;
    for (const Layout each : all_layouts()) made.push_back(make_patterns(each));
    return made;
  }();
  return patterns[static_cast<std::size_t>(layout)];
}

std::string_view block_of(Layout layout) {
  switch (layout) {
    case Layout::kMixtral:
    case Layout::kGranite:
      return "block_sparse_moe.";
    case Layout::kLlama4:
      return "feed_forward.";
    default:
      return "mlp.";
  }
}

Match match(Layout layout, std::string_view name) {
  const bool scales = name.ends_with(kScaleSuffix);
  if (scales) name.remove_suffix(kScaleSuffix.size());
  for (const Pattern& pattern : patterns_of(layout)) {
    if (scales && pattern.types != Types::kFloatOrBlockFp8) continue;
    if (const std::optional<int> expert = expert_in(pattern.name, name)) {
      return {&pattern, *expert, scales};
    }
  }
  return {};
}

}  // namespace moe::checkpoint
