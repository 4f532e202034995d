// moe bench history: the same rows in several results, over time.
#include <memory>

#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/output.h"
#include "core/check.h"
#include "report/history.h"

namespace moe::cli {
namespace {

struct HistoryOptions {
  std::vector<std::string> files;
  std::string format = "table";
  std::string output;
  bool no_color = false;
};

int history(const HistoryOptions& options) {
  const report::Format format = report::parse_format(options.format);
  MOE_CHECK(format != report::Format::kCsv, "a history has no csv form; use table, json or md");
  if (!options.output.empty()) check_writable(options.output);
  std::vector<report::ResultFile> files;
  for (const std::string& path : options.files) files.push_back(report::read_result(path));
  const std::vector<report::History> histories = report::history_of(files, {});
  if (options.output.empty()) {
    write_stdout(render(histories, format, color_wanted(options.no_color)));
  } else {
    write_file(options.output, render(histories, format, false));
  }
  return kOk;
}

}  // namespace

Command add_bench_history(CLI::App& bench) {
  auto options = std::make_shared<HistoryOptions>();
  CLI::App* app = bench.add_subcommand("history", "The same rows in several results");
  app->add_option("FILES", options->files)->required();
  app->add_option("--format", options->format);
  app->add_option("--output", options->output);
  app->add_flag("--no-color", options->no_color);
  return {app, [options] { return history(*options); }};
}

}  // namespace moe::cli
