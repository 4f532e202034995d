// moe inspect DIR [--layer N]: what of a checkpoint a layer is made of.
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoint/json_text.h"
#include "checkpoint/layer_plan.h"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/output.h"
#include "cli/parse.h"
#include "core/check.h"
#include "core/text.h"

namespace moe::cli {
namespace {

using checkpoint::Checkpoint;
using checkpoint::LayerPlan;
using checkpoint::LayerSummary;
using checkpoint::LayerTensor;
using checkpoint::Use;
using Json = nlohmann::ordered_json;

constexpr std::int64_t kMostLayers = 1000000;

std::string join(const std::vector<std::string>& texts) {
  return checkpoint::printable(fmt::format("{}", fmt::join(texts, ", ")));
}

// --- the whole checkpoint -----------------------------------------------------------------------

/// "0, 2-5, 7"
std::string ranges(const std::vector<std::int64_t>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    std::size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    if (!text.empty()) text += ", ";
    text +=
        last == i ? std::to_string(numbers[i]) : fmt::format("{}-{}", numbers[i], numbers[last]);
    i = last;
  }
  return text;
}

int inspect_all(const Checkpoint& model, bool json) {
  const std::vector<LayerSummary> layers = checkpoint::list_layers(model);
  std::set<std::string> shards;
  for (const auto& [name, shard] : model.names()) shards.insert(shard);
  std::string text =
      fmt::format("{}: {} tensors in {} file{}\n", model.path(), model.names().size(),
                  shards.size(), shards.size() == 1 ? "" : "s");
  Json array = Json::array();
  text += fmt::format("{:>5}  {:<13}  {:>7}  {}\n", "layer", "layout", "tensors", "files");
  for (const LayerSummary& layer : layers) {
    text += fmt::format("{:>5}  {:<13}  {:>7}  {}\n", layer.layer,
                        layer.layout.empty() ? "no MoE block" : layer.layout, layer.tensors,
                        join(layer.shards));
    array.push_back({{"layer", layer.layer},
                     {"layout", layer.layout.empty() ? Json(nullptr) : Json(layer.layout)},
                     {"tensors", layer.tensors},
                     {"shards", layer.shards}});
  }
  if (layers.empty()) text += "no tensor is named *layers.N.*\n";
  const Json object = {{"path", model.path()},
                       {"tensors", model.names().size()},
                       {"shards", shards.size()},
                       {"layers", array}};
  write_stdout(json ? object.dump(2) + "\n" : text);
  return kOk;
}

// --- one layer ----------------------------------------------------------------------------------

/// Tensors that differ in their expert only.
struct Group {
  const LayerTensor* first = nullptr;
  std::vector<std::int64_t> experts;
  std::uint64_t bytes = 0;
};

/// The name with `text` in place of the expert's number.
std::string name_with(const LayerTensor& tensor, const std::string& text) {
  if (tensor.expert < 0) return checkpoint::printable(tensor.name);
  const std::string number = fmt::format("experts.{}.", tensor.expert);
  std::string name = tensor.name;
  name.replace(name.find(number), number.size(), "experts." + text + ".");
  return checkpoint::printable(name);
}

std::string dtype_of(const LayerTensor& tensor) {
  return tensor.stored ? std::string(checkpoint::name_of(tensor.stored->type)) : "-";
}

std::string shape_of(const LayerTensor& tensor) {
  return tensor.stored ? checkpoint::describe_shape(tensor.stored->shape) : "-";
}

std::vector<Group> group(const std::vector<LayerTensor>& tensors) {
  std::vector<Group> groups;
  std::map<std::string, std::size_t> places;
  for (const LayerTensor& tensor : tensors) {
    const std::string key =
        fmt::format("{}\n{}\n{}\n{}\n{}\n{}", static_cast<int>(tensor.use), name_with(tensor, "{}"),
                    dtype_of(tensor), shape_of(tensor), tensor.shard, tensor.reason);
    const auto [at, is_new] = places.emplace(key, groups.size());
    if (is_new) groups.push_back({&tensor, {}, 0});
    Group& found = groups[at->second];
    if (tensor.expert >= 0) found.experts.push_back(tensor.expert);
    if (tensor.stored) found.bytes += tensor.stored->data.size();
  }
  for (Group& each : groups) std::sort(each.experts.begin(), each.experts.end());
  return groups;
}

std::uint64_t bytes_of(const LayerPlan& plan, Use use) {
  std::uint64_t bytes = 0;
  for (const LayerTensor* tensor : plan.with(use)) {
    if (tensor->stored) bytes += tensor->stored->data.size();
  }
  return bytes;
}

std::string layer_text(const LayerPlan& plan, const std::vector<std::string>& opened) {
  std::string text =
      fmt::format("layer {}: layout {}, E={} H={} I={}", plan.layer, name_of(plan.layout),
                  plan.experts, plan.hidden, plan.intermediate);
  if (plan.shared > 0) text += fmt::format(", shared experts I={}", plan.shared);
  text += fmt::format("\n{:<8}  {:<18} {:>5}  {:<7}  {:<18} {:>10}  {}\n", "use", "as", "count",
                      "dtype", "shape", "bytes", "tensor, file");
  for (const Group& rows : group(plan.tensors)) {
    const LayerTensor& tensor = *rows.first;
    const std::size_t count = std::max<std::size_t>(1, rows.experts.size());
    const std::string place = tensor.shard.empty() ? "in no file" : "in " + tensor.shard;
    text += fmt::format("{:<8}  {:<18} {:>5}  {:<7}  {:<18} {:>10}  {} {}\n", name_of(tensor.use),
                        tensor.use == Use::kIgnored ? tensor.reason : tensor.role, count,
                        dtype_of(tensor), shape_of(tensor), rows.bytes,
                        name_with(tensor, fmt::format("{{{}}}", ranges(rows.experts))),
                        checkpoint::printable(place));
  }
  text +=
      fmt::format("{} consumed ({}), {} ignored ({}), {} missing; files read: {}\n",
                  plan.with(Use::kConsumed).size(), format_bytes(bytes_of(plan, Use::kConsumed)),
                  plan.with(Use::kIgnored).size(), format_bytes(bytes_of(plan, Use::kIgnored)),
                  plan.with(Use::kMissing).size(), join(opened));
  return text;
}

Json layer_json(const LayerPlan& plan, const Checkpoint& model, const std::string& problem) {
  const auto or_null = [](const std::string& text) {
    return text.empty() ? Json(nullptr) : Json(text);
  };
  const auto size_or_null = [](std::int64_t size) { return size > 0 ? Json(size) : Json(nullptr); };
  Json tensors = Json::array();
  for (const LayerTensor& tensor : plan.tensors) {
    Json row = {{"name", tensor.name},
                {"use", name_of(tensor.use)},
                {"as", or_null(tensor.role)},
                {"expert", tensor.expert < 0 ? Json(nullptr) : Json(tensor.expert)},
                {"reason", or_null(tensor.reason)},
                {"shard", or_null(tensor.shard)},
                {"dtype", nullptr},
                {"shape", nullptr},
                {"bytes", nullptr}};
    if (tensor.stored) {
      row["dtype"] = checkpoint::name_of(tensor.stored->type);
      row["shape"] = tensor.stored->shape;
      row["bytes"] = tensor.stored->data.size();
    }
    tensors.push_back(std::move(row));
  }
  return {{"path", model.path()},
          {"layer", plan.layer},
          {"layout", name_of(plan.layout)},
          {"prefix", plan.prefix},
          {"experts", size_or_null(plan.experts)},
          {"hidden", size_or_null(plan.hidden)},
          {"intermediate", size_or_null(plan.intermediate)},
          {"shared_intermediate", size_or_null(plan.shared)},
          {"problem", or_null(problem)},
          {"consumed_bytes", bytes_of(plan, Use::kConsumed)},
          {"opened", model.opened()},
          {"tensors", tensors}};
}

int inspect_layer(Checkpoint& model, std::int64_t layer, bool json) {
  LayerPlan plan = plan_layer(model, layer);
  const std::vector<std::string> opened = model.opened();
  describe_ignored(model, plan);
  std::string problem;
  try {
    plan.check_complete();
  } catch (const Error& error) {
    problem = error.what();
  }
  write_stdout(json ? layer_json(plan, model, problem).dump(2) + "\n" : layer_text(plan, opened));
  plan.check_complete();  // the report first, then the exit code and its sentence
  return kOk;
}

}  // namespace

Command add_inspect(CLI::App& app) {
  auto path = std::make_shared<std::string>();
  auto layer = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("inspect", "What a checkpoint's layers are made of");
  command->add_option("DIR", *path)->required();
  command->add_option("--layer", *layer);
  command->add_flag("--json", *json);
  return {command, [path, layer, json] {
            std::optional<std::int64_t> number;
            if (!layer->empty()) number = parse_integer("--layer", *layer, 0, kMostLayers);
            Checkpoint model = Checkpoint::open(*path);
            return number ? inspect_layer(model, *number, *json) : inspect_all(model, *json);
          }};
}

}  // namespace moe::cli
