// moe verify: levels against the oracle, without timing.
#include <algorithm>
#include <limits>
#include <memory>

#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/parse.h"
#include "cli/verify_io.h"
#include "cli/verify_lines.h"
#include "core/check.h"
#include "core/device_tensor.h"
#include "moe/verify.h"
#include "verify/fuzz.h"

namespace moe::cli {
namespace {

constexpr const char* kAllPresets = "all";

struct VerifyCommand {
  WorkloadOptions workload;
  std::vector<std::string> targets;
  std::string io;
  const CLI::Option* scale_down_given = nullptr;
  std::string scale_down;
  std::string fuzz;
  std::string fuzz_seed = "0";
  bool quiet = false;
};

std::vector<LevelInfo> levels_named(const std::vector<std::string>& names) {
  std::vector<LevelInfo> levels;
  levels.reserve(names.size());
  for (const std::string& name : names) levels.push_back(find_level(name));
  return levels.empty() ? list_levels() : levels;
}

/// The weights of --data on the host and where the levels compute; nothing for seeded ones.
struct GivenWeights {
  OwnedWeights host;
  std::unique_ptr<Device> device;
  DeviceWeights placed;
};

std::optional<GivenWeights> load_given(const Workload& workload) {
  if (workload.checkpoint == nullptr) return std::nullopt;
  GivenWeights given{load_weights(*workload.checkpoint, workload.layer.problem).weights,
                     make_device(workload.layer),
                     {}};
  if (given.device->unavailable().empty()) {
    given.placed = DeviceWeights::of(*given.device, given.host.view());
  }
  return given;
}

VerifyResult verify_level(const LayerOptions& options, const Workload& workload,
                          const std::optional<GivenWeights>& given) {
  const VerifyOptions how{.seed = workload.seed, .skew = workload.skew};
  if (!given) return verify(options, how);
  (void)Layer::predict(options);  // a level that cannot run says so before the weights are used
  Layer layer = Layer::create(options, given->placed.view());
  return verify(layer, given->host.view(), how);
}

constexpr std::int64_t kScaleDown = 16;
constexpr std::int64_t kMostScaledTokens = 32;

/// A layer of the same proportions: hidden and intermediate size divided, experts and top-k as they are.
Problem scaled_down(Problem problem, std::int64_t divisor) {
  Shape& shape = problem.shape;
  shape.hidden = std::max<std::int64_t>(1, shape.hidden / divisor);
  shape.intermediate = std::max<std::int64_t>(1, shape.intermediate / divisor);
  if (problem.shared_intermediate > 0) {
    problem.shared_intermediate = std::max<std::int64_t>(1, problem.shared_intermediate / divisor);
  }
  return problem;
}

/// The workload of one preset or of what the options give instead.
Workload resolve_scaled(const VerifyCommand& command, const WorkloadOptions& options) {
  if (command.scale_down_given->count() == 0) return resolve(options);
  MOE_CHECK(options.thiek.empty() && options.data == "normal",
            "--scale-down makes a preset smaller: without --thiek and --data");
  const std::int64_t divisor = command.scale_down.empty()
                                   ? kScaleDown
                                   : parse_integer("--scale-down", command.scale_down, 1,
                                                   std::numeric_limits<std::int32_t>::max());
  Workload workload = resolve(options);
  workload.layer.problem = scaled_down(workload.layer.problem, divisor);
  if (!workload.axis_given) {
    workload.tokens = {std::min(workload.tokens.front(), kMostScaledTokens)};
  }
  return workload;
}

void verify_workload(const Workload& workload, const std::vector<LevelInfo>& levels,
                     const std::string& of, VerifyLines& lines) {
  const std::optional<GivenWeights> given = load_given(workload);
  for (const std::int64_t tokens : workload.tokens) {
    for (const LevelInfo& level : levels) {
      LayerOptions options = workload.layer;
      options.level = level.name;
      options.problem.shape.tokens = tokens;
      const std::string head =
          fmt::format("{}{} {:<13} {} {}", of, level.number, level.name,
                      name_of(options.problem.dtype), to_string(options.problem.shape));
      lines.add(head, [&] {
        const VerifyResult result = verify_level(options, workload, given);
        return VerifyLine{result.passed, result.passed ? result.worst.describe() : result.failure};
      });
    }
  }
}

int verify_levels(const VerifyCommand& command, const std::vector<std::string>& names) {
  const std::vector<LevelInfo> levels = levels_named(names);
  VerifyLines lines;
  if (command.workload.preset != kAllPresets) {
    verify_workload(resolve_scaled(command, command.workload), levels, "", lines);
    return lines.exit_code();
  }
  MOE_CHECK(command.workload.data == "normal",
            "--preset all and --data {} both give the shape; use one", command.workload.data);
  for (const Preset& preset : list_presets()) {
    WorkloadOptions options = command.workload;
    options.preset = preset.name;
    verify_workload(resolve_scaled(command, options), levels, fmt::format("{:<22}", preset.name),
                    lines);
  }
  return lines.exit_code();
}

/// Against the output of another implementation.
int verify_against_dump(VerifyCommand command, const std::vector<std::string>& names) {
  MOE_CHECK(command.workload.data != "normal",
            "--io {}: whose weights made its y? give the layer with --data ckpt:DIR#LAYER",
            command.io);
  MOE_CHECK(command.workload.axis.empty(), "--axis {}: the tokens of --io {} are its rows",
            command.workload.axis, command.io);
  // Others' outputs are compared as they stored them; on a GPU, too.
  if (command.workload.dtype.empty()) command.workload.dtype = name_of(DType::kF32);
  return verify_dump(resolve(command.workload), command.io, levels_named(names));
}

int verify_random(const VerifyCommand& command, const std::vector<std::string>& names) {
  Progress progress(command.quiet);
  FuzzOptions options;
  options.cases =
      parse_integer("--fuzz", command.fuzz, 1, std::numeric_limits<std::int32_t>::max());
  options.seed = parse_seed("--fuzz-seed", command.fuzz_seed);
  options.levels = names;
  options.backend = resolve(command.workload).layer.backend;
  const std::int64_t step = std::max<std::int64_t>(1, options.cases / 20);
  options.on_case = [&](std::int64_t done, std::int64_t failures) {
    if (done % step == 0 || done == options.cases) {
      progress.say(fmt::format("fuzz {}/{}, {} failures", done, options.cases, failures));
    }
    return true;
  };
  const FuzzResult result = fuzz(options);
  progress.clear();
  std::string text;
  for (const FuzzFailure& failure : result.failures) {
    text += fmt::format("FAILED {}: {}\n  repro: {}\n  exact: {}\n", failure.level, failure.what,
                        failure.repro, failure.exact);
  }
  for (const auto& [what, cases] : result.skipped) {
    text += fmt::format("skipped {} ({} cases)\n", what, cases);
  }
  text += fmt::format(
      "{} cases, {} layers verified, {} failures, at most {:.0f} % of tolerance "
      "used; seed {}\n",
      result.cases, result.layers, result.failures.size(), 100 * result.worst_tolerance_used,
      options.seed);
  write_stdout(text);
  if (!result.failures.empty()) return kNotVerified;
  return result.layers > 0 ? kOk : kNothingRunnable;
}

int run_verify(const VerifyCommand& command) {
  const std::vector<std::string> all = {kJourney};
  const Targets targets = parse_targets(command.targets.empty() ? all : command.targets);
  MOE_CHECK(command.scale_down_given->count() == 0 || (command.fuzz.empty() && command.io.empty()),
            "--scale-down makes a preset smaller: without --fuzz and --io");
  if (command.fuzz.empty()) {
    return command.io.empty() ? verify_levels(command, targets.levels)
                              : verify_against_dump(command, targets.levels);
  }
  MOE_CHECK(command.io.empty() && command.workload.data == "normal",
            "--fuzz {} makes its own problems: without --data and --io", command.fuzz);
  return verify_random(command, targets.levels);
}

}  // namespace

Command add_verify(CLI::App& app) {
  auto options = std::make_shared<VerifyCommand>();
  CLI::App* command = app.add_subcommand("verify", "Compare levels with the fp64 oracle");
  command->add_option("-t,--targets", options->targets)->allow_extra_args(false);
  options->workload.add_to(*command);
  options->workload.add_data_to(*command);
  command->add_option("--io", options->io);
  options->scale_down_given =
      command->add_option("--scale-down", options->scale_down)->expected(0, 1);
  command->add_option("--fuzz", options->fuzz);
  command->add_option("--fuzz-seed", options->fuzz_seed);
  command->add_flag("-q,--quiet", options->quiet);
  return {command, [options] { return run_verify(*options); }};
}

}  // namespace moe::cli
