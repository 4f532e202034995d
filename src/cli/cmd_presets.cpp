// moe presets list | show NAME | import FILE
#include <memory>
#include <nlohmann/json.hpp>

#include "checkpoint/mapped_file.h"
#include "checkpoint/model_config.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/presets.h"
#include "core/check.h"
#include "core/text.h"

namespace moe::cli {
namespace {

nlohmann::ordered_json preset_json(const Preset& preset) {
  const Problem& problem = preset.problem;
  const Shape& shape = problem.shape;
  return {{"name", preset.name},
          {"tokens", shape.tokens},
          {"hidden", shape.hidden},
          {"intermediate", shape.intermediate},
          {"experts", shape.experts},
          {"top_k", shape.top_k},
          {"layers", preset.layers},
          {"router", to_string(problem.router)},
          {"activation", to_string(problem.activation)},
          {"expert_bias", problem.expert_bias},
          {"shared_intermediate", problem.shared_intermediate},
          {"shared_switch", problem.shared_switch},
          {"not_computed", preset.limits}};
}

int list(bool json) {
  std::string text = fmt::format("{:<22} {:>5} {:>6} {:>6} {:>4} {:>3}  {}\n", "preset", "T", "H",
                                 "I", "E", "K", "beyond softmax, renormalised, and SwiGLU");
  nlohmann::ordered_json array = nlohmann::ordered_json::array();
  for (const Preset& preset : list_presets()) {
    const Shape& shape = preset.problem.shape;
    const std::string block = block_options(preset.problem);
    text += fmt::format("{:<22} {:>5} {:>6} {:>6} {:>4} {:>3}  {}{}\n", preset.name, shape.tokens,
                        shape.hidden, shape.intermediate, shape.experts, shape.top_k,
                        block.empty() ? "-" : block, preset.limits.empty() ? "" : " (see show)");
    array.push_back(preset_json(preset));
  }
  write_stdout(json ? array.dump(2) + "\n" : text);
  return 0;
}

/// "none", "2048 wide", "512 wide, sigmoid switch"
std::string shared_text(const Problem& problem) {
  if (problem.shared_intermediate == 0) return "none";
  return fmt::format("{} wide{}", problem.shared_intermediate,
                     problem.shared_switch ? ", sigmoid switch" : "");
}

std::string preset_text(const Preset& preset) {
  const Problem& problem = preset.problem;
  const auto bytes = [&](DType dtype) {
    Problem stored = problem;
    stored.dtype = dtype;
    return format_bytes(weight_bytes(stored));
  };
  return fmt::format(
      "{}\n"
      "  shape         {} (T unless --axis tokens=... is given)\n"
      "  layers        {}\n"
      "  weights       {} fp32, {} bf16, of one layer\n"
      "  router        {}\n"
      "  activation    {}\n"
      "  biases        {}\n"
      "  shared        {}\n"
      "  not computed  {}\n",
      preset.name, to_string(problem.shape), preset.layers, bytes(DType::kF32), bytes(DType::kBF16),
      to_string(problem.router), to_string(problem.activation),
      problem.expert_bias ? "of the experts' projections" : "none", shared_text(problem),
      preset.limits.empty() ? "nothing: the block is the model's" : preset.limits);
}

int show(const std::string& name, bool json) {
  const Preset& preset = find_preset(name);
  write_stdout(json ? preset_json(preset).dump(2) + "\n" : preset_text(preset));
  return 0;
}

/// The preset that a config.json describes.
int import_config(const std::string& path, std::string name, bool json) {
  const checkpoint::MappedFile file(path);
  const std::span<const std::byte> bytes = file.bytes();
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const checkpoint::ModelConfig config = checkpoint::parse_config(path, text);
  if (name.empty()) name = config.model_type;
  const Preset preset{name, checkpoint::problem_of(config), "as config.json says", ""};
  write_stdout(json ? preset_json(preset).dump(2) + "\n"
                    : preset_text(preset) +
                          fmt::format("  options       --thiek {},{},{},{},{}{}{}\n",
                                      preset.problem.shape.tokens, preset.problem.shape.hidden,
                                      preset.problem.shape.intermediate,
                                      preset.problem.shape.experts, preset.problem.shape.top_k,
                                      block_options(preset.problem).empty() ? "" : " ",
                                      block_options(preset.problem)));
  return 0;
}

}  // namespace

Command add_presets_list(CLI::App& presets) {
  auto json = std::make_shared<bool>(false);
  CLI::App* app = presets.add_subcommand("list", "List the presets");
  app->add_flag("--json", *json);
  return {app, [json] { return list(*json); }};
}

Command add_presets_show(CLI::App& presets) {
  auto json = std::make_shared<bool>(false);
  auto name = std::make_shared<std::string>();
  CLI::App* app = presets.add_subcommand("show", "Show one preset");
  app->add_option("NAME", *name)->required();
  app->add_flag("--json", *json);
  return {app, [json, name] { return show(*name, *json); }};
}

Command add_presets_import(CLI::App& presets) {
  auto json = std::make_shared<bool>(false);
  auto path = std::make_shared<std::string>();
  auto name = std::make_shared<std::string>();
  CLI::App* app = presets.add_subcommand("import", "The preset that a config.json describes");
  app->add_option("FILE", *path)->required();
  app->add_option("--name", *name);
  app->add_flag("--json", *json);
  return {app, [json, path, name] { return import_config(*path, *name, *json); }};
}

}  // namespace moe::cli
