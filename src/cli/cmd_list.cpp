// moe bench list-targets
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/options.h"
#include "cli/output.h"
#include "core/check.h"
#include "core/level.h"

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

int list(bool json) {
  std::string text;
  nlohmann::ordered_json array = nlohmann::ordered_json::array();
  for (const char* suite : {kJourney, kScale}) {
    std::vector<LevelInfo> all = list_levels();
    all.insert(all.end(), list_variants().begin(), list_variants().end());
    for (const LevelInfo& level : all) {
      const std::string target = fmt::format("{}:{}", suite, level.name);
      std::string backends;
      for (const std::string& name : backends_of(level)) {
        backends += (backends.empty() ? "" : ",") + name;
      }
      text += fmt::format("{:<26} {} {}  {:<9} {}\n", target, level.variant ? "of   " : "level",
                          level.number, backends, level.technique);
      array.push_back({{"target", target},
                       {"suite", suite},
                       {"level", level.number},
                       {"name", level.name},
                       {"variant", level.variant},
                       {"technique", level.technique},
                       {"builds_on", level.builds_on},
                       {"backends", backends_of(level)}});
    }
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
