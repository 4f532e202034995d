// moe route: recorded routes, made, described and converted.
#include <algorithm>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/output.h"
#include "cli/parse.h"
#include "cli/presets.h"
#include "core/check.h"
#include "core/workload.h"
#include "report/cells.h"

namespace moe::cli {
namespace {

/// Writes one .jsonl, or the two files of .npy.
void write_trace(const RouteTrace& trace, const std::string& path) {
  if (path.ends_with(".npy")) {
    check_writable(weights_path(path));
    write_file(path, trace_indices_as_npy(trace));
    write_file(weights_path(path), trace_weights_as_npy(trace));
    return;
  }
  MOE_CHECK(path.ends_with(".jsonl"), "{} ends neither in .jsonl nor in .npy", path);
  write_file(path, trace_as_jsonl(trace));
}

struct GenOptions {
  std::string preset = "lab";
  std::string tokens;
  std::string experts;
  std::string top_k;
  std::string skew = "uniform";
  std::string seed = "0";
  std::string output;
};

int gen(const GenOptions& options) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  Shape shape = find_preset(options.preset).problem.shape;
  if (!options.tokens.empty()) shape.tokens = parse_integer("--tokens", options.tokens, 1, kMost);
  if (!options.experts.empty())
    shape.experts = parse_integer("--experts", options.experts, 1, kMost);
  if (!options.top_k.empty()) shape.top_k = parse_integer("--top-k", options.top_k, 1, kMost);
  const Skew skew = Skew::parse(options.skew);
  const std::uint64_t seed = parse_seed("--seed", options.seed);
  check_writable(options.output);
  write_trace(draw_routes(shape, seed, skew), options.output);
  return 0;
}

std::string stats_text(const std::string& path, const RouteTrace& trace, const RouteLoad& load,
                       double top_weight) {
  constexpr std::size_t kWidth = 100;
  const auto busiest = std::max_element(load.rows.begin(), load.rows.end());
  std::string text = fmt::format(
      "{:<12} {}\n{:<12} {} tokens, {} of {} experts each\n{:<12} {} of {} experts\n"
      "{:<12} {:.2f}x the mean load of {:.1f} rows: expert {} with {}\n"
      "{:<12} {:.2f} standard deviation over mean, entropy {:.1f} % of even\n"
      "{:<12} {:.3f} is the mean share of a token's largest\n",
      "trace", path, "size", trace.tokens, trace.top_k, trace.experts, "active", load.active,
      trace.experts, "busiest", load.max_over_mean,
      static_cast<double>(trace.tokens * trace.top_k) / static_cast<double>(trace.experts),
      busiest - load.rows.begin(), *busiest, "spread", load.variation, 100 * load.entropy, "weight",
      top_weight);
  std::string rows;
  for (const std::int64_t count : load.rows)
    rows += fmt::format("{}{}", rows.empty() ? "" : " ", count);
  const std::vector<std::string> lines = report::wrap(rows, kWidth - 13);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    text += fmt::format("{:<12} {}\n", i == 0 ? "rows" : "", lines[i]);
  }
  return text;
}

int stats(const std::string& path, bool json) {
  const RouteTrace trace = read_trace(path);
  const RouteLoad load = load_of(trace);
  double top_weight = 0;
  for (std::int64_t token = 0; token < trace.tokens; ++token) {
    const float* weights = trace.weights.data() + token * trace.top_k;
    double sum = 0;
    for (std::int64_t slot = 0; slot < trace.top_k; ++slot) sum += weights[slot];
    top_weight += *std::max_element(weights, weights + trace.top_k) / sum;
  }
  top_weight /= static_cast<double>(trace.tokens);
  if (!json) {
    write_stdout(stats_text(path, trace, load, top_weight));
    return 0;
  }
  const nlohmann::ordered_json object = {{"tokens", trace.tokens},
                                         {"experts", trace.experts},
                                         {"top_k", trace.top_k},
                                         {"active_experts", load.active},
                                         {"max_over_mean", load.max_over_mean},
                                         {"variation", load.variation},
                                         {"entropy", load.entropy},
                                         {"largest_weight", top_weight},
                                         {"rows_per_expert", load.rows}};
  write_stdout(object.dump() + "\n");
  return 0;
}

}  // namespace

Command add_route_gen(CLI::App& route) {
  auto options = std::make_shared<GenOptions>();
  CLI::App* app = route.add_subcommand("gen", "Draw routes");
  app->add_option("--preset", options->preset);
  app->add_option("--tokens", options->tokens);
  app->add_option("--experts", options->experts);
  app->add_option("--top-k", options->top_k);
  app->add_option("--skew", options->skew);
  app->add_option("--seed", options->seed);
  app->add_option("--output", options->output)->required();
  return {app, [options] { return gen(*options); }};
}

Command add_route_stats(CLI::App& route) {
  auto path = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  CLI::App* app = route.add_subcommand("stats", "How evenly a trace spreads over experts");
  app->add_option("FILE", *path)->required();
  app->add_flag("--json", *json);
  return {app, [path, json] { return stats(*path, *json); }};
}

Command add_route_convert(CLI::App& route) {
  auto paths = std::make_shared<std::pair<std::string, std::string>>();
  CLI::App* app = route.add_subcommand("convert", "A trace in another format");
  app->add_option("FROM", paths->first)->required();
  app->add_option("TO", paths->second)->required();
  return {app, [paths] {
            write_trace(read_trace(paths->first), paths->second);
            return 0;
          }};
}

}  // namespace moe::cli
