#include "moe/config.h"

#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

#include "core/check.h"
#include "core/expert_set.h"
#include "core/text.h"

namespace moe {
namespace {

/// Throws unless the product of `factors` (all >= 1) fits in a signed 64-bit number.
void check_product(const Shape& shape, const char* what,
                   std::initializer_list<std::int64_t> factors) {
  std::int64_t product = 1;
  for (const std::int64_t factor : factors) {
    MOE_CHECK(!__builtin_mul_overflow(product, factor, &product),
              "{} overflows 64-bit byte offsets ({})", what, to_string(shape));
  }
}

template <class Value, std::size_t N>
Value parse_name(std::string_view kind, std::string_view name,
                 const std::array<std::pair<std::string_view, Value>, N>& known) {
  std::vector<std::string> names;
  for (const auto& [text, value] : known) {
    if (text == name) return value;
    names.emplace_back(text);
  }
  fail(ErrorCode::kInvalidArgument, "unknown {} '{}'; did you mean '{}'?", kind, name,
       nearest_match(name, names));
}

/// The reverse of parse_name.
template <class Value, std::size_t N>
std::string_view name_in(const std::array<std::pair<std::string_view, Value>, N>& known,
                         Value value) {
  for (const auto& [text, one] : known) {
    if (one == value) return text;
  }
  return {};
}

}  // namespace

void validate(const Shape& shape) {
  const std::array<std::pair<const char*, std::int64_t>, 5> sizes = {
      {{"tokens", shape.tokens},
       {"hidden", shape.hidden},
       {"intermediate", shape.intermediate},
       {"experts", shape.experts},
       {"top_k", shape.top_k}}};
  for (const auto& [name, value] : sizes) {
    MOE_CHECK(value >= 1, "{}={} must be at least 1 ({})", name, value, to_string(shape));
  }
  MOE_CHECK(shape.top_k <= shape.experts, "top_k={} exceeds experts={} ({})", shape.top_k,
            shape.experts, to_string(shape));
  // Indices of experts and of routed rows inside one expert are stored as 32-bit numbers.
  constexpr std::int64_t kMaxIndex = std::numeric_limits<std::int32_t>::max();
  MOE_CHECK(shape.experts <= kMaxIndex, "experts={} exceeds {}", shape.experts, kMaxIndex);
  MOE_CHECK(shape.tokens <= kMaxIndex, "tokens={} exceeds {}", shape.tokens, kMaxIndex);
  constexpr std::int64_t kElement = 8;  // widest element any buffer holds
  check_product(shape, "tokens*top_k*hidden", {kElement, shape.tokens, shape.top_k, shape.hidden});
  check_product(shape, "tokens*top_k*2*intermediate",
                {kElement, shape.tokens, shape.top_k, 2, shape.intermediate});
  check_product(shape, "tokens*experts", {kElement, shape.tokens, shape.experts});
  check_product(shape, "experts*3*hidden*intermediate",
                {kElement, shape.experts, 3, shape.hidden, shape.intermediate});
  check_product(shape, "experts*hidden", {kElement, shape.experts, shape.hidden});
}

std::size_t size_of(DType dtype) {
  return dtype == DType::kF32 ? 4 : 2;
}

std::string_view name_of(DType dtype) {
  return dtype == DType::kF32 ? "fp32" : "bf16";
}

std::string_view name_of(Operands operands) {
  return operands == Operands::kFp8 ? "fp8" : "as stored";
}
std::string_view name_of(Backend backend) {
  return backend == Backend::kCpu ? "cpu" : "cuda";
}

DType parse_dtype(std::string_view name) {
  return parse_name("dtype", name,
                    std::array<std::pair<std::string_view, DType>, 2>{
                        {{"fp32", DType::kF32}, {"bf16", DType::kBF16}}});
}

Backend parse_backend(std::string_view name) {
  return parse_name("backend", name,
                    std::array<std::pair<std::string_view, Backend>, 2>{
                        {{"cpu", Backend::kCpu}, {"cuda", Backend::kCuda}}});
}

std::string to_string(const Shape& shape) {
  return fmt::format("T={} H={} I={} E={} K={}", shape.tokens, shape.hidden, shape.intermediate,
                     shape.experts, shape.top_k);
}

namespace {

/// Floats of fp32 biases, and elements of everything else.
struct WeightCounts {
  double matrices = 0;
  double biases = 0;
};

/// Of `experts` routed experts, the shared one and the router.
WeightCounts count_weights(const Problem& problem, double experts) {
  const Shape& shape = problem.shape;
  const auto hidden = static_cast<double>(shape.hidden);
  const auto intermediate = static_cast<double>(shape.intermediate);
  const double matrices = problem.activation.gated() ? 3 : 2;
  const auto all = static_cast<double>(shape.experts);
  WeightCounts counts;
  counts.matrices = matrices * hidden *
                    (experts * intermediate + static_cast<double>(problem.shared_intermediate));
  if (problem.router.scoring != Scoring::kGiven) counts.matrices += all * hidden;
  if (problem.shared_switch) counts.matrices += hidden;
  if (problem.router.bias) counts.biases += all;
  if (problem.router.selection_bias) counts.biases += all;
  if (problem.expert_bias) counts.biases += experts * ((matrices - 1) * intermediate + hidden);
  return counts;
}

/// "NAME=VALUE" split at the sign; VALUE is empty where there is none.
std::pair<std::string_view, std::string_view> split_setting(std::string_view text) {
  const std::size_t sign = std::min(text.find('='), text.size());
  return {text.substr(0, sign), text.substr(std::min(sign + 1, text.size()))};
}

template <class Number>
Number number_of(std::string_view whole, std::string_view text) {
  Number value{};
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  MOE_CHECK(parsed.ec == std::errc() && parsed.ptr == text.data() + text.size() && !text.empty(),
            "'{}': '{}' is not a number", whole, text);
  return value;
}

/// The parts of "a,b,c".
std::vector<std::string_view> split_commas(std::string_view text) {
  std::vector<std::string_view> parts;
  for (;;) {
    const std::size_t comma = text.find(',');
    parts.push_back(text.substr(0, comma));
    if (comma == std::string_view::npos) return parts;
    text.remove_prefix(comma + 1);
  }
}

constexpr std::array<std::pair<std::string_view, Scoring>, 5> kScorings = {
    {{"softmax", Scoring::kSoftmax},
     {"sigmoid", Scoring::kSigmoid},
     {"sqrtsoftplus", Scoring::kSqrtSoftplus},
     {"sparsemixer", Scoring::kSparseMixer},
     {"given", Scoring::kGiven}}};

constexpr std::array<std::pair<std::string_view, Activation::Kind>, 3> kActivations = {
    {{"swiglu", Activation::Kind::kSwiGLU},
     {"geglu", Activation::Kind::kGeGLU},
     {"relu2", Activation::Kind::kReLU2}}};

/// Levels keep which groups are left in one word.
constexpr std::int64_t kMostGroups = 64;

/// Scorings whose weights are never renormalised.
bool always_raw(Scoring scoring) {
  return scoring == Scoring::kSparseMixer || scoring == Scoring::kGiven;
}

void validate(const Router& router, const Shape& shape) {
  const std::string text = to_string(router);
  MOE_CHECK(std::isfinite(router.scale) && router.scale > 0,
            "router {}: the scale must be a number above 0", text);
  MOE_CHECK(router.groups >= 1 && shape.experts % router.groups == 0,
            "router {}: {} groups do not divide experts={}", text, router.groups, shape.experts);
  MOE_CHECK(router.groups <= kMostGroups, "router {}: more than {} groups", text, kMostGroups);
  MOE_CHECK(router.top_groups >= 1 && router.top_groups <= router.groups,
            "router {}: {} of {} groups cannot be kept", text, router.top_groups, router.groups);
  const std::int64_t kept = shape.experts / router.groups * router.top_groups;
  MOE_CHECK(kept >= shape.top_k, "router {}: the groups kept have {} experts, top_k={}", text, kept,
            shape.top_k);
  MOE_CHECK(!router.selection_bias || router.scoring != Scoring::kSoftmax,
            "router {}: a selection bias is added to scores of sigmoid or sqrtsoftplus", text);
  if (!always_raw(router.scoring)) return;
  MOE_CHECK(router.groups == 1 && !router.selection_bias && !router.renormalise,
            "router {}: {} knows no groups, selection bias or renormalisation", text,
            name_in(kScorings, router.scoring));
  MOE_CHECK(router.scoring != Scoring::kGiven ||
                (!router.bias && router.scale == 1 && !router.weight_on_input),
            "router {}: given weights multiply outputs as they are, without bias or scale", text);
}

void validate(const Activation& activation) {
  const std::string text = to_string(activation);
  MOE_CHECK(std::isfinite(activation.alpha) && activation.alpha > 0 && activation.limit > 0 &&
                std::isfinite(activation.up_offset),
            "activation {}: alpha and limit must be above 0, up a number", text);
  const Activation plain{.kind = activation.kind};
  MOE_CHECK(activation.kind == Activation::Kind::kSwiGLU || activation == plain,
            "activation {}: alpha, limit and up are settings of swiglu", text);
}

}  // namespace

void validate(const Problem& problem) {
  const Shape& shape = problem.shape;
  validate(shape);
  validate(problem.router, shape);
  validate(problem.activation);
  MOE_CHECK(problem.shared_intermediate >= 0, "shared_intermediate={} must not be negative",
            problem.shared_intermediate);
  MOE_CHECK(!problem.shared_switch || problem.shared_intermediate > 0,
            "a shared expert's switch needs a shared expert, shared_intermediate=0");
  MOE_CHECK(
      !problem.shared_switch || !problem.router.weight_on_input,
      "a shared expert's switch and router weights on the input (router {}) exclude each other",
      to_string(problem.router));
  if (problem.shared_intermediate > 0) validate(with_shared_slots(problem));
}

std::string to_string(const Router& router) {
  std::string text(name_in(kScorings, router.scoring));
  if (!router.renormalise && !always_raw(router.scoring)) text += ",raw";
  if (router.bias) text += ",bias";
  if (router.selection_bias) text += ",selection-bias";
  if (router.groups != 1 || router.top_groups != 1) {
    text += fmt::format(",groups={}/{}", router.groups, router.top_groups);
  }
  if (router.scale != 1) text += fmt::format(",scale={}", router.scale);
  if (router.weight_on_input) text += ",on-input";
  return text;
}

Router parse_router(std::string_view text) {
  const std::vector<std::string_view> parts = split_commas(text);
  Router router{.scoring = parse_name("router", parts.front(), kScorings)};
  router.renormalise = !always_raw(router.scoring);
  for (std::size_t i = 1; i < parts.size(); ++i) {
    const auto [name, value] = split_setting(parts[i]);
    if (parts[i] == "raw") {
      router.renormalise = false;
    } else if (parts[i] == "bias") {
      router.bias = true;
    } else if (parts[i] == "selection-bias") {
      router.selection_bias = true;
    } else if (parts[i] == "on-input") {
      router.weight_on_input = true;
    } else if (name == "scale") {
      router.scale = number_of<float>(text, value);
    } else if (name == "groups") {
      const std::size_t slash = std::min(value.find('/'), value.size());
      router.groups = number_of<std::int64_t>(text, value.substr(0, slash));
      router.top_groups =
          number_of<std::int64_t>(text, value.substr(std::min(slash + 1, value.size())));
    } else {
      fail(ErrorCode::kInvalidArgument,
           "router '{}': unknown setting '{}'; use raw, bias, selection-bias, groups=GROUPS/KEPT, "
           "scale=S or on-input",
           text, parts[i]);
    }
  }
  return router;
}

std::string to_string(const Activation& activation) {
  std::string text(name_in(kActivations, activation.kind));
  if (activation.alpha != 1) text += fmt::format(",alpha={}", activation.alpha);
  if (!std::isinf(activation.limit)) text += fmt::format(",limit={}", activation.limit);
  if (activation.up_offset != 0) text += fmt::format(",up={}", activation.up_offset);
  return text;
}

Activation parse_activation(std::string_view text) {
  const std::vector<std::string_view> parts = split_commas(text);
  Activation activation{.kind = parse_name("activation", parts.front(), kActivations)};
  for (std::size_t i = 1; i < parts.size(); ++i) {
    const auto [name, value] = split_setting(parts[i]);
    if (name == "alpha") {
      activation.alpha = number_of<float>(text, value);
    } else if (name == "limit") {
      activation.limit = number_of<float>(text, value);
    } else if (name == "up") {
      activation.up_offset = number_of<float>(text, value);
    } else {
      fail(ErrorCode::kInvalidArgument,
           "activation '{}': unknown setting '{}'; use alpha=A, limit=L or up=U", text, parts[i]);
    }
  }
  return activation;
}

std::string block_options(const Problem& problem) {
  std::string text;
  const auto add = [&](const std::string& option) { text += (text.empty() ? "" : " ") + option; };
  if (problem.router != Router{}) add("--router " + to_string(problem.router));
  if (problem.activation != Activation{}) add("--activation " + to_string(problem.activation));
  if (problem.expert_bias) add("--expert-bias");
  if (problem.shared_intermediate > 0) {
    add(fmt::format("--shared {}{}", problem.shared_intermediate,
                    problem.shared_switch ? ",switch" : ""));
  }
  return text;
}

void set_shared_expert(Problem& problem, std::string_view text) {
  const std::vector<std::string_view> parts = split_commas(text);
  MOE_CHECK(parts.size() == 1 || (parts.size() == 2 && parts[1] == "switch"),
            "shared expert '{}' is neither SIZE nor SIZE,switch", text);
  problem.shared_intermediate = number_of<std::int64_t>(text, parts[0]);
  problem.shared_switch = parts.size() == 2;
}

void set_block_options(Problem& problem, std::string_view options) {
  problem = {.shape = problem.shape, .dtype = problem.dtype};
  const auto next_word = [&] {
    const std::string_view word = options.substr(0, options.find(' '));
    options.remove_prefix(std::min(word.size() + 1, options.size()));
    return word;
  };
  while (!options.empty()) {
    const std::string_view option = next_word();
    if (option == "--router") {
      problem.router = parse_router(next_word());
    } else if (option == "--activation") {
      problem.activation = parse_activation(next_word());
    } else if (option == "--expert-bias") {
      problem.expert_bias = true;
    } else if (option == "--shared") {
      set_shared_expert(problem, next_word());
    } else {
      fail(ErrorCode::kInvalidArgument, "'{}' is no option of an MoE block", option);
    }
  }
}

double useful_flops(const Problem& problem) {
  const Shape& shape = problem.shape;
  const auto tokens = static_cast<double>(shape.tokens);
  const auto hidden = static_cast<double>(shape.hidden);
  const double matrices = problem.activation.gated() ? 3 : 2;
  const double columns =
      static_cast<double>(shape.top_k) * static_cast<double>(shape.intermediate) +
      static_cast<double>(problem.shared_intermediate);
  double per_token = 2 * matrices * hidden * columns;
  if (problem.router.scoring != Scoring::kGiven) {
    per_token += 2 * hidden * static_cast<double>(shape.experts);
  }
  if (problem.shared_switch) per_token += 2 * hidden;
  return tokens * per_token;
}

double minimum_bytes(const Problem& problem, std::int64_t active_experts) {
  const Shape& shape = problem.shape;
  const WeightCounts weights = count_weights(problem, static_cast<double>(active_experts));
  const double elements = weights.matrices + 2.0 * static_cast<double>(shape.tokens) *
                                                 static_cast<double>(shape.hidden);
  return elements * static_cast<double>(size_of(problem.dtype)) + weights.biases * sizeof(float);
}

std::uint64_t weight_bytes(const Problem& problem) {
  const WeightCounts weights = count_weights(problem, static_cast<double>(problem.shape.experts));
  return static_cast<std::uint64_t>(weights.matrices) * size_of(problem.dtype) +
         static_cast<std::uint64_t>(weights.biases) * sizeof(float);
}

}  // namespace moe
