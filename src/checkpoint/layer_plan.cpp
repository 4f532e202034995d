#include "checkpoint/layer_plan.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <set>

#include "checkpoint/json_text.h"
#include "core/check.h"

namespace moe::checkpoint {
namespace {

constexpr std::int64_t kScaleBlock = 128;  // rows and columns of an FP8 weight that share a scale

/// What can stand before "layers.L.": text models, and the text part of those that also see.
constexpr std::array<std::string_view, 4> kPrefixes = {"model.", "model.language_model.",
                                                       "language_model.model.", ""};

struct LayerName {
  std::int64_t layer = 0;
  std::size_t rest = 0;  // where the name goes on after "layers.L."
};

std::optional<LayerName> split_name(std::string_view name, std::string_view prefix) {
  constexpr std::string_view kLayers = "layers.";
  if (!name.starts_with(prefix)) return std::nullopt;
  if (!name.substr(prefix.size()).starts_with(kLayers)) return std::nullopt;
  const std::size_t begin = prefix.size() + kLayers.size();
  LayerName found;
  const auto parsed = std::from_chars(name.data() + begin, name.data() + name.size(), found.layer);
  const auto end = static_cast<std::size_t>(parsed.ptr - name.data());
  if (parsed.ec != std::errc() || end >= name.size() || name[end] != '.') return std::nullopt;
  // One way to write a number: "layers.03." is not layer 3, whose names begin otherwise.
  if (name.substr(begin, end - begin) != std::to_string(found.layer) || found.layer < 0) {
    return std::nullopt;
  }
  found.rest = end + 1;
  return found;
}

/// The names of one layer below one prefix.
struct Names {
  std::string prefix;              // "model.layers.3."
  std::vector<std::string> rests;  // "mlp.gate.weight"
};

std::vector<Names> names_of_layer(const Checkpoint& checkpoint, std::int64_t layer) {
  std::vector<Names> found;
  for (const std::string_view prefix : kPrefixes) {
    Names names;
    for (const auto& [name, shard] : checkpoint.names()) {
      const std::optional<LayerName> parts = split_name(name, prefix);
      if (!parts || parts->layer != layer) continue;
      names.prefix = name.substr(0, parts->rest);
      names.rests.push_back(name.substr(parts->rest));
    }
    if (!names.rests.empty()) found.push_back(std::move(names));
  }
  return found;
}

/// A layout that a layer could have, and the name that says so.
struct Candidate {
  Layout layout;
  std::string because;
};

/// The layouts that own at least one of the experts' matrices. `rests` is sorted or not.
std::vector<Candidate> candidates_of(const std::vector<std::string>& rests) {
  std::vector<Candidate> found;
  const std::set<std::string_view> all(rests.begin(), rests.end());
  for (const Layout layout : all_layouts()) {
    for (const std::string& rest : rests) {
      const Match matched = match(layout, rest);
      if (matched.pattern == nullptr || matched.block_scales) continue;
      const Role role = matched.pattern->role;
      if (role != Role::kGate && role != Role::kUp && role != Role::kGateUp &&
          role != Role::kDown) {
        continue;
      }
      found.push_back({layout, rest});
      break;
    }
  }
  // fused and gpt-oss have the same names for their experts' matrices, with gate and up in another
  // order: what is around them tells.
  const auto is = [&](Layout layout) {
    return [layout](const Candidate& candidate) { return candidate.layout == layout; };
  };
  const bool like_gpt_oss = all.contains("mlp.router.weight") || all.contains("mlp.router.bias") ||
                            all.contains("mlp.experts.gate_up_proj_bias");
  const bool like_qwen = all.contains("mlp.gate.weight");
  if (like_gpt_oss && !like_qwen) std::erase_if(found, is(Layout::kFused));
  if (like_qwen && !like_gpt_oss) std::erase_if(found, is(Layout::kGptOss));
  return found;
}

/// Sizes as the tensors' shapes tell them, each with the tensor that told it first.
class Sizes {
 public:
  [[nodiscard]] std::int64_t of(Size size) const {
    return values_[static_cast<std::size_t>(size)].value_or(0);
  }
  void set(Size size, std::int64_t value, std::string source) {
    values_[static_cast<std::size_t>(size)] = value;
    sources_[static_cast<std::size_t>(size)] = std::move(source);
  }

  /// Throws unless `tensor` can be what the pattern says.
  void fit(const Pattern& pattern, Layout layout, const Located& located) {
    const StoredTensor& tensor = *located.tensor;
    bool fits = tensor.shape.size() == pattern.shape.size();
    for (std::size_t axis = 0; fits && axis < tensor.shape.size(); ++axis) {
      fits = fit_dimension(pattern.shape[axis], tensor.shape[axis], tensor.name);
    }
    if (!fits) {
      fail(ErrorCode::kIo, "{}: tensor {} is {}, but the {} of layout {} is {}",
           located.shard->name(), quote_name(tensor.name), tensor.describe(), name_of(pattern.role),
           name_of(layout), expected(pattern));
    }
  }

 private:
  bool fit_dimension(const Dimension& dimension, std::int64_t found, const std::string& name) {
    if (!dimension.size) return found == dimension.times;
    std::int64_t size = 0;
    if (found < 1 || __builtin_mul_overflow(found, dimension.over, &size) ||
        size % dimension.times != 0) {
      return false;
    }
    size /= dimension.times;
    auto& known = values_[static_cast<std::size_t>(*dimension.size)];
    if (!known) set(*dimension.size, size, name);
    return *known == size;
  }

  /// "[I,H] with H=64 as in 'model...'"
  [[nodiscard]] std::string expected(const Pattern& pattern) const {
    std::string shape;
    std::string values;
    std::set<Size> told;
    for (const Dimension& dimension : pattern.shape) {
      if (!shape.empty()) shape += ",";
      if (!dimension.size) {
        shape += std::to_string(dimension.times);
        continue;
      }
      const Size size = *dimension.size;
      if (dimension.times != 1) shape += std::to_string(dimension.times);
      shape += letter_of(size);
      if (dimension.over != 1) shape += fmt::format("/{}", dimension.over);
      const auto index = static_cast<std::size_t>(size);
      if (values_[index] && told.insert(size).second) {
        values += fmt::format("{}{}={} as in {}", values.empty() ? " with " : ", ", letter_of(size),
                              *values_[index], quote_name(sources_[index]));
      }
    }
    return "[" + shape + "]" + values;
  }

  std::array<std::optional<std::int64_t>, 4> values_;
  std::array<std::string, 4> sources_;
};

std::string_view expected_types(Types types) {
  switch (types) {
    case Types::kFloat:
      return "F32, BF16 or F16";
    case Types::kFloatOrBlockFp8:
      return "F32, BF16, F16 or F8_E4M3 with a scale per 128x128 block";
    case Types::kBytes:
      return "U8";
  }
  return {};
}

bool allowed(Types types, StoredType type) {
  switch (type) {
    case StoredType::kF32:
    case StoredType::kBF16:
    case StoredType::kF16:
      return types != Types::kBytes;
    case StoredType::kF8E4M3:
      return types == Types::kFloatOrBlockFp8;
    case StoredType::kU8:
      return types == Types::kBytes;
    default:
      return false;
  }
}

class Planner {
 public:
  Planner(Checkpoint& checkpoint, std::int64_t layer, const Names& names, Layout layout)
      : checkpoint_(checkpoint), names_(names) {
    plan_.layer = layer;
    plan_.prefix = names.prefix;
    plan_.layout = layout;
  }

  LayerPlan run() {
    for (const std::string& rest : names_.rests) sort_in(rest);
    // The router first: it tells E and H, and whatever disagrees with it is at fault.
    for (const bool router : {true, false}) {
      for (const Found& found : found_) {
        if ((found.matched.pattern->role == Role::kRouter) == router) take(found);
      }
    }
    for (const Found& found : scales_) take_scales(found);
    settle_experts();
    find_missing();
    plan_.experts = sizes_.of(Size::kExperts);
    plan_.hidden = sizes_.of(Size::kHidden);
    plan_.intermediate = sizes_.of(Size::kIntermediate);
    plan_.shared = sizes_.of(Size::kShared);
    std::stable_sort(plan_.tensors.begin(), plan_.tensors.end(),
                     [](const LayerTensor& a, const LayerTensor& b) {
                       return std::pair(a.use, a.name) < std::pair(b.use, b.name);
                     });
    return std::move(plan_);
  }

 private:
  struct Found {
    std::string name;
    Match matched;
  };

  void sort_in(const std::string& rest) {
    const Match matched = match(plan_.layout, rest);
    std::string name = names_.prefix + rest;
    if (matched.pattern != nullptr) {
      (matched.block_scales ? scales_ : found_).push_back({std::move(name), matched});
      return;
    }
    const std::string_view block = block_of(plan_.layout);
    const bool in_block = rest.starts_with(block);
    const std::string shard = checkpoint_.names().find(name)->second;
    plan_.tensors.push_back(
        {.name = std::move(name),
         .use = Use::kIgnored,
         .reason = in_block ? fmt::format("not known to layout {}", name_of(plan_.layout))
                            : "not of the MoE block",
         .in_block = in_block,
         .shard = shard});
  }

  void consume(const Found& found, const Located& located, std::string role) {
    plan_.tensors.push_back({.name = found.name,
                             .use = Use::kConsumed,
                             .role = std::move(role),
                             .expert = found.matched.expert,
                             .shard = checkpoint_.names().find(found.name)->second,
                             .stored = *located.tensor});
  }

  void take(const Found& found) {
    const Pattern& pattern = *found.matched.pattern;
    const Located located = checkpoint_.locate(found.name);
    if (!allowed(pattern.types, located.tensor->type)) {
      fail(ErrorCode::kIo, "{}: tensor {} is {}, but the {} of layout {} can be {}",
           located.shard->name(), quote_name(found.name), located.tensor->describe(),
           name_of(pattern.role), name_of(plan_.layout), expected_types(pattern.types));
    }
    sizes_.fit(pattern, plan_.layout, located);
    const auto [at, is_new] =
        plan_.parts.emplace(std::pair(pattern.role, found.matched.expert), Part{located, {}});
    MOE_CHECK(is_new, "{}: tensors {} and {} are both the {} of layer {}", checkpoint_.path(),
              quote_name(at->second.at.tensor->name), quote_name(found.name), name_of(pattern.role),
              plan_.layer);
    consume(found, located, std::string(name_of(pattern.role)));
  }

  void take_scales(const Found& found) {
    const Located located = checkpoint_.locate(found.name);
    const StoredTensor& scales = *located.tensor;
    const auto at = plan_.parts.find({found.matched.pattern->role, found.matched.expert});
    const std::string weight_name = found.name.substr(0, found.name.rfind("_scale_inv"));
    if (at == plan_.parts.end() || at->second.at.tensor->name != weight_name) {
      missing(weight_name, found.matched);
    } else {
      const StoredTensor& weight = *at->second.at.tensor;
      if (weight.type != StoredType::kF8E4M3) {
        fail(ErrorCode::kIo, "{}: tensor {} scales {}, which is {} and not F8_E4M3",
             located.shard->name(), quote_name(found.name), quote_name(weight.name),
             weight.describe());
      }
      const std::vector<std::int64_t> shape = {(weight.shape[0] + kScaleBlock - 1) / kScaleBlock,
                                               (weight.shape[1] + kScaleBlock - 1) / kScaleBlock};
      const bool is_float = scales.type == StoredType::kF32 || scales.type == StoredType::kBF16;
      if (!is_float || scales.shape != shape) {
        fail(ErrorCode::kIo,
             "{}: tensor {} is {}, but one scale per 128x128 block of {} is F32 or BF16 {}",
             located.shard->name(), quote_name(found.name), scales.describe(), weight.describe(),
             describe_shape(shape));
      }
      at->second.scales = located;
    }
    consume(found, located, fmt::format("{} scales", name_of(found.matched.pattern->role)));
  }

  /// E of layouts with a tensor per expert, where the router does not tell; and that no expert is
  /// beyond it.
  void settle_experts() {
    int most = -1;
    std::string name;
    for (const Found& found : found_) {
      if (found.matched.expert > most) {
        most = found.matched.expert;
        name = found.name;
      }
    }
    const std::int64_t experts = sizes_.of(Size::kExperts);
    if (experts == 0 && most >= 0) sizes_.set(Size::kExperts, most + 1, name);
    if (experts > 0 && most >= experts) {
      fail(ErrorCode::kIo, "{}: tensor {} is of expert {}, but the router has {} experts",
           checkpoint_.path(), quote_name(name), most, experts);
    }
    if (experts > kMostExperts) {
      fail(ErrorCode::kIo, "{}: layer {} has {} experts, more than {}", checkpoint_.path(),
           plan_.layer, experts, kMostExperts);
    }
  }

  void missing(const std::string& name, const Match& matched) {
    plan_.tensors.push_back({.name = name,
                             .use = Use::kMissing,
                             .role = std::string(name_of(matched.pattern->role)) +
                                     (matched.block_scales ? " scales" : ""),
                             .expert = matched.expert});
  }

  void find_missing() {
    std::set<std::string> present;
    std::set<std::string> shared_blocks;  // "mlp.shared_experts." of those that are there
    for (const Found& found : found_) {
      present.insert(found.name);
      const std::string_view name = found.matched.pattern->name;
      if (name.find("shared") != std::string_view::npos) {
        shared_blocks.emplace(name.substr(0, name.find('.', name.find("shared")) + 1));
      }
    }
    const std::int64_t experts = std::min(sizes_.of(Size::kExperts), kMostExperts);
    for (const Pattern& pattern : patterns_of(plan_.layout)) {
      const std::size_t hole = pattern.name.find("{}");
      const bool of_shared =
          std::any_of(shared_blocks.begin(), shared_blocks.end(),
                      [&](const std::string& block) { return pattern.name.starts_with(block); });
      if (!pattern.required && !of_shared) continue;
      for (std::int64_t expert = 0; expert < (hole == std::string_view::npos ? 1 : experts);
           ++expert) {
        std::string name = names_.prefix + std::string(pattern.name);
        int number = -1;
        if (hole != std::string_view::npos) {
          number = static_cast<int>(expert);
          name.replace(names_.prefix.size() + hole, 2, std::to_string(expert));
        }
        if (!present.contains(name)) missing(name, {&pattern, number, false});
      }
    }
    for (const auto& [key, part] : plan_.parts) {
      if (part.at.tensor->type != StoredType::kF8E4M3 || part.scales.tensor != nullptr) continue;
      const std::string rest = part.at.tensor->name.substr(names_.prefix.size());
      Match matched = match(plan_.layout, rest);
      matched.block_scales = true;
      missing(part.at.tensor->name + "_scale_inv", matched);
    }
    // Scales without their weight name it once more.
    const auto same = [](const LayerTensor& a, const LayerTensor& b) {
      return a.use == b.use && a.name == b.name;
    };
    std::stable_sort(plan_.tensors.begin(), plan_.tensors.end(),
                     [](const LayerTensor& a, const LayerTensor& b) { return a.name < b.name; });
    plan_.tensors.erase(std::unique(plan_.tensors.begin(), plan_.tensors.end(), same),
                        plan_.tensors.end());
  }

  Checkpoint& checkpoint_;
  const Names& names_;
  LayerPlan plan_;
  Sizes sizes_;
  std::vector<Found> found_;
  std::vector<Found> scales_;
};

[[noreturn]] void fail_without_layer(const Checkpoint& checkpoint, std::int64_t layer) {
  const std::vector<LayerSummary> layers = list_layers(checkpoint);
  MOE_CHECK(!layers.empty(), "{} has no layer {}: none of its {} tensors is named *layers.N.*",
            checkpoint.path(), layer, checkpoint.names().size());
  fail(ErrorCode::kInvalidArgument, "{} has no layer {}: its layers are {} to {}",
       checkpoint.path(), layer, layers.front().layer, layers.back().layer);
}

}  // namespace

std::string_view name_of(Use use) {
  switch (use) {
    case Use::kConsumed:
      return "consumed";
    case Use::kIgnored:
      return "ignored";
    case Use::kMissing:
      return "missing";
  }
  return {};
}

std::vector<const LayerTensor*> LayerPlan::with(Use use) const {
  std::vector<const LayerTensor*> found;
  for (const LayerTensor& tensor : tensors) {
    if (tensor.use == use) found.push_back(&tensor);
  }
  return found;
}

bool LayerPlan::has(Role role) const {
  return std::any_of(parts.begin(), parts.end(),
                     [role](const auto& part) { return part.first.first == role; });
}

void LayerPlan::check_complete() const {
  const std::vector<const LayerTensor*> missing = with(Use::kMissing);
  if (!missing.empty()) {
    fail(ErrorCode::kIo, "layer {} of layout {} lacks {}{}", layer, name_of(layout),
         quote_name(missing.front()->name),
         missing.size() == 1 ? std::string()
                             : fmt::format(" and {} more tensors", missing.size() - 1));
  }
  for (const LayerTensor& tensor : tensors) {
    if (tensor.use == Use::kIgnored && tensor.in_block) {
      fail(ErrorCode::kUnsupported,
           "layer {} has the tensor {} in its MoE block, which layout {} does not know: it would "
           "be computed without it",
           layer, quote_name(tensor.name), name_of(layout));
    }
  }
}

LayerPlan plan_layer(Checkpoint& checkpoint, std::int64_t layer) {
  const std::vector<Names> names = names_of_layer(checkpoint, layer);
  if (names.empty()) fail_without_layer(checkpoint, layer);
  const Names* chosen = nullptr;
  Candidate candidate{};
  for (const Names& each : names) {
    const std::vector<Candidate> candidates = candidates_of(each.rests);
    if (candidates.empty()) continue;
    MOE_CHECK(candidates.size() == 1,
              "{}: layer {} can be of layout {} (it has {}) and of layout {} (it has {})",
              checkpoint.path(), layer, name_of(candidates[0].layout),
              quote_name(each.prefix + candidates[0].because), name_of(candidates[1].layout),
              quote_name(each.prefix + candidates[1].because));
    MOE_CHECK(chosen == nullptr, "{}: layer {} has experts in {} and in {}", checkpoint.path(),
              layer, quote_name(chosen->prefix + candidate.because),
              quote_name(each.prefix + candidates[0].because));
    chosen = &each;
    candidate = candidates[0];
  }
  MOE_CHECK(chosen != nullptr,
            "{}: layer {} has no MoE block of a known layout among its {} tensors, such as {}",
            checkpoint.path(), layer, names.front().rests.size(),
            quote_name(names.front().prefix + names.front().rests.back()));
  return Planner(checkpoint, layer, *chosen, candidate.layout).run();
}

void describe_ignored(Checkpoint& checkpoint, LayerPlan& plan) {
  for (LayerTensor& tensor : plan.tensors) {
    if (tensor.use == Use::kIgnored) tensor.stored = *checkpoint.locate(tensor.name).tensor;
  }
}

std::vector<LayerSummary> list_layers(const Checkpoint& checkpoint) {
  struct Gathered {
    LayerSummary summary;
    std::set<std::string> shards;
    std::map<std::string_view, std::vector<std::string>> rests;  // by prefix
  };
  std::map<std::int64_t, Gathered> layers;
  for (const auto& [name, shard] : checkpoint.names()) {
    for (const std::string_view prefix : kPrefixes) {
      const std::optional<LayerName> parts = split_name(name, prefix);
      if (!parts) continue;
      Gathered& layer = layers[parts->layer];
      layer.summary.layer = parts->layer;
      ++layer.summary.tensors;
      layer.shards.insert(shard);
      layer.rests[prefix].push_back(name.substr(parts->rest));
    }
  }
  std::vector<LayerSummary> list;
  for (auto& [number, layer] : layers) {
    std::vector<Candidate> candidates;
    for (const auto& [prefix, rests] : layer.rests) {
      for (Candidate& candidate : candidates_of(rests)) candidates.push_back(std::move(candidate));
    }
    if (candidates.size() == 1) layer.summary.layout = name_of(candidates[0].layout);
    if (candidates.size() > 1) layer.summary.layout = "ambiguous";
    layer.summary.shards.assign(layer.shards.begin(), layer.shards.end());
    list.push_back(std::move(layer.summary));
  }
  return list;
}

}  // namespace moe::checkpoint
