#include "cli/app.h"

#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/help.h"
#include "cli/output.h"
#include "cli/provenance.h"
#include "core/check.h"
#include "core/text.h"

namespace moe::cli {
namespace {

/// The innermost command that was named.
CLI::App& innermost(CLI::App& app) {
  CLI::App* at = &app;
  while (!at->get_subcommands().empty()) at = at->get_subcommands().front();
  return *at;
}

/// What CLI11 says about a missing value, in our words.
std::string complaint(const CLI::ParseError& error) {
  std::string what = error.what();
  if (error.get_name() == "ArgumentMismatch") {
    return what.substr(0, what.find(':')) + " needs a value";
  }
  return what;
}

/// "moe bench run"
std::string full_name(const CLI::App& app) {
  const CLI::App* parent = app.get_parent();
  return parent == nullptr ? "moe" : full_name(*parent) + " " + app.get_name();
}

/// CLI11's complaint as one sentence; for an unknown word, with the nearest one that exists.
[[noreturn]] void fail_parsing(CLI::App& app, const CLI::ParseError& error) {
  CLI::App& command = innermost(app);
  const std::string name = full_name(command);
  // main() puts "moe: " in front of every message.
  const std::string prefix = name == "moe" ? "" : name.substr(4) + ": ";
  const std::vector<std::string> extras = app.remaining(true);
  if (!extras.empty()) {
    const std::string& word = extras.front();
    std::vector<std::string> known;
    const bool option = word.starts_with("-");
    if (option) {
      for (const CLI::Option* candidate : command.get_options()) {
        for (const std::string& long_name : candidate->get_lnames())
          known.push_back("--" + long_name);
      }
    } else {
      for (const CLI::App* candidate : command.get_subcommands({})) {
        known.push_back(candidate->get_name());
      }
    }
    MOE_CHECK(known.empty(), "{}unknown {} '{}'; did you mean '{}'?", prefix,
              option ? "option" : "command", word,
              nearest_match(word.substr(0, word.find('=')), known));
    fail(ErrorCode::kInvalidArgument, "{}unexpected argument '{}'", prefix, word);
  }
  if (error.get_name() == "RequiredError" && !command.get_subcommands({}).empty()) {
    std::string commands;
    for (const CLI::App* candidate : command.get_subcommands({})) {
      commands += (commands.empty() ? "" : ", ") + candidate->get_name();
    }
    fail(ErrorCode::kInvalidArgument, "{} needs a command: {}", name, commands);
  }
  fail(ErrorCode::kInvalidArgument, "{}{}", prefix, complaint(error));
}

std::vector<Command> add_commands(CLI::App& app) {
  app.set_help_flag("-h,--help");
  app.set_version_flag("--version", "moe " + version());
  app.require_subcommand(1);
  CLI::App* bench = app.add_subcommand("bench", "Measure levels");
  bench->require_subcommand(1);
  CLI::App* presets = app.add_subcommand("presets", "Layers of known models");
  presets->require_subcommand(1);
  CLI::App* route = app.add_subcommand("route", "Recorded routes");
  route->require_subcommand(1);
  return {add_bench_run(*bench),
          add_bench_list(*bench),
          add_bench_compare(*bench),
          add_bench_history(*bench),
          add_verify(app),
          add_presets_list(*presets),
          add_presets_show(*presets),
          add_presets_import(*presets),
          add_route_gen(*route),
          add_route_stats(*route),
          add_route_convert(*route),
          add_inspect(app),
          add_report(app),
          add_explain(app),
          add_tune(app),
          add_roofline(app),
          add_doctor(app)};
}

}  // namespace

std::vector<std::string> option_names(const std::string& command) {
  CLI::App app("", "moe");
  std::vector<std::string> names;
  for (const Command& candidate : add_commands(app)) {
    if (full_name(*candidate.app) != command) continue;
    for (const CLI::Option* option : candidate.app->get_options()) {
      for (const std::string& name : option->get_lnames()) {
        if (name != "help") names.push_back("--" + name);
      }
    }
  }
  return names;
}

int run_app(int argc, char** argv) {
  CLI::App app("Mixture-of-Experts layer: lab, library, measuring instrument", "moe");
  const std::vector<Command> commands = add_commands(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    write_stdout(help_text(full_name(innermost(app))));
    return kOk;
  } catch (const CLI::CallForVersion& version) {
    write_stdout(std::string(version.what()) + "\n");
    return kOk;
  } catch (const CLI::ParseError& error) {
    fail_parsing(app, error);
  }
  for (const Command& command : commands) {
    if (command.app->parsed()) return command.run();
  }
  fail(ErrorCode::kInternal, "no command ran");
}

}  // namespace moe::cli
