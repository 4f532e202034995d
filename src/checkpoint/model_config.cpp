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

std::optional<double> number_in(const json& document, std::initializer_list<const char*> names) {
  const json* value = find_first(document, names);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) {
    fail(ErrorCode::kIo, "config.json: {} is {}, not a number", *names.begin(),
         printable(value->dump().substr(0, 40)));
  }
  return value->get<double>();
}

enum class Routing : std::uint8_t {
  kRenormalised,    // softmax and top-k in either order: the same weights
  kAsNormTopkProb,  // softmax over all, top-k, renormalised if norm_topk_prob says so
  kDeepSeekV2,      // the same, by groups where topk_method says so, a scale where not renormalised
  kSigmoid,       // sigmoid with a selection bias, groups, a scale; renormalised unless told not to
  kSqrtSoftplus,  // the same with sqrt(softplus), without groups
  kInputSigmoid,  // top-k, then a sigmoid that scales the expert's input
  kSparseMixer,
  kOther,
};

struct Family {
  std::string_view model_type;
  Routing routing;
  std::string_view router;  // what it is, where it is another
};

/// Routers as the models' own code has them. What a config without norm_topk_prob means differs between
/// families, so that it is refused where softmax may go either way.
constexpr std::array<Family, 24> kFamilies = {{
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
    {"deepseek_v2", Routing::kDeepSeekV2, ""},
    {"deepseek_v3", Routing::kSigmoid, ""},
    {"deepseek_v32", Routing::kSigmoid, ""},
    {"deepseek_v4", Routing::kSqrtSoftplus, ""},
    {"kimi_k2", Routing::kSigmoid, ""},
    {"glm4_moe", Routing::kSigmoid, ""},
    {"glm4_moe_lite", Routing::kSigmoid, ""},
    {"minimax_m2", Routing::kSigmoid, ""},
    {"phimoe", Routing::kSparseMixer, ""},
    {"gpt_oss", Routing::kRenormalised, ""},
    {"llama4", Routing::kInputSigmoid, ""},
    {"llama4_text", Routing::kInputSigmoid, ""},
    {"nemotron_h", Routing::kSigmoid, ""},
    {"gemma4_text", Routing::kOther, "softmax of the normalised input with a scale per expert"},
}};

const Family* find_family(std::string_view model_type) {
  for (const Family& family : kFamilies) {
    if (family.model_type == model_type) return &family;
  }
  return nullptr;
}

/// The family's router, without what only tensors or other settings tell; adds what is missing.
Router router_of(const ModelConfig& config, std::vector<std::string>& missing) {
  Router router;
  const Family* family = find_family(config.model_type);
  if (family == nullptr) {
    missing.push_back(fmt::format("the router of model_type {}", quote_name(config.model_type)));
    return router;
  }
  const auto scale = static_cast<float>(config.scale.value_or(1));
  const auto group = [&] {
    router.groups = config.groups.value_or(1);
    router.top_groups = config.top_groups.value_or(1);
  };
  switch (family->routing) {
    case Routing::kRenormalised:
      break;
    case Routing::kAsNormTopkProb:
      if (!config.renormalised) {
        missing.emplace_back("norm_topk_prob, which config.json does not tell");
      }
      router.renormalise = config.renormalised.value_or(true);
      break;
    case Routing::kDeepSeekV2:
      router.renormalise = config.renormalised.value_or(false);
      if (!router.renormalise) router.scale = scale;
      if (config.topk_method == "group_limited_greedy") group();
      break;
    case Routing::kSigmoid:
    case Routing::kSqrtSoftplus:
      router.scoring =
          family->routing == Routing::kSigmoid ? Scoring::kSigmoid : Scoring::kSqrtSoftplus;
      router.renormalise = config.renormalised.value_or(true);
      router.selection_bias = true;
      router.scale = scale;
      group();
      break;
    case Routing::kInputSigmoid:
      router.scoring = Scoring::kSigmoid;
      router.renormalise = false;
      router.weight_on_input = true;
      break;
    case Routing::kSparseMixer:
      router.scoring = Scoring::kSparseMixer;
      router.renormalise = false;
      break;
    case Routing::kOther:
      missing.push_back(fmt::format("its router ({})", family->router));
      break;
  }
  return router;
}

bool is_gpt_oss(const ModelConfig& config) {
  return config.model_type == "gpt_oss";
}

Activation activation_of(const ModelConfig& config, std::vector<std::string>& missing) {
  constexpr double kGptOssLimit = 7;
  constexpr float kGptOssAlpha = 1.702F;
  const std::string& name = config.activation;
  // gpt-oss says silu, too.
  if (is_gpt_oss(config) || name == "swigluoai") {
    return {.alpha = kGptOssAlpha,
            .limit = static_cast<float>(config.limit.value_or(kGptOssLimit)),
            .up_offset = 1};
  }
  Activation activation;
  if (config.limit) activation.limit = static_cast<float>(*config.limit);
  if (name.empty() || name == "silu" || name == "swiglu" || name == "swish") return activation;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") {
    return {.kind = Activation::Kind::kGeGLU};
  }
  if (name == "relu2") return {.kind = Activation::Kind::kReLU2};
  missing.push_back(fmt::format("the activation {}", quote_name(name)));
  return activation;
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
  config.topk_method = text_in(text, {"topk_method"});
  config.groups = size_in(text, {"n_group", "num_expert_group"});
  config.top_groups = size_in(text, {"topk_group", "num_limited_groups"});
  config.scale = number_in(text, {"routed_scaling_factor", "moe_router_scaling_factor"});
  config.limit = number_in(text, {"swiglu_limit"});
  // None is written as 0, too.
  const auto count = [&](std::initializer_list<const char*> names) {
    const json* value = find_first(text, names);
    const bool none = value != nullptr && value->is_number_integer() && *value == 0;
    return none ? std::optional<std::int64_t>(0) : size_in(text, names);
  };
  config.shared_count = count({"n_shared_experts", "num_shared_experts"});
  config.shared = count({"shared_expert_intermediate_size", "moe_shared_expert_intermediate_size",
                         "shared_intermediate_size"});
  const std::string scoring = text_in(text, {"scoring_func", "moe_router_activation_func"});
  config.scoring = scoring;
  return config;
}

namespace {

[[noreturn]] void refuse(const std::string& what, const std::vector<std::string>& missing) {
  fail(ErrorCode::kUnsupported, "{} needs what is not computed: {}", what,
       fmt::join(missing, ", "));
}

/// Of a family whose scores are sigmoids config.json may say something else.
void check_scoring(const ModelConfig& config, const Router& router,
                   std::vector<std::string>& missing) {
  const std::array<std::pair<Scoring, std::string_view>, 3> names = {
      {{Scoring::kSoftmax, "softmax"},
       {Scoring::kSigmoid, "sigmoid"},
       {Scoring::kSqrtSoftplus, "sqrtsoftplus"}}};
  for (const auto& [scoring, name] : names) {
    if (scoring == router.scoring && !config.scoring.empty() && config.scoring != name) {
      missing.push_back(fmt::format("the scores {}", quote_name(config.scoring)));
    }
  }
}

}  // namespace

Problem problem_of(const ModelConfig& config, const LayerPlan& plan, DType dtype) {
  std::vector<std::string> missing;
  Problem problem;
  problem.dtype = dtype;
  problem.router = router_of(config, missing);
  problem.activation = activation_of(config, missing);
  check_scoring(config, problem.router, missing);
  problem.router.bias = plan.has(Role::kRouterBias);
  problem.router.selection_bias = plan.has(Role::kSelectionBias);
  problem.expert_bias = plan.has(Role::kGateUpBias);
  problem.shared_intermediate = plan.shared;
  problem.shared_switch = plan.has(Role::kSharedSwitch);
  const bool gpt_oss_layout = plan.layout == Layout::kGptOss || plan.layout == Layout::kGptOssMxfp4;
  if (gpt_oss_layout != is_gpt_oss(config)) {
    missing.push_back(
        fmt::format("tensors of layout {} in a model of that type", name_of(plan.layout)));
  }
  if (!problem.activation.gated()) {
    missing.emplace_back("experts without a gate matrix, which no layout has");
  }
  if (!missing.empty()) {
    refuse(fmt::format("layer {} ({}, layout {})", plan.layer,
                       config.model_type.empty() ? "no model_type" : printable(config.model_type),
                       name_of(plan.layout)),
           missing);
  }
  plan.check_complete();
  check_size(plan, "H", config.hidden, plan.hidden);
  check_size(plan, "I", config.intermediate, plan.intermediate);
  check_size(plan, "E", config.experts, plan.experts);
  if (!config.top_k) {
    fail(ErrorCode::kIo, "config.json has no num_experts_per_tok, the number of experts per token");
  }
  problem.shape = {.tokens = 1,
                   .hidden = plan.hidden,
                   .intermediate = plan.intermediate,
                   .experts = plan.experts,
                   .top_k = *config.top_k};
  validate(problem);
  return problem;
}

Problem problem_of(const ModelConfig& config) {
  constexpr std::int64_t kTokens = 64;
  std::vector<std::string> missing;
  Problem problem;
  problem.router = router_of(config, missing);
  problem.activation = activation_of(config, missing);
  check_scoring(config, problem.router, missing);
  if (!missing.empty()) {
    refuse(config.model_type.empty() ? "a model without model_type" : printable(config.model_type),
           missing);
  }
  const auto told = [](const std::optional<std::int64_t>& size, const char* name) {
    if (!size) fail(ErrorCode::kIo, "config.json has no {}", name);
    return *size;
  };
  problem.shape = {.tokens = kTokens,
                   .hidden = told(config.hidden, "hidden_size"),
                   .intermediate = told(config.intermediate, "moe_intermediate_size"),
                   .experts = told(config.experts, "num_experts"),
                   .top_k = told(config.top_k, "num_experts_per_tok")};
  if (is_gpt_oss(config)) {
    problem.router.bias = true;
    problem.expert_bias = true;
  }
  // Llama 4 has one shared expert of the routed ones' size, of which config.json says nothing.
  const bool llama4 = config.model_type.starts_with("llama4");
  problem.shared_intermediate = config.shared.value_or(
      config.shared_count.value_or(llama4 ? 1 : 0) * problem.shape.intermediate);
  problem.shared_switch = config.model_type.starts_with("qwen") && problem.shared_intermediate > 0;
  validate(problem);
  return problem;
}

}  // namespace moe::checkpoint
