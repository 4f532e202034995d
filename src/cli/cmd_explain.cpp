// moe explain LEVEL: what a level does, why and at what cost, from its source file's top comment;
// with a shape, the plan it makes.
#include <memory>

#include "cli/commands.h"
#include "cli/embedded.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/parse.h"
#include "core/check.h"
#include "core/device_tensor.h"
#include "core/workload.h"

namespace moe::cli {
namespace {

struct ExplainOptions {
  WorkloadOptions workload;
  std::string level;
  bool plan = false;
};

/// The comment that opens a source file, without its slashes.
std::string top_comment(std::string_view source) {
  std::string text;
  for (std::string_view line : split(source, '\n')) {
    if (!line.starts_with("//")) break;
    line.remove_prefix(std::min<std::size_t>(line.starts_with("// ") ? 3 : 2, line.size()));
    text += std::string(line) + "\n";
  }
  return text;
}

std::string plan_of(const ExplainOptions& options) {
  const Workload workload = resolve(options.workload);
  LayerOptions layer_options = workload.layer;
  layer_options.level = options.level;
  (void)Layer::predict(layer_options);  // says why it cannot run before weights are made
  const OwnedWeights weights =
      make_weights(layer_options.problem, workload.seed, Skew::parse(workload.skew));
  const std::unique_ptr<Device> device = make_device(layer_options);
  const DeviceWeights placed = DeviceWeights::of(*device, weights.view());
  const Layer layer = Layer::create(layer_options, placed.view());
  const std::string plan = layer.plan();
  const std::string choice = layer.choice().empty() ? "" : "auto takes " + layer.choice() + "\n";
  return choice + fmt::format("plan of {} for {} {} on {}, {} threads ({:.0f} ms to prepare)\n{}\n",
                              layer.level().name, name_of(layer_options.problem.dtype),
                              to_string(layer_options.problem.shape), layer.isa(), layer.threads(),
                              layer.prepare_seconds() * 1e3,
                              plan.empty() ? "none: it decides nothing" : plan);
}

int explain(const ExplainOptions& options) {
  std::string text;
  if (options.level != "auto") {
    const LevelInfo& level = find_level(options.level);
    for (const Backend backend : {Backend::kCpu, Backend::kCuda}) {
      if (!level.on(backend)) continue;
      const std::string path = fmt::format("src/{}/levels/{}.{}", name_of(backend), level.symbol,
                                           backend == Backend::kCpu ? "cpp" : "cu");
      const std::string comment = top_comment(embedded_file(path));
      if (comment.empty()) fail(ErrorCode::kInternal, "{} has no top comment", path);
      text += fmt::format("{}\n{}", path, comment);
    }
  }
  const WorkloadOptions& workload = options.workload;
  const bool shape_given =
      !workload.preset.empty() || !workload.thiek.empty() || !workload.axis.empty();
  if (options.plan || shape_given || options.level == "auto") {
    text += (text.empty() ? "" : "\n") + plan_of(options);
  }
  write_stdout(text);
  return 0;
}

}  // namespace

Command add_explain(CLI::App& app) {
  auto options = std::make_shared<ExplainOptions>();
  CLI::App* command = app.add_subcommand("explain", "What a level does, why, and its costs");
  command->add_option("LEVEL", options->level)->required();
  command->add_flag("--plan", options->plan);
  options->workload.add_to(*command);
  return {command, [options] { return explain(*options); }};
}

}  // namespace moe::cli
