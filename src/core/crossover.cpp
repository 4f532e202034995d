#include "core/crossover.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/problem_key.h"

namespace moe {
namespace {

using nlohmann::json;

constexpr const char* kFormat = "moe-crossover";
constexpr int kRevision = 1;  // of what is timed and how

bool few_is_faster(const CrossoverSample& sample) {
  return sample.few_us <= sample.many_us;
}

}  // namespace

std::int64_t Crossover::most_tokens() const {
  std::int64_t most = 0;
  for (const CrossoverSample& sample : samples) {
    if (!few_is_faster(sample)) break;
    most = sample.tokens;
  }
  return most;
}

std::int64_t Crossover::first_slower() const {
  const auto first = std::find_if_not(samples.begin(), samples.end(), few_is_faster);
  return first == samples.end() ? 0 : first->tokens;
}

CrossoverCache::CrossoverCache(const std::string& folder, const DeviceIdentity& device,
                               const Problem& problem, const std::string& few,
                               const std::string& many)
    : key_(json{{"device", device.device},
                {"version", device.version},
                {"few", few},
                {"many", many},
                {"problem", key_without_tokens(problem)}}
               .dump()),
      document_(folder,
                fmt::format("crossover-{}-{}-{}-{:016x}.json", few, many, file_stem(problem),
                            hash_of(device.device)),
                kFormat, kRevision) {}

CrossoverCache::Found CrossoverCache::load() const {
  const CacheDocument::Found found = document_.load(json::parse(key_));
  if (found.json.empty()) return {std::nullopt, found.refused};
  try {
    const json document = json::parse(found.json);
    Crossover crossover{.routing = document.at("routing").get<std::string>(),
                        .date = document.at("date").get<std::string>()};
    for (const json& entry : document.at("samples")) {
      const CrossoverSample sample{.tokens = entry.at("tokens").get<std::int64_t>(),
                                   .few_us = entry.at("few_us").get<double>(),
                                   .many_us = entry.at("many_us").get<double>()};
      const std::int64_t last = crossover.samples.empty() ? 0 : crossover.samples.back().tokens;
      if (sample.tokens <= last || !(sample.few_us > 0) || !(sample.many_us > 0)) {
        return {std::nullopt, "it is damaged"};
      }
      crossover.samples.push_back(sample);
    }
    if (crossover.samples.empty()) return {std::nullopt, "it is damaged"};
    return {std::move(crossover), {}};
  } catch (const json::exception&) {
    return {std::nullopt, "it is damaged"};
  }
}

std::string CrossoverCache::save(const Crossover& crossover) const {
  json samples = json::array();
  for (const CrossoverSample& sample : crossover.samples) {
    samples.push_back(
        {{"tokens", sample.tokens}, {"few_us", sample.few_us}, {"many_us", sample.many_us}});
  }
  return document_.save(
      json::parse(key_),
      {{"samples", samples}, {"routing", crossover.routing}, {"date", crossover.date}});
}

}  // namespace moe
