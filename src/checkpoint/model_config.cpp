#include "checkpoint/model_config.h"

#include <array>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/json_text.h"
#include "core/check.h"

namespace moe::checkpoint {
namespace {

using nlohmann::json;

/// The value of the first of `names` that the document has.
const json* find_first(const json& document, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const auto at = document.find(name);
    if (at != document.end() && !at->is_null()) return &*at;
  }
  return nullptr;
}

std::optional<std::int64_t> size_in(const json& document,
                                    std::initializer_list<const char*> names) {
  const json* value = find_first(document, names);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_integer() || value->get<std::int64_t>() < 1) {
    fail(ErrorCode::kIo, "config.json: {} is {}, not a size", *names.begin(),
         printable(value->dump().substr(0, 40)));
  }
  return value->get<std::int64_t>();
}

std::string text_in(const json& document, std::initializer_list<const char*> names) {
  const json* value = find_first(document, names);
  return value != nullptr && value->is_string() ? value->get<std::string>() : std::string();
}

enum class Routing : std::uint8_t {
  kRenormalised,    // softmax and top-k in either order: the same weights
  kAsNormTopkProb,  // softmax over all, top-k, renormalised if norm_topk_prob says so
  kOther,
};

struct Family {
  std::string_view model_type;
  Routing routing;
  std::string_view router;  // what it is, where it is another
};

/// Routers as the models' own code has them. What a config without norm_topk_prob means differs between
/// families, so that it is refused.
constexpr std::array<Family, 21> kFamilies = {{
    {"mixtral", Routing::kRenormalised, ""},
    {"granitemoe", Routing::kRenormalised, ""},
    {"granitemoeshared", Routing::kRenormalised, ""},
    {"granitemoehybrid", Routing::kRenormalised, ""},
    {"qwen2_moe", Routing::kAsNormTopkProb, ""},
    {"qwen3_moe", Routing::kAsNormTopkProb, ""},
    {"qwen3_next", Routing::kAsNormTopkProb, ""},
    {"olmoe", Routing::kAsNormTopkProb, ""},
    {"qwen3_5_moe", Routing::kRenormalised, ""},
    {"qwen3_5_moe_text", Routing::kRenormalised, ""},
    {"deepseek_v2", Routing::kOther, "softmax without renormalisation, in groups, with a scale"},
    {"deepseek_v3", Routing::kOther, "sigmoid with a selection bias, groups and a scale"},
    {"kimi_k2", Routing::kOther, "sigmoid with a selection bias, groups and a scale"},
    {"glm4_moe", Routing::kOther, "sigmoid with a selection bias and a scale"},
    {"minimax_m2", Routing::kOther, "sigmoid with a selection bias"},
    {"phimoe", Routing::kOther, "sparsemixer"},
    {"gpt_oss", Routing::kRenormalised, ""},
    {"llama4", Routing::kOther, "top-1 and a sigmoid that scales the expert's input"},
    {"llama4_text", Routing::kOther, "top-1 and a sigmoid that scales the expert's input"},
    {"nemotron_h", Routing::kOther, "sigmoid with a selection bias and a scale"},
    {"gemma4_text", Routing::kOther, "softmax of the normalised input with a scale per expert"},
}};

const Family* find_family(std::string_view model_type) {
  for (const Family& family : kFamilies) {
    if (family.model_type == model_type) return &family;
  }
  return nullptr;
}

void check_size(const LayerPlan& plan, const char* name, std::optional<std::int64_t> told,
                std::int64_t stored) {
  if (told && *told != stored) {
    fail(ErrorCode::kIo, "config.json has {}={}, but the tensors of layer {} have {}", name, *told,
         plan.layer, stored);
  }
}

}  // namespace

ModelConfig read_config(const Checkpoint& checkpoint) {
  if (!checkpoint.config()) {
    fail(ErrorCode::kIo,
         "{} has no config.json, which tells the router and the number of experts "
         "per token",
         checkpoint.path());
  }
  return parse_config(checkpoint.path(), *checkpoint.config());
}

ModelConfig parse_config(const std::string& path, const std::string& text_of_file) {
  const json document = parse_json("config.json", text_of_file);
  if (!document.is_object()) {
    fail(ErrorCode::kIo, "config.json of {} is not an object", path);
  }
  // Models that also see have the text model's part in a member.
  const auto nested = document.find("text_config");
  const json& text = nested != document.end() && nested->is_object() ? *nested : document;
  ModelConfig config;
  config.model_type = text_in(text, {"model_type"});
  if (config.model_type.empty()) config.model_type = text_in(document, {"model_type"});
  config.activation = text_in(text, {"hidden_act", "mlp_hidden_act", "hidden_activation"});
  config.hidden = size_in(text, {"hidden_size"});
  config.intermediate = size_in(text, {"moe_intermediate_size", "intermediate_size"});
  config.experts = size_in(text, {"num_experts", "n_routed_experts", "num_local_experts"});
  config.top_k =
      size_in(text, {"num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_top_k"});
  const json* renormalised = find_first(text, {"norm_topk_prob"});
  if (renormalised != nullptr && renormalised->is_boolean()) {
    config.renormalised = renormalised->get<bool>();
  }
  return config;
}

Problem problem_of(const ModelConfig& config, const LayerPlan& plan, DType dtype) {
  std::vector<std::string> missing;
  const Family* family = find_family(config.model_type);
  if (family == nullptr) {
    missing.push_back(fmt::format("the router of model_type {}", quote_name(config.model_type)));
  } else if (family->routing == Routing::kOther) {
    missing.push_back(fmt::format("its router ({})", family->router));
  } else if (family->routing == Routing::kAsNormTopkProb && !config.renormalised.value_or(false)) {
    missing.emplace_back(
        "weights that are not renormalised after top-k (norm_topk_prob is not true)");
  }
  const std::array<std::pair<Role, const char*>, 5> unsupported = {
      {{Role::kRouterBias, "a bias of the router"},
       {Role::kSelectionBias, "a selection bias"},
       {Role::kGateUpBias, "biases of the experts"},
       {Role::kSharedDown, "shared experts"},
       {Role::kSharedSwitch, "a gate of the shared expert"}}};
  for (const auto& [role, what] : unsupported) {
    if (plan.has(role)) missing.emplace_back(what);
  }
  if (plan.layout == Layout::kGptOss || plan.layout == Layout::kGptOssMxfp4) {
    missing.emplace_back("the clamped SwiGLU of gpt-oss");
  } else if (!config.activation.empty() && config.activation != "silu" &&
             config.activation != "swiglu") {
    missing.push_back(fmt::format("the activation {}", quote_name(config.activation)));
  }
  if (!missing.empty()) {
    fail(ErrorCode::kUnsupported, "layer {} ({}, layout {}) needs what is not computed yet: {}",
         plan.layer, config.model_type.empty() ? "no model_type" : printable(config.model_type),
         name_of(plan.layout), fmt::join(missing, ", "));
  }
  plan.check_complete();
  check_size(plan, "H", config.hidden, plan.hidden);
  check_size(plan, "I", config.intermediate, plan.intermediate);
  check_size(plan, "E", config.experts, plan.experts);
  if (!config.top_k) {
    fail(ErrorCode::kIo, "config.json has no num_experts_per_tok, the number of experts per token");
  }
  Problem problem{.shape = {.tokens = 1,
                            .hidden = plan.hidden,
                            .intermediate = plan.intermediate,
                            .experts = plan.experts,
                            .top_k = *config.top_k},
                  .dtype = dtype};
  validate(problem.shape);
  return problem;
}

}  // namespace moe::checkpoint
