// moe verify: levels against the oracle, without timing.
#include <limits>
#include <memory>

#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/parse.h"
#include "core/check.h"
#include "moe/verify.h"
#include "verify/fuzz.h"

namespace moe::cli {
namespace {

struct VerifyCommand {
  WorkloadOptions workload;
  std::vector<std::string> targets;
  std::string fuzz;
  std::string fuzz_seed = "0";
  bool quiet = false;
};

/// One level on one problem: a line, and what it means for the exit code.
ExitCode verify_level(const LevelInfo& level, const Workload& workload, std::int64_t tokens) {
  LayerOptions options = workload.layer;
  options.level = level.name;
  options.problem.shape.tokens = tokens;
  const std::string head =
      fmt::format("{} {:<13} {} {}", level.number, level.name, name_of(options.problem.dtype),
                  to_string(options.problem.shape));
  try {
    const VerifyResult result = verify(options, {.seed = workload.seed, .skew = workload.skew});
    write_stdout(fmt::format(
        "{}  {}\n", head,
        result.passed ? "ok: " + result.worst.describe() : "FAILED: " + result.failure));
    return result.passed ? kOk : kNotVerified;
  } catch (const Error& error) {
    const ExitCode code = exit_code_of(error);
    const bool skipped = code == kNothingRunnable || code == kOutOfMemory;
    write_stdout(fmt::format("{}  {}: {}\n", head, skipped ? "skipped" : "FAILED", error.what()));
    return code;
  }
}

int verify_levels(const VerifyCommand& command, const std::vector<std::string>& names) {
  const Workload workload = resolve(command.workload);
  std::vector<LevelInfo> levels;
  levels.reserve(names.size());
  for (const std::string& name : names) levels.push_back(find_level(name));
  if (levels.empty()) levels = list_levels();
  bool any_ok = false;
  bool wrong = false;
  bool crashed = false;
  ExitCode skipped = kNothingRunnable;
  for (const std::int64_t tokens : workload.tokens) {
    for (const LevelInfo& level : levels) {
      const ExitCode code = verify_level(level, workload, tokens);
      any_ok = any_ok || code == kOk;
      wrong = wrong || code == kNotVerified;
      crashed = crashed || code == kCrashed || code == kUsage;
      if (code == kOutOfMemory) skipped = code;
    }
  }
  if (wrong) return kNotVerified;
  if (crashed) return kCrashed;
  return any_ok ? kOk : skipped;
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
  return command.fuzz.empty() ? verify_levels(command, targets.levels)
                              : verify_random(command, targets.levels);
}

}  // namespace

Command add_verify(CLI::App& app) {
  auto options = std::make_shared<VerifyCommand>();
  CLI::App* command = app.add_subcommand("verify", "Compare levels with the fp64 oracle");
  command->add_option("-t,--targets", options->targets)->allow_extra_args(false);
  options->workload.add_to(*command);
  command->add_option("--fuzz", options->fuzz);
  command->add_option("--fuzz-seed", options->fuzz_seed);
  command->add_flag("-q,--quiet", options->quiet);
  return {command, [options] { return run_verify(*options); }};
}

}  // namespace moe::cli
