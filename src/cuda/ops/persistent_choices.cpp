#include "cuda/ops/persistent_choices.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/problem_key.h"

namespace moe::cuda {
namespace {

using nlohmann::json;

constexpr const char* kFormat = "moe-tune-persistent";
/// Of what is timed and how; the kernels are part of the key.
constexpr int kRevision = 3;

json key_of(const DeviceFacts& facts, const Problem& problem, const std::string& placed) {
  const DeviceIdentity identity = identity_of(facts);
  return {{"device", identity.device},
          {"version", identity.version},
          {"problem", key_without_tokens(problem)},
          {"placed", placed}};
}

json to_json(const GroupedGemmConfig& config) {
  return {{"largest_tile", config.largest_tile},
          {"tiles_together", config.tiles_together},
          {"by_partition", config.by_partition},
          {"weights_read_once", config.weights_read_once},
          {"gathers", config.gathers}};
}
/// Throws json::exception on missing members and wrong types, like all that follow.
GroupedGemmConfig config_from(const json& stored) {
  return {.largest_tile = stored.at("largest_tile").get<int>(),
          .tiles_together = stored.at("tiles_together").get<int>(),
          .by_partition = stored.at("by_partition").get<bool>(),
          .weights_read_once = stored.at("weights_read_once").get<bool>(),
          .gathers = stored.at("gathers").get<bool>()};
}

json to_json(const PersistentChoice& choice) {
  return {{"tokens", choice.tokens},
          {"gate_up", to_json(choice.plan.gate_up)},
          {"down", to_json(choice.plan.down)},
          {"down_begins_early", choice.plan.down_begins_early},
          {"routing", choice.routing},
          {"date", choice.date},
          {"candidates", choice.candidates},
          {"complete", choice.complete},
          {"budget_seconds", choice.budget_seconds},
          {"heuristic_us", choice.heuristic_us},
          {"chosen_us", choice.chosen_us},
          {"noise", choice.noise}};
}
PersistentChoice choice_from(const json& stored) {
  return {.tokens = stored.at("tokens").get<std::int64_t>(),
          .plan = {.gate_up = config_from(stored.at("gate_up")),
                   .down = config_from(stored.at("down")),
                   .down_begins_early = stored.at("down_begins_early").get<bool>()},
          .routing = stored.at("routing").get<std::string>(),
          .date = stored.at("date").get<std::string>(),
          .candidates = stored.at("candidates").get<int>(),
          .complete = stored.at("complete").get<bool>(),
          .budget_seconds = stored.at("budget_seconds").get<double>(),
          .heuristic_us = stored.at("heuristic_us").get<double>(),
          .chosen_us = stored.at("chosen_us").get<double>(),
          .noise = stored.at("noise").get<double>()};
}

std::string check_of(const json& content) {
  return fmt::format("{:016x}", hash_of(content.dump()));
}

/// Whether the tuner could have chosen it.
bool usable(const PersistentChoice& choice, const Problem& problem, const DeviceFacts& facts) {
  if (choice.tokens < 1) return false;
  const std::vector<PersistentPlan> plans = candidate_plans(problem, choice.tokens, facts).plans;
  return std::find(plans.begin(), plans.end(), choice.plan) != plans.end();
}

}  // namespace

PersistentChoiceCache::PersistentChoiceCache(const std::string& folder, const DeviceFacts& facts,
                                             const Problem& problem, std::string placed)
    : facts_(facts),
      problem_(problem),
      placed_(std::move(placed)),
      document_(folder,
                fmt::format("persistent-{}-{:016x}.json", file_stem(problem),
                            hash_of(identity_of(facts).device)),
                kFormat, kRevision) {}

PersistentChoiceCache::Found PersistentChoiceCache::load() const {
  const CacheDocument::Found found = document_.load(key_of(facts_, problem_, placed_));
  if (found.json.empty()) return {{}, found.refused};
  try {
    const json document = json::parse(found.json);
    const json& content = document.at("content");
    if (document.at("check") != check_of(content)) return {{}, "it is damaged"};
    std::vector<PersistentChoice> choices;
    for (const json& entry : content) {
      choices.push_back(choice_from(entry));
      if (!usable(choices.back(), problem_, facts_)) {
        return {{}, "it holds what this layer cannot use"};
      }
    }
    return {std::move(choices), {}};
  } catch (const json::exception&) {
    return {{}, "it is damaged"};
  }
}

std::string PersistentChoiceCache::save(const std::vector<PersistentChoice>& choices) const {
  std::vector<PersistentChoice> all = load().choices;
  for (const PersistentChoice& choice : choices) {
    std::erase_if(all, [&](const PersistentChoice& old) { return old.tokens == choice.tokens; });
    all.push_back(choice);
  }
  std::sort(all.begin(), all.end(), [](const PersistentChoice& a, const PersistentChoice& b) {
    return a.tokens < b.tokens;
  });
  json content = json::array();
  for (const PersistentChoice& choice : all) content.push_back(to_json(choice));
  return document_.save(key_of(facts_, problem_, placed_),
                        {{"content", content}, {"check", check_of(content)}});
}

}  // namespace moe::cuda
