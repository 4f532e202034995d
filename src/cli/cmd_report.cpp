// moe report: results as one HTML file.
#include <memory>

#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/output.h"
#include "core/check.h"
#include "report/html.h"

namespace moe::cli {
namespace {

struct ReportOptions {
  std::vector<std::string> files;
  bool html = false;
  std::string output;
};

int make_report(const ReportOptions& options) {
  MOE_CHECK(options.html, "--html is the one form that there is; give it");
  check_writable(options.output);
  std::vector<report::ResultFile> files;
  for (const std::string& path : options.files) files.push_back(report::read_result(path));
  write_file(options.output, report::render_html(files));
  return kOk;
}

}  // namespace

Command add_report(CLI::App& app) {
  auto options = std::make_shared<ReportOptions>();
  CLI::App* command = app.add_subcommand("report", "Results as one HTML file");
  command->add_option("FILES", options->files)->required();
  command->add_flag("--html", options->html);
  command->add_option("-o,--output", options->output)->required();
  return {command, [options] { return make_report(*options); }};
}

}  // namespace moe::cli
