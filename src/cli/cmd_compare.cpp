// moe bench compare: two results, or one and this program measured now; and whether that passes.
#include <charconv>
#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>

#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/live.h"
#include "cli/output.h"
#include "core/check.h"
#include "report/compare.h"

namespace moe::cli {
namespace {

struct CompareOptions {
  std::vector<std::string> files;
  std::string fail_on;
  std::string min_effect;
  bool baseline = false;
  std::string results = MOE_SOURCE_DIR "/results";
  bool live = false;
  std::string old_program;
  std::string format = "table";
  std::string output;
  bool no_color = false;
  bool quiet = false;
};

/// "5%" -> 0.05
double parse_percent(std::string_view option, std::string_view whole, std::string_view text) {
  double value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  MOE_CHECK(parsed.ec == std::errc() && parsed.ptr + 1 == text.data() + text.size() &&
                text.back() == '%' && std::isfinite(value) && value >= 0 && value <= 1000,
            "{}: '{}' does not end in a percentage from 0% to 1000%", option, whole);
  return value / 100;
}

/// `device`: of the results that are compared.
CompareLimits parse_limits(const CompareOptions& options, const report::ResultDevice& device) {
  CompareLimits limits;
  limits.effect = report::default_effect(device);
  limits.effect_us = report::default_effect_us(device);
  constexpr std::string_view kSlowerPrefix = "slower:";
  if (!options.fail_on.empty()) {
    MOE_CHECK(options.fail_on.starts_with(kSlowerPrefix),
              "--fail-on: '{}' is not slower:PERCENT%, such as slower:5%", options.fail_on);
    limits.limit = parse_percent("--fail-on", options.fail_on,
                                 std::string_view(options.fail_on).substr(kSlowerPrefix.size()));
  }
  const std::string& effect = options.min_effect;
  if (effect.ends_with("us")) {
    const auto parsed =
        std::from_chars(effect.data(), effect.data() + effect.size() - 2, limits.effect_us);
    MOE_CHECK(parsed.ec == std::errc() && parsed.ptr == effect.data() + effect.size() - 2 &&
                  std::isfinite(limits.effect_us) && limits.effect_us >= 0,
              "--min-effect: '{}' is not a number of microseconds such as 2us", effect);
  } else if (!effect.empty()) {
    limits.effect = parse_percent("--min-effect", effect, effect);
    limits.effect_us = 0;
  }
  return limits;
}

/// The result under `folder` that was measured on the same kind of device in the same dtype and
/// shares most measured rows with `result`; of those the newest.
report::ResultFile find_baseline(const report::ResultFile& result, const std::string& folder) {
  std::error_code error;
  const std::filesystem::recursive_directory_iterator files(folder, error);
  if (error) fail(ErrorCode::kIo, "cannot read the folder {}: {}", folder, error.message());
  std::optional<report::ResultFile> best;
  std::size_t most = 0;
  int others = 0;
  for (const auto& entry : files) {
    if (entry.path().extension() != ".json") continue;
    if (std::filesystem::equivalent(entry.path(), result.path, error)) continue;
    try {
      report::ResultFile candidate = report::read_result(entry.path().string());
      const std::size_t pairs = report::compare(candidate, result, {}).rows.size();
      if (pairs < most || (pairs == most && candidate.started <= best->started)) continue;
      most = pairs;
      best = std::move(candidate);
    } catch (const Error&) {
      ++others;  // another device, dtype or shape; or no result at all
    }
  }
  MOE_CHECK(best.has_value(), "no file under {} has a row to compare with {} ({} files do not)",
            folder, result.path, others);
  return *std::move(best);
}

int compare(const CompareOptions& options) {
  (void)parse_limits(options, {});  // what is wrong with it is said before anything is read
  const report::Format format = report::parse_format(options.format);
  MOE_CHECK(format != report::Format::kCsv, "a comparison has no csv form; use table, json or md");
  if (!options.output.empty()) check_writable(options.output);
  const std::size_t wanted = options.live || options.baseline ? 1 : 2;
  MOE_CHECK(!options.live || !options.baseline, "--live needs A, which --baseline looks up for B");
  MOE_CHECK(options.old_program.empty() || options.live, "--old is for --live");
  MOE_CHECK(options.files.size() == wanted, "{} {} given, {} needed: {}", options.files.size(),
            options.files.size() == 1 ? "file is" : "files are", wanted,
            options.live       ? "A, because B is measured now"
            : options.baseline ? "B, because A is looked up"
                               : "A and B");
  Progress progress(options.quiet);
  report::CompareReport report;
  if (options.live) {
    const report::ResultFile first = report::read_result(options.files[0]);
    LiveComparison live(first, options.old_program, progress);
    report = report::compare(first, live.measure(), parse_limits(options, first.device));
    live.confirm(report);
  } else {
    const report::ResultFile second = report::read_result(options.files.back());
    const report::ResultFile first = options.baseline ? find_baseline(second, options.results)
                                                      : report::read_result(options.files[0]);
    report = report::compare(first, second, parse_limits(options, first.device));
  }
  progress.clear();
  const bool color = color_wanted(options.no_color);
  if (options.output.empty()) {
    write_stdout(render(report, format, color));
  } else {
    write_file(options.output, render(report, format, false));
    if (!options.quiet) write_stdout(render(report, report::Format::kTable, color));
  }
  return !options.fail_on.empty() && report::any_beyond_limit(report) ? kRegression : kOk;
}

}  // namespace

Command add_bench_compare(CLI::App& bench) {
  auto options = std::make_shared<CompareOptions>();
  CLI::App* app = bench.add_subcommand("compare", "Say what changed between two results");
  app->add_option("FILES", options->files)->required();
  app->add_option("--fail-on", options->fail_on);
  app->add_option("--min-effect", options->min_effect);
  app->add_flag("--baseline", options->baseline);
  app->add_option("--results", options->results);
  app->add_flag("--live", options->live);
  app->add_option("--old", options->old_program);
  app->add_option("--format", options->format);
  app->add_option("--output", options->output);
  app->add_flag("--no-color", options->no_color);
  app->add_flag("-q,--quiet", options->quiet);
  return {app, [options] { return compare(*options); }};
}

}  // namespace moe::cli
