// moe verify: levels against the oracle, without timing.
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

struct VerifyCommand {
  WorkloadOptions workload;
  std::vector<std::string> targets;
  std::string io;
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

int verify_levels(const VerifyCommand& command, const std::vector<std::string>& names) {
  const Workload workload = resolve(command.workload);
  const std::vector<LevelInfo> levels = levels_named(names);
  const std::optional<GivenWeights> given = load_given(workload);
  VerifyLines lines;
  for (const std::int64_t tokens : workload.tokens) {
    for (const LevelInfo& level : levels) {
      LayerOptions options = workload.layer;
      options.level = level.name;
      options.problem.shape.tokens = tokens;
      const std::string head =
          fmt::format("{} {:<13} {} {}", level.number, level.name, name_of(options.problem.dtype),
                      to_string(options.problem.shape));
      lines.add(head, [&] {
        const VerifyResult result = verify_level(options, workload, given);
        return VerifyLine{result.passed, result.passed ? result.worst.describe() : result.failure};
      });
    }
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
  command->add_option("--fuzz", options->fuzz);
  command->add_option("--fuzz-seed", options->fuzz_seed);
  command->add_flag("-q,--quiet", options->quiet);
  return {command, [options] { return run_verify(*options); }};
}

}  // namespace moe::cli
