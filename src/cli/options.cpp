#include "cli/options.h"

#include <algorithm>
#include <limits>

#include "bench/myths.h"
#include "cli/parse.h"
#include "core/check.h"
#include "core/isa.h"
#include "core/level.h"
#include "core/text.h"
#include "core/workload.h"
#include "moe/bench.h"

namespace moe::cli {
namespace {

constexpr std::int64_t kMostThreads = 4096;

/// The lab's layer without a token count of its own: enough for a GPU to show what it does.
constexpr std::int64_t kCudaLabTokens = 8192;

Backend default_backend() {
  return why_unusable(Backend::kCuda).empty() ? Backend::kCuda : Backend::kCpu;
}

/// Tokens of a checkpoint's layer unless told otherwise: those of the presets.
constexpr std::int64_t kCheckpointTokens = 64;

/// Throws when this build has no level for the backend. A backend that the machine cannot run is
/// told row by row.
void check_backend(Backend backend) {
  const auto& levels = list_levels();
  const bool any = std::any_of(levels.begin(), levels.end(), [&](const LevelInfo& level) {
    return level_factory(level, backend) != nullptr;
  });
  if (!any) {
    fail(ErrorCode::kUnsupported, "this build has no {} backend", name_of(backend));
  }
}

std::string join(const std::vector<std::int64_t>& values) {
  std::string text;
  for (const std::int64_t value : values)
    text += fmt::format("{}{}", text.empty() ? "" : ",", value);
  return text;
}

/// Whether the command line says anything of the block besides sizes and dtype.
bool sets_block(const WorkloadOptions& options) {
  return !options.router.empty() || !options.activation.empty() || options.expert_bias ||
         !options.shared.empty();
}

/// What the command line says of the block, over what the preset has.
void apply_block(const WorkloadOptions& options, Problem& problem) {
  if (!options.router.empty()) problem.router = parse_router(options.router);
  if (!options.activation.empty()) problem.activation = parse_activation(options.activation);
  if (options.expert_bias) problem.expert_bias = true;
  if (!options.shared.empty()) set_shared_expert(problem, options.shared);
}

}  // namespace

void WorkloadOptions::add_to(CLI::App& command) {
  command.add_option("--preset", preset);
  command.add_option("--thiek", thiek);
  command.add_option("--axis", axis);
  command.add_option("--router", router);
  command.add_option("--activation", activation);
  command.add_flag("--expert-bias", expert_bias);
  command.add_option("--shared", shared);
  command.add_flag("--plain", plain);
  command.add_option("--dtype", dtype);
  command.add_option("--backend", backend);
  command.add_option("--threads", threads);
  command.add_option("--seed", seed);
  command.add_option("--skew", skew);
  command.add_option("--isa", isa);
  command.add_option("--workspace-limit", workspace_limit);
  command.add_option("--tune-seconds", tune_seconds);
  command.add_option("--tune-cache", tune_cache);
}

void WorkloadOptions::add_data_to(CLI::App& command) {
  command.add_option("--data", data);
}

Workload resolve(const WorkloadOptions& options) {
  MOE_CHECK(options.preset.empty() || options.thiek.empty(),
            "--preset {} and --thiek {} both give the shape; use one", options.preset,
            options.thiek);
  Workload workload;
  LayerOptions& layer = workload.layer;
  layer.backend = options.backend.empty() ? default_backend() : parse_backend(options.backend);
  const bool on_cuda = layer.backend == Backend::kCuda;
  layer.problem.dtype =
      options.dtype.empty() ? (on_cuda ? DType::kBF16 : DType::kF32) : parse_dtype(options.dtype);
  const Skew skew = Skew::parse(options.skew);
  workload.skew = skew.describe();
  if (options.data != "normal") {
    MOE_CHECK(options.preset.empty() && options.thiek.empty(),
              "--data {} and {} {} both give the shape; use one", options.data,
              options.preset.empty() ? "--thiek" : "--preset",
              options.preset.empty() ? options.thiek : options.preset);
    MOE_CHECK(workload.skew == "uniform",
              "--skew {} is made by seeded weights; those of --data {} route as they do",
              options.skew, options.data);
    MOE_CHECK(!sets_block(options) && !options.plain,
              "--data {} has its own router, activation, biases and shared expert", options.data);
    const std::shared_ptr<CheckpointData> data = open_checkpoint(options.data);
    layer.problem = checkpoint::problem_of(data->config, data->plan, layer.problem.dtype);
    layer.problem.shape.tokens = kCheckpointTokens;
    workload.checkpoint = data;
  } else if (options.thiek.empty()) {
    workload.preset = &find_preset(options.preset.empty() ? "lab" : options.preset);
    const DType dtype = layer.problem.dtype;
    layer.problem =
        options.plain ? Problem{.shape = workload.preset->problem.shape} : workload.preset->problem;
    layer.problem.dtype = dtype;
    workload.plain = options.plain;
    if (options.preset.empty() && on_cuda) layer.problem.shape.tokens = kCudaLabTokens;
  } else {
    layer.problem.shape = parse_thiek(options.thiek);
  }
  if (sets_block(options)) {
    apply_block(options, layer.problem);
    workload.preset = nullptr;  // a layer of its own, told by its sizes
  }
  workload.axis_given = !options.axis.empty();
  workload.tokens = workload.axis_given ? parse_tokens_axis(options.axis)
                                        : std::vector<std::int64_t>{layer.problem.shape.tokens};
  for (const std::int64_t tokens : workload.tokens) {
    layer.problem.shape.tokens = tokens;
    validate(layer.problem);
    skew.check(layer.problem.shape);
  }
  layer.problem.shape.tokens = workload.tokens.front();
  layer.threads = static_cast<int>(parse_integer("--threads", options.threads, 0, kMostThreads));
  layer.isa = name_of(parse_isa(options.isa)) == options.isa ? options.isa : "auto";
  layer.tune_seconds = parse_seconds("--tune-seconds", options.tune_seconds);
  layer.tune_cache = options.tune_cache;
  if (!options.workspace_limit.empty()) {
    layer.workspace_limit = parse_bytes("--workspace-limit", options.workspace_limit);
  }
  workload.seed = parse_seed("--seed", options.seed);
  check_backend(layer.backend);
  return workload;
}

std::string repro_options(const Workload& workload, const std::string& tokens) {
  const LayerOptions& layer = workload.layer;
  const Shape& shape = layer.problem.shape;
  std::string text;
  if (workload.checkpoint != nullptr) {
    text = fmt::format("--data {} --axis tokens={}", shell_word(workload.checkpoint->text),
                       tokens.empty() ? join(workload.tokens) : tokens);
  } else if (workload.preset != nullptr) {
    text = fmt::format("--preset {}{} --axis tokens={}", workload.preset->name,
                       workload.plain ? " --plain" : "",
                       tokens.empty() ? join(workload.tokens) : tokens);
  } else {
    text = fmt::format("--thiek {},{},{},{},{}",
                       tokens.empty() ? std::to_string(shape.tokens) : tokens, shape.hidden,
                       shape.intermediate, shape.experts, shape.top_k);
    const std::string block = block_options(layer.problem);
    if (!block.empty()) text += " " + block;
    if (tokens.empty() && workload.axis_given) {
      text += fmt::format(" --axis tokens={}", join(workload.tokens));
    }
  }
  text += fmt::format(" --dtype {} --backend {} --threads {} --isa {} --skew {} --seed {}",
                      name_of(layer.problem.dtype), name_of(layer.backend), layer.threads,
                      layer.isa, workload.skew, workload.seed);
  if (layer.workspace_limit != 0)
    text += fmt::format(" --workspace-limit {}", layer.workspace_limit);
  if (layer.tune_seconds != LayerOptions{}.tune_seconds) {
    text += fmt::format(" --tune-seconds {}", layer.tune_seconds);
  }
  if (!layer.tune_cache.empty()) text += fmt::format(" --tune-cache {}", layer.tune_cache);
  return text;
}

Targets parse_targets(const std::vector<std::string>& targets) {
  MOE_CHECK(!targets.empty(), "no target: give one with -t, such as -t {}", kJourney);
  Targets out;
  bool all = false;
  for (const std::string& target : targets) {
    const std::size_t colon = target.find(':');
    const std::string suite = target.substr(0, colon);
    const std::vector<std::string> names = {kJourney, kScale, kDecode, kMyths};
    if (std::find(names.begin(), names.end(), suite) == names.end()) {
      for (const LevelInfo& level : list_levels()) {
        if (level.name == target) {
          fail(ErrorCode::kInvalidArgument, "unknown target '{}'; did you mean '{}:{}'?", target,
               kJourney, target);
        }
      }
      fail(ErrorCode::kInvalidArgument, "unknown target '{}'; did you mean '{}'?", target,
           nearest_match(suite, names));
    }
    MOE_CHECK(out.suite.empty() || out.suite == suite,
              "-t {} and -t {} are different reports; run them one after the other", out.suite,
              suite);
    out.suite = suite;
    const std::string level = colon == std::string::npos ? "all" : target.substr(colon + 1);
    if (level == "all") {
      all = true;
    } else if (suite == kMyths) {
      out.myths.push_back(find_myth(level).name);
    } else if (level == kAutoLevel) {
      out.levels.emplace_back(kAutoLevel);
    } else {
      out.levels.push_back(find_level(level).name);
    }
  }
  if (all) {
    out.levels.clear();
    out.myths.clear();
  }
  return out;
}

}  // namespace moe::cli
