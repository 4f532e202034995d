// moe presets list | show NAME
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/output.h"
#include "cli/presets.h"
#include "core/check.h"
#include "core/text.h"

namespace moe::cli {
namespace {

nlohmann::ordered_json preset_json(const Preset& preset) {
  const Shape& shape = preset.shape;
  return {{"name", preset.name},
          {"tokens", shape.tokens},
          {"hidden", shape.hidden},
          {"intermediate", shape.intermediate},
          {"experts", shape.experts},
          {"top_k", shape.top_k},
          {"layers", preset.layers},
          {"router", preset.router},
          {"shared_experts", preset.shared},
          {"activation", preset.activation},
          {"not_computed", preset.limits}};
}

int list(bool json) {
  std::string text = fmt::format("{:<20} {:>6} {:>6} {:>6} {:>4} {:>3}  {}\n", "preset", "T", "H",
                                 "I", "E", "K", "what of the model is not computed");
  nlohmann::ordered_json array = nlohmann::ordered_json::array();
  for (const Preset& preset : list_presets()) {
    const Shape& shape = preset.shape;
    text += fmt::format("{:<20} {:>6} {:>6} {:>6} {:>4} {:>3}  {}\n", preset.name, shape.tokens,
                        shape.hidden, shape.intermediate, shape.experts, shape.top_k,
                        preset.limits.empty() ? "-" : preset.limits);
    array.push_back(preset_json(preset));
  }
  write_stdout(json ? array.dump(2) + "\n" : text);
  return 0;
}

int show(const std::string& name, bool json) {
  const Preset& preset = find_preset(name);
  if (json) {
    write_stdout(preset_json(preset).dump(2) + "\n");
    return 0;
  }
  const auto bytes = [&](DType dtype) {
    return format_bytes(weight_bytes({.shape = preset.shape, .dtype = dtype}));
  };
  write_stdout(
      fmt::format("{}\n"
                  "  shape         {} (T unless --axis tokens=... is given)\n"
                  "  layers        {}\n"
                  "  weights       {} fp32, {} bf16, of one layer\n"
                  "  router        {}\n"
                  "  shared        {}\n"
                  "  activation    {}\n"
                  "  not computed  {}\n",
                  preset.name, to_string(preset.shape), preset.layers, bytes(DType::kF32),
                  bytes(DType::kBF16), preset.router, preset.shared, preset.activation,
                  preset.limits.empty() ? "nothing: computed as the model does" : preset.limits));
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

}  // namespace moe::cli
