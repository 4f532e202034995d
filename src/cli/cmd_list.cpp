// moe bench list-targets
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "bench/myths.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/output.h"
#include "core/check.h"
#include "core/level.h"
#include "moe/error.h"

namespace moe::cli {
namespace {

/// Backends of this build that have the level.
std::vector<std::string> backends_of(const LevelInfo& level) {
  std::vector<std::string> names;
  for (const Backend backend : {Backend::kCpu, Backend::kCuda}) {
    if (level_factory(level, backend) != nullptr) names.emplace_back(name_of(backend));
  }
  return names;
}

/// Why a level of this build cannot run on a backend of this machine; "" when it can. Asked for the
/// smallest problem, so that only the machine matters.
std::string reason_against(const LevelInfo& level, Backend backend) {
  LayerOptions options;
  options.level = level.name;
  options.backend = backend;
  options.problem = {
      .shape = {.tokens = 1, .hidden = 64, .intermediate = 64, .experts = 2, .top_k = 1},
      .dtype = DType::kBF16};
  try {
    static_cast<void>(Layer::predict(options));
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

int list(bool json) {
  std::string text;
  std::map<std::string, std::set<std::string>> reasons;  // "backend: reason" -> levels
  nlohmann::ordered_json array = nlohmann::ordered_json::array();
  for (const char* suite : {kJourney, kScale, kDecode}) {
    std::vector<LevelInfo> all = list_levels();
    all.insert(all.end(), list_variants().begin(), list_variants().end());
    for (const LevelInfo& level : all) {
      const std::string target = fmt::format("{}:{}", suite, level.name);
      std::string backends;
      nlohmann::ordered_json cannot_run = nlohmann::ordered_json::object();
      for (const std::string& name : backends_of(level)) {
        const std::string reason = reason_against(level, parse_backend(name));
        backends += (backends.empty() ? "" : ",") + name;
        if (reason.empty()) continue;
        backends += "*";
        cannot_run[name] = reason;
        reasons[fmt::format("{}: {}", name, reason)].insert(level.name);
      }
      text += fmt::format("{:<26} {} {}  {:<10} {}\n", target, level.variant ? "of   " : "level",
                          level.number, backends, level.technique);
      array.push_back({{"target", target},
                       {"suite", suite},
                       {"level", level.number},
                       {"name", level.name},
                       {"variant", level.variant},
                       {"technique", level.technique},
                       {"builds_on", level.builds_on},
                       {"backends", backends_of(level)},
                       {"cannot_run", cannot_run}});
    }
  }
  for (const char* suite : {kJourney, kScale, kDecode}) {
    const std::string target = fmt::format("{}:{}", suite, kAutoLevel);
    constexpr const char* kTechnique = "the level that suits the problem";
    text += fmt::format("{:<26} {}\n", target, kTechnique);
    array.push_back(
        {{"target", target}, {"suite", suite}, {"name", kAutoLevel}, {"technique", kTechnique}});
  }
  for (const Myth& myth : list_myths()) {
    const std::string target = fmt::format("{}:{}", kMyths, myth.name);
    text += fmt::format("{:<26} \"{}\": {} -> {}\n", target, myth.claim, myth.baseline.level,
                        myth.changed.level);
    array.push_back({{"target", target},
                     {"suite", kMyths},
                     {"name", myth.name},
                     {"claim", myth.claim},
                     {"without", myth.baseline.level},
                     {"with", myth.changed.level}});
  }
  for (const auto& [reason, levels] : reasons) {
    text += fmt::format(
        "* {} cannot run on {}\n",
        levels.size() == 1 ? *levels.begin() : fmt::format("{} levels", levels.size()), reason);
  }
  write_stdout(json ? array.dump(2) + "\n" : text);
  return 0;
}

}  // namespace

Command add_bench_list(CLI::App& bench) {
  auto json = std::make_shared<bool>(false);
  CLI::App* app = bench.add_subcommand("list-targets", "List what bench run can measure");
  app->add_flag("--json", *json);
  return {app, [json] { return list(*json); }};
}

}  // namespace moe::cli
