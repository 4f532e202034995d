// moe tune: times a level's candidates on this machine, keeps the choices, and shows what they are worth.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "bench/tuning.h"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/parse.h"
#include "cli/provenance.h"
#include "cli/watch.h"
#include "core/cache_file.h"
#include "core/check.h"
#include "core/text.h"

namespace moe::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kShownCandidates = 5;  // a bucket in the table; JSON has all

struct TuneCommandOptions {
  WorkloadOptions workload;
  std::string level;
  std::string budget = "60s";
  bool repeat_check = false;
  std::string format = "table";
  std::string output;
  bool quiet = false;
};

/// "60s", "60"
double parse_budget(std::string text) {
  const std::string whole = text;
  if (text.ends_with('s')) text.pop_back();
  const double seconds = parse_seconds("--budget", text);
  MOE_CHECK(seconds > 0, "--budget: {} is no time to tune in", whole);
  return seconds;
}

/// How much more than 1 the larger of a and b is of the other.
double apart(double a, double b) {
  return std::max(a, b) / std::min(a, b) - 1;
}

/// Over all forwards that were compared: by how much the two tunings differ, and what tuning gains.
std::optional<double> worst_repeat(const TuneResult& result) {
  std::optional<double> worst;
  for (const TunedForwards& forwards : result.forwards) {
    if (!forwards.again_us) continue;
    worst = std::max(worst.value_or(0), apart(forwards.tuned_us, *forwards.again_us));
  }
  return worst;
}
std::optional<double> best_gain(const TuneResult& result) {
  std::optional<double> best;
  for (const TunedForwards& forwards : result.forwards) {
    best = std::max(best.value_or(forwards.gain), forwards.gain);
  }
  return best;
}

template <class Value>
Json present(const std::optional<Value>& value) {
  return value ? Json(*value) : Json(nullptr);
}
Json text_or_null(const std::string& text) {
  return text.empty() ? Json(nullptr) : Json(text);
}

Json choices_json(const std::vector<TunedChoice>& choices) {
  Json list = Json::array();
  for (const TunedChoice& choice : choices) {
    Json timings = Json::array();
    for (const TimedCandidate& candidate : choice.timings) {
      timings.push_back({{"candidate", candidate.name},
                         {"median_us", candidate.rounds > 0 ? Json(candidate.median_us) : Json()},
                         {"rounds", candidate.rounds}});
    }
    list.push_back({{"tokens", choice.tokens},
                    {"chosen", choice.chosen},
                    {"heuristic", choice.standard},
                    {"timed", choice.timed},
                    {"complete", choice.complete},
                    {"routing", text_or_null(choice.routing)},
                    {"heuristic_us", choice.timed ? Json(choice.standard_us) : Json()},
                    {"chosen_us", choice.timed ? Json(choice.chosen_us) : Json()},
                    {"noise", choice.noise},
                    {"candidates", timings},
                    {"pruned", choice.pruned}});
  }
  return list;
}

Json result_json(const TuneResult& result, const Workload& workload, const std::string& started) {
  const Shape& shape = result.problem.shape;
  const Commit commit = source_commit();
  Json forwards = Json::array();
  for (const TunedForwards& one : result.forwards) {
    forwards.push_back({{"tokens", one.tokens},
                        {"cache", name_of(one.cache)},
                        {"launch", name_of(one.launch)},
                        {"samples", one.samples},
                        {"untuned_us", one.untuned_us},
                        {"tuned_us", one.tuned_us},
                        {"again_us", present(one.again_us)},
                        {"gain", one.gain},
                        {"gain_low", one.gain_low},
                        {"gain_high", one.gain_high},
                        {"error", one.error},
                        {"tolerance_used", one.tolerance_used}});
  }
  Json crossover = nullptr;
  if (result.crossover) {
    Json samples = Json::array();
    for (const CrossoverSample& sample : result.crossover->samples) {
      samples.push_back(
          {{"tokens", sample.tokens}, {"few_us", sample.few_us}, {"many_us", sample.many_us}});
    }
    crossover = {{"few", result.few_level},
                 {"many", result.level.name},
                 {"most_tokens", result.crossover->most_tokens()},
                 {"samples", samples}};
  }
  return {{"schema", "moe-tune-1"},
          {"started", started},
          {"version", version()},
          {"commit", text_or_null(commit.hash)},
          {"modified", commit.modified},
          {"device", result.device ? Json(result.device->name) : Json(nullptr)},
          {"driver", result.device ? Json(result.device->driver) : Json(nullptr)},
          {"cpu", describe_machine().cpu},
          {"preset", workload.preset != nullptr ? Json(workload.preset->name) : Json(nullptr)},
          {"level", result.level.name},
          {"backend", name_of(workload.layer.backend)},
          {"dtype", name_of(result.problem.dtype)},
          {"tokens", shape.tokens},
          {"hidden", shape.hidden},
          {"intermediate", shape.intermediate},
          {"experts", shape.experts},
          {"top_k", shape.top_k},
          {"skew", workload.skew},
          {"seed", workload.seed},
          {"budget_s", result.budget_seconds},
          {"prepare_untuned_s", result.untuned_prepare_seconds},
          {"prepare_tuned_s", result.prepare_seconds},
          {"prepare_again_s", present(result.again_prepare_seconds)},
          {"worst_repeat", present(worst_repeat(result))},
          {"best_gain", present(best_gain(result))},
          {"choices", choices_json(result.choices)},
          {"again", choices_json(result.again)},
          {"forwards", forwards},
          {"crossover", crossover}};
}

std::string choice_text(const TunedChoice& choice) {
  std::string text = fmt::format("{} tokens: ", choice.tokens);
  if (!choice.timed) return text + "not timed, heuristic: " + choice.standard + "\n";
  text += fmt::format("heuristic {}, chosen {}, {:.3f}x (noise {:.1f} %){}\n",
                      format_microseconds(choice.standard_us),
                      format_microseconds(choice.chosen_us), choice.standard_us / choice.chosen_us,
                      100 * choice.noise, choice.complete ? "" : ", not all candidates timed");
  text += fmt::format("  chosen  {}{}\n", choice.chosen,
                      choice.chosen == choice.standard ? " (the heuristic)" : "");
  std::vector<TimedCandidate> shown = choice.timings;
  std::erase_if(shown, [](const TimedCandidate& one) { return one.rounds == 0; });
  std::stable_sort(shown.begin(), shown.end(), [](const auto& a, const auto& b) {
    return a.rounds != b.rounds ? a.rounds > b.rounds : a.median_us < b.median_us;
  });
  const std::size_t timed = shown.size();
  if (timed > kShownCandidates) shown.resize(kShownCandidates);
  for (const TimedCandidate& one : shown) {
    text += fmt::format("  {:>9} in {} rounds  {}\n", format_microseconds(one.median_us),
                        one.rounds, one.name);
  }
  if (timed > shown.size()) text += fmt::format("  and {} more\n", timed - shown.size());
  for (const std::string& reason : choice.pruned) text += "  not timed: " + reason + "\n";
  return text;
}

std::string result_text(const TuneResult& result, const Workload& workload) {
  std::string text = fmt::format(
      "{} for {} {} on {}, {} routing: {:.1f} s to prepare with tuning (budget {} s), {:.1f} s "
      "without\n",
      result.level.name, name_of(result.problem.dtype), to_string(result.problem.shape),
      result.device ? result.device->name : describe_machine().cpu, workload.skew,
      result.prepare_seconds, result.budget_seconds, result.untuned_prepare_seconds);
  for (const TunedChoice& choice : result.choices) text += choice_text(choice);
  if (result.choices.empty()) text += result.plan + (result.plan.ends_with('\n') ? "" : "\n");
  if (!result.forwards.empty()) text += "\nwhole forwards, in turns, every output verified\n";
  for (const TunedForwards& one : result.forwards) {
    text += fmt::format(
        "  {:>6} tokens ({} caches, {}): untuned {}, tuned {}, {:.3f}x ({:.3f} to "
        "{:.3f})",
        one.tokens, name_of(one.cache), name_of(one.launch), format_microseconds(one.untuned_us),
        format_microseconds(one.tuned_us), one.gain, one.gain_low, one.gain_high);
    if (one.again_us) {
      text += fmt::format(", tuned again {}, {:.1f} % apart", format_microseconds(*one.again_us),
                          100 * apart(one.tuned_us, *one.again_us));
    }
    text += "\n";
  }
  if (result.crossover) {
    text += fmt::format("\nauto takes {} up to {} tokens ({})\n", result.few_level,
                        result.crossover->most_tokens(), result.crossover_kept);
    for (const CrossoverSample& sample : result.crossover->samples) {
      text += fmt::format("  {:>6} tokens: {} {}, {} {}\n", sample.tokens, result.few_level,
                          format_microseconds(sample.few_us), result.level.name,
                          format_microseconds(sample.many_us));
    }
  }
  return text;
}

int tune_command(const TuneCommandOptions& given) {
  MOE_CHECK(given.format == "table" || given.format == "json",
            "unknown --format '{}'; did you mean '{}'?", given.format,
            nearest_match(given.format, {"table", "json"}));
  const Workload workload = resolve(given.workload);
  TuneOptions options{.layer = workload.layer,
                      .tokens = workload.tokens,
                      .skew = workload.skew,
                      .seed = workload.seed,
                      .repeat_check = given.repeat_check};
  options.layer.level = given.level;
  options.layer.tune_seconds = parse_budget(given.budget);
  options.layer.problem.shape.tokens =
      *std::max_element(workload.tokens.begin(), workload.tokens.end());
  if (!given.output.empty()) check_writable(given.output);
  Progress progress(given.quiet);
  options.progress = [&](const std::string& text) { progress.say(text); };
  const std::string started = utc_now();
  const Interrupt interrupt;
  options.layer.cancel = interrupt.flag();
  const TuneResult result = tune(options);
  progress.clear();
  if (!result.failure.empty()) {
    std::fprintf(stderr, "moe: %s\n", result.failure.c_str());
    return kNotVerified;
  }
  const std::string table = result_text(result, workload);
  const std::string text =
      given.format == "json" ? result_json(result, workload, started).dump(2) + "\n" : table;
  if (given.output.empty()) {
    write_stdout(text);
  } else {
    write_file(given.output, text);
    if (!given.quiet) write_stdout(table);
  }
  return kOk;
}

}  // namespace

Command add_tune(CLI::App& app) {
  auto options = std::make_shared<TuneCommandOptions>();
  CLI::App* command = app.add_subcommand("tune", "Time a level's candidates and keep the best");
  command->add_option("LEVEL", options->level);
  options->workload.add_to(*command);
  command->remove_option(command->get_option("--tune-seconds"));  // that is the budget
  command->add_option("--budget", options->budget);
  command->add_flag("--repeat-check", options->repeat_check);
  command->add_option("--format", options->format);
  command->add_option("--output", options->output);
  command->add_flag("-q,--quiet", options->quiet);
  return {command, [options] { return tune_command(*options); }};
}

}  // namespace moe::cli
