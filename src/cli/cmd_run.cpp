// moe bench run: measures, prints, writes.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <limits>
#include <memory>

#include "bench/myths.h"
#include "cli/commands.h"
#include "cli/embedded.h"
#include "cli/exit_codes.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/parse.h"
#include "cli/provenance.h"
#include "cli/watch.h"
#include "core/check.h"
#include "core/text.h"
#include "report/report.h"

namespace moe::cli {
namespace {

struct RunOptions {
  WorkloadOptions workload;
  std::vector<std::string> targets;
  std::string warmup = "1";
  std::string min_samples = "3";
  std::string timeout;
  std::string cache;
  std::string launch = "auto";
  std::string profile;
  std::string format = "table";
  std::string output;
  bool no_color = false;
  bool quiet = false;
};

// Seconds per level and problem unless --timeout says otherwise. naive at 8192 lab tokens takes
// about a minute a forward, seven times; a scale run is for the shape of the curves.
constexpr double kJourneyTimeout = 600;
constexpr double kScaleTimeout = 40;
constexpr double kHangSeconds = 10;
const std::vector<std::int64_t> kScaleTokens = {1, 8, 64, 256, 1024, 4096, 16384};
const std::vector<std::int64_t> kMythTokens = {256, 1024, 4096, 8192, 16384};
const std::vector<std::int64_t> kDecodeTokens = {1, 2, 4, 8, 16, 32, 64, 128, 256};
const std::vector<std::int64_t> kCudaScaleTokens = {2048, 4096, 8192, 16384, 32768, 65536};

/// The levels that moe_decode compares on a backend, and what `auto` makes of them: on a GPU those whose
/// forward one recorded graph launches, on the CPU those that read weights in place.
std::vector<std::string> decode_levels(Backend backend) {
  std::vector<std::string> names;
  const int first = backend == Backend::kCuda ? 7 : 3;
  for (const LevelInfo& level : list_levels()) {
    if (level.number >= first && level.on(backend)) names.push_back(level.name);
  }
  names.emplace_back(kAutoLevel);
  return names;
}

/// The paragraph under "## What scale shows" of the level's docs page, as one line.
std::string scale_reason(const LevelInfo& level) {
  constexpr std::string_view kHeading = "\n## What scale shows\n";
  const std::string_view page = embedded_file("docs/levels/" + level.symbol + ".md");
  const std::size_t at = page.find(kHeading);
  if (at == std::string_view::npos) return {};
  const std::size_t begin = at + kHeading.size();
  std::string text(page.substr(begin, page.find("\n\n", begin) - begin));
  std::replace(text.begin(), text.end(), '\n', ' ');
  text.erase(std::remove(text.begin(), text.end(), '`'), text.end());
  return text;
}

std::vector<Cache> parse_caches(const std::string& text) {
  if (text.empty()) return {};
  if (text == "cold") return {Cache::kCold};
  if (text == "hot") return {Cache::kHot};
  if (text == "dirty") return {Cache::kDirty};
  if (text == "both") return {Cache::kCold, Cache::kHot};
  if (text == "all") return {Cache::kCold, Cache::kDirty, Cache::kHot};
  fail(ErrorCode::kInvalidArgument, "unknown --cache '{}'; did you mean '{}'?", text,
       nearest_match(text, {"cold", "hot", "dirty", "both", "all"}));
}

std::vector<Launch> parse_launches(const std::string& text) {
  for (const Launch launch : {Launch::kAuto, Launch::kEager, Launch::kGraph}) {
    if (text == name_of(launch)) return {launch};
  }
  if (text == "both") return {Launch::kEager, Launch::kGraph};
  fail(ErrorCode::kInvalidArgument, "unknown --launch '{}'; did you mean '{}'?", text,
       nearest_match(text, {"auto", "eager", "graph", "both"}));
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

class Run {
 public:
  explicit Run(const RunOptions& options)
      : options_(options),
        targets_(parse_targets(options.targets)),
        workload_(resolve(options.workload)),
        format_(report::parse_format(options.format)),
        progress_(options.quiet) {
    bench_.warmup = static_cast<int>(parse_integer("--warmup", options.warmup, 0, kMost));
    bench_.min_samples =
        static_cast<int>(parse_integer("--min-samples", options.min_samples, 1, kMost));
    const bool scale = targets_.suite == kScale;
    const bool on_cuda = workload_.layer.backend == Backend::kCuda;
    const bool about_myths = targets_.suite == kMyths;
    bench_.timeout_seconds = scale ? kScaleTimeout : kJourneyTimeout;
    if (!options.timeout.empty()) {
      bench_.timeout_seconds = parse_seconds("--timeout", options.timeout);
    }
    if (scale && !workload_.axis_given) {
      workload_.tokens = on_cuda ? kCudaScaleTokens : kScaleTokens;
      workload_.axis_given = true;
    }
    const bool decode = targets_.suite == kDecode;
    if (decode && !workload_.axis_given) {
      workload_.tokens = kDecodeTokens;
      workload_.axis_given = true;
    }
    if (about_myths) {
      MOE_CHECK(options.launch == "auto", "--launch: {} launches as its claims say", kMyths);
      MOE_CHECK(options.cache != "both" && options.cache != "all",
                "--cache: {} compares in one state of the caches", kMyths);
      for (const std::string& name : targets_.myths) myths_.push_back(find_myth(name));
      if (myths_.empty()) myths_ = list_myths();
      bench_.series = series_of(myths_);
      if (!workload_.axis_given) {
        workload_.tokens = kMythTokens;
        workload_.axis_given = true;
      }
    }
    bench_.levels = targets_.levels;
    if (decode && bench_.levels.empty()) bench_.levels = decode_levels(workload_.layer.backend);
    bench_.layer = workload_.layer;
    bench_.tokens = workload_.tokens;
    bench_.caches = parse_caches(options.cache);
    // One launch of a graph, as engines decode.
    launch_ = decode && on_cuda && options.launch == "auto" ? "graph" : options.launch;
    bench_.launches = parse_launches(launch_);
    MOE_CHECK(options.profile.empty() || options.profile == "kernels",
              "unknown --profile '{}'; did you mean 'kernels'?", options.profile);
    bench_.profile_kernels = !options.profile.empty() || about_myths;  // the causes are in there
    bench_.skew = workload_.skew;
    bench_.seed = workload_.seed;
    if (workload_.checkpoint != nullptr) {
      weights_ = load_weights(*workload_.checkpoint, workload_.layer.problem).weights;
      bench_.weights = weights_.view();
    }
    if (!options.output.empty()) check_writable(options.output);
  }

  int run() {
    const std::string started = utc_now();
    bench_.progress = [this](const std::string& text, bool milestone) {
      progress_.say(text, milestone);
    };
    BenchRun bench(bench_);
    // A slow forward still ends by itself; only one that is far beyond the limit hangs.
    const double limit = bench_.timeout_seconds;
    const Watched watched = watch(bench, limit > 0 ? 2 * limit + kHangSeconds : 0);
    progress_.clear();
    report::Report report = make_report(watched);
    report.started = started;
    print(report);
    if (watched.ending == Ending::kAbandoned) {
      // The other thread is still inside a forward: no destructor may run under it.
      std::fflush(stdout);
      std::fflush(stderr);
      _exit(report.exit_code);
    }
    return report.exit_code;
  }

 private:
  static constexpr std::int64_t kMost = 1000000;

  [[nodiscard]] std::string command_for(const std::string& targets, const std::string& tokens,
                                        const std::string& cache) const {
    std::string text =
        fmt::format("./moe bench run {} {}", targets, repro_options(workload_, tokens));
    if (bench_.warmup != BenchOptions{}.warmup) text += fmt::format(" --warmup {}", bench_.warmup);
    if (bench_.min_samples != BenchOptions{}.min_samples) {
      text += fmt::format(" --min-samples {}", bench_.min_samples);
    }
    if (!options_.timeout.empty()) text += " --timeout " + options_.timeout;
    if (!cache.empty()) text += " --cache " + cache;
    if (launch_ != "auto") text += " --launch " + launch_;
    if (!options_.profile.empty()) text += " --profile " + options_.profile;
    return text;
  }

  [[nodiscard]] report::Report make_report(const Watched& watched) const {
    const BenchResult& result = watched.result;
    report::Report report;
    report.suite = targets_.suite;
    report.backend = workload_.layer.backend;
    report.skew = workload_.skew;
    report.seed = workload_.seed;
    if (workload_.preset != nullptr) {
      report.preset = workload_.preset->name;
      report.preset_limits = preset_limits();
    }
    if (workload_.checkpoint != nullptr) report.data = workload_.checkpoint->text;
    std::string targets;
    for (const std::string& target : options_.targets) {
      targets += (targets.empty() ? "-t " : " -t ") + target;
    }
    report.command = command_for(targets, "", options_.cache);
    report.seconds = result.seconds;
    report.complete = result.complete;
    report.machine = describe_machine();
    report.libraries = linked_libraries(report.machine);
    report.version = version();
    const Commit commit = source_commit();
    report.commit = commit.hash;
    report.modified = commit.modified;
    report.ceilings = result.ceilings;
    report.device = result.device;
    report.noise = result.noise;
    report.steal_fraction = result.steal_fraction;
    report.others_fraction = result.others_fraction;
    for (const BenchRow& row : result.rows) {
      const std::string target =
          targets_.suite == kMyths ? kMyths : targets_.suite + ":" + row.level.name;
      report.rows.push_back(
          {row, target,
           command_for("-t " + target, std::to_string(row.problem.shape.tokens),
                       options_.cache.empty() ? "" : std::string(name_of(row.cache)))});
      add_preset_limits(report.rows.back().bench.notes);
    }
    for (const LevelInfo& level : list_levels()) {
      const std::string reason = scale_reason(level);
      if (!reason.empty()) report.scale_reasons[level.name] = reason;
    }
    report.myths = judge_myths(myths_, result);
    report.exit_code = exit_code_of(report.rows);
    // A forward that did not return took the levels after it along.
    if (watched.ending == Ending::kAbandoned && report.exit_code == kOk) {
      report.exit_code = kTimedOut;
    }
    if (watched.interrupted) report.exit_code = kInterruptedBySignal;
    return report;
  }

  /// What of the preset's model is not computed; "" without a preset.
  [[nodiscard]] std::string preset_limits() const {
    if (workload_.preset == nullptr) return "";
    const std::string block = block_options(workload_.preset->problem);
    if (!workload_.plain || block.empty()) return workload_.preset->limits;
    return "sizes only, without " + block;
  }

  void add_preset_limits(std::string& notes) const {
    const std::string limits = preset_limits();
    if (limits.empty()) return;
    if (!notes.empty()) notes += "; ";
    notes += fmt::format("{}: {}", workload_.preset->name, limits);
  }

  /// With a file, stdout carries the table beside it (nothing when quiet).
  void print(const report::Report& report) const {
    const bool color = color_wanted(options_.no_color);
    if (options_.output.empty()) {
      write_stdout(render(report, format_, color));
      return;
    }
    write_file(options_.output, render(report, format_, false));
    if (!options_.quiet) write_stdout(render(report, report::Format::kTable, color));
  }

  RunOptions options_;
  Targets targets_;
  std::vector<Myth> myths_;
  Workload workload_;
  OwnedWeights weights_;  // of --data ckpt:...
  report::Format format_;
  Progress progress_;
  std::string launch_;  // as asked for, or the suite's
  BenchOptions bench_;
};

}  // namespace

Command add_bench_run(CLI::App& bench) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* app = bench.add_subcommand("run", "Measure levels");
  app->add_option("-t,--targets", options->targets)->allow_extra_args(false);
  options->workload.add_to(*app);
  options->workload.add_data_to(*app);
  app->add_option("--warmup", options->warmup);
  app->add_option("--min-samples", options->min_samples);
  app->add_option("--timeout", options->timeout);
  app->add_option("--cache", options->cache);
  app->add_option("--launch", options->launch);
  app->add_option("--profile", options->profile);
  app->add_option("--format", options->format);
  app->add_option("--output", options->output);
  app->add_flag("--no-color", options->no_color);
  app->add_flag("-q,--quiet", options->quiet);
  return {app, [options] { return Run(*options).run(); }};
}

}  // namespace moe::cli
