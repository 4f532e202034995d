#include "cuda/ops/expert_choices.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/expert_set.h"

namespace moe::cuda {
namespace {

using nlohmann::json;

/// Results of other loads, schedules or ways of timing are not comparable: raise it with them.
constexpr int kRevision = 3;
constexpr const char* kFormat = "moe-tune-compiled-cuda";

/// Everything that the choices are valid for.
json key_of(const DeviceFacts& facts, const Problem& problem) {
  const Shape& shape = problem.shape;
  return {{"device", facts.name},
          {"capability", fmt::format("{}.{}", facts.major, facts.minor)},
          {"multiprocessors", facts.multiprocessors},
          {"driver", facts.driver_version},
          {"library", cublaslt_version()},
          {"dtype", name_of(problem.dtype)},
          {"tokens", shape.tokens},
          {"hidden", shape.hidden},
          {"intermediate", shape.intermediate},
          {"experts", shape.experts},
          {"top_k", shape.top_k},
          {"block", block_options(problem)}};
}

std::string file_name(const DeviceFacts& facts, const Problem& problem) {
  const Shape& shape = problem.shape;
  return fmt::format("compiled-sm{}{}-{}-t{}-h{}-i{}-e{}-k{}-{:016x}.json", facts.major,
                     facts.minor, name_of(problem.dtype), shape.tokens, shape.hidden,
                     shape.intermediate, shape.experts, shape.top_k,
                     hash_of(facts.name + block_options(problem)));
}

json to_json(const std::optional<MatmulAlgorithm>& algorithm) {
  if (!algorithm) return nullptr;
  json words = json::array();
  for (const std::uint64_t word : algorithm->bits) words.push_back(word);
  return {{"bits", words}, {"means", describe(*algorithm)}};
}
std::optional<MatmulAlgorithm> algorithm_from(const json& stored) {
  if (stored.is_null()) return std::nullopt;
  MatmulAlgorithm algorithm;
  stored.at("bits").get_to(algorithm.bits);
  return algorithm;
}

json to_json(const ExpertChoice& choice) {
  return {{"tokens", choice.load.tokens},
          {"first_rows", choice.load.first_rows},
          {"last_rows", choice.load.last_rows},
          {"streams", choice.schedule.streams},
          {"launchers", choice.schedule.launchers},
          {"pipeline", choice.schedule.pipeline == Pipeline::kChains ? "chains" : "phases"},
          {"largest_first", choice.schedule.order == ExpertOrder::kLargestFirst},
          {"gate_up", to_json(choice.gate_up)},
          {"down", to_json(choice.down)},
          {"timed", choice.timed},
          {"microseconds", choice.microseconds},
          {"default_microseconds", choice.default_microseconds},
          {"date", choice.date}};
}
/// Throws json::exception on missing members and wrong types.
ExpertChoice choice_from(const json& stored) {
  return {
      .load = {stored.at("tokens").get<std::int64_t>(), stored.at("first_rows").get<std::int64_t>(),
               stored.at("last_rows").get<std::int64_t>()},
      .schedule = {stored.at("streams").get<int>(), stored.at("launchers").get<int>(),
                   stored.at("pipeline").get<std::string>() == "chains" ? Pipeline::kChains
                                                                        : Pipeline::kPhases,
                   stored.at("largest_first").get<bool>() ? ExpertOrder::kLargestFirst
                                                          : ExpertOrder::kByIndex},
      .gate_up = algorithm_from(stored.at("gate_up")),
      .down = algorithm_from(stored.at("down")),
      .timed = stored.at("timed").get<bool>(),
      .microseconds = stored.at("microseconds").get<double>(),
      .default_microseconds = stored.at("default_microseconds").get<double>(),
      .date = stored.at("date").get<std::string>()};
}

json to_json(const StartUp& start) {
  return {{"kernels_ms", start.kernels},
          {"library_ms", start.library},
          {"tuning_ms", start.tuning},
          {"total_ms", start.total}};
}

std::string check_of(const json& content) {
  return fmt::format("{:016x}", hash_of(content.dump()));
}

}  // namespace

std::vector<ExpertLoad> expert_loads(const Shape& shape) {
  constexpr std::size_t kMostLoads = 4;
  constexpr std::int64_t kRatio = 4;
  const auto mean_rows = [&](std::int64_t tokens) {
    return std::max<std::int64_t>(1, tokens * shape.top_k / shape.experts);
  };
  std::vector<ExpertLoad> loads;
  std::int64_t last = std::min(shape.tokens, 2 * mean_rows(shape.tokens));
  for (std::int64_t tokens = shape.tokens; tokens >= 1 && last >= 1 && loads.size() < kMostLoads;
       tokens /= kRatio) {
    const std::int64_t first = std::min(last, std::max<std::int64_t>(1, mean_rows(tokens) / 2));
    loads.push_back({tokens, first, last});
    last = first - 1;
  }
  return loads;
}

ExpertSchedule default_schedule(const Shape& shape) {
  constexpr int kStreams = 4;
  // Chains launch SwiGLU once an expert: with many experts the host falls behind the device.
  constexpr std::int64_t kMostChains = 16;
  return {.streams = static_cast<int>(std::min<std::int64_t>(kStreams, shape.experts)),
          .pipeline = shape.experts <= kMostChains ? Pipeline::kChains : Pipeline::kPhases,
          .order = ExpertOrder::kLargestFirst};
}

std::vector<ExpertChoice> default_choices(const Shape& shape) {
  std::vector<ExpertChoice> choices;
  for (const ExpertLoad& load : expert_loads(shape)) {
    choices.push_back({.load = load, .schedule = default_schedule(shape)});
  }
  return choices;
}

const ExpertChoice& choice_for(const std::vector<ExpertChoice>& choices, std::int64_t tokens) {
  for (const ExpertChoice& choice : choices) {
    if (2 * tokens > choice.load.tokens) return choice;
  }
  return choices.back();
}

ExpertChoiceCache::ExpertChoiceCache(const std::string& folder, const DeviceFacts& facts,
                                     const Problem& problem, int most_launchers)
    : facts_(facts),
      problem_(problem),
      most_launchers_(most_launchers),
      document_(folder, file_name(facts, problem), kFormat, kRevision) {}

ExpertChoiceCache::Found ExpertChoiceCache::load() const {
  const CacheDocument::Found found = document_.load(key_of(facts_, problem_));
  if (found.json.empty()) return {std::nullopt, found.refused};
  const std::vector<ExpertLoad> loads = expert_loads(with_shared_slots(problem_));
  try {
    const json document = json::parse(found.json);
    const json& content = document.at("content");
    if (document.at("check") != check_of(content)) return {std::nullopt, "it is damaged"};
    StoredChoices stored{.budget_seconds = content.at("budget_seconds").get<double>(),
                         .complete = content.at("complete").get<bool>()};
    const json& cold = content.at("cold_start");
    stored.cold = {cold.at("kernels_ms").get<double>(), cold.at("library_ms").get<double>(),
                   cold.at("tuning_ms").get<double>(), cold.at("total_ms").get<double>()};
    for (const json& entry : content.at("choices")) {
      ExpertChoice choice = choice_from(entry);
      const std::size_t index = stored.choices.size();
      if (index >= loads.size() || choice.load != loads[index] || choice.schedule.streams < 1 ||
          choice.schedule.streams > ExpertGemms::kMostStreams || choice.schedule.launchers < 1 ||
          choice.schedule.launchers > std::min(choice.schedule.streams, most_launchers_)) {
        return {std::nullopt, "it holds what this layer cannot use"};
      }
      stored.choices.push_back(std::move(choice));
    }
    if (stored.choices.size() != loads.size()) {
      return {std::nullopt, "it holds what this layer cannot use"};
    }
    return {std::move(stored), {}};
  } catch (const json::exception&) {
    return {std::nullopt, "it is damaged"};
  }
}

std::string ExpertChoiceCache::save(const StoredChoices& stored) const {
  json choices = json::array();
  for (const ExpertChoice& choice : stored.choices) choices.push_back(to_json(choice));
  const json content = {{"budget_seconds", stored.budget_seconds},
                        {"complete", stored.complete},
                        {"cold_start", to_json(stored.cold)},
                        {"choices", choices}};
  return document_.save(key_of(facts_, problem_),
                        {{"content", content}, {"check", check_of(content)}});
}

}  // namespace moe::cuda
