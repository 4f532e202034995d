#include "cpu/ops/tune_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace moe::cpu {
namespace {

using nlohmann::json;

/// Results of another revision of tiles, ranges or scheduling are not comparable: raise it with them.
constexpr int kRevision = 1;
constexpr const char* kFormat = "moe-tune-compiled";

json to_json(const TuneKey& key) {
  return {{"cpu", key.cpu},         {"isa", key.isa},       {"dtype", name_of(key.dtype)},
          {"threads", key.threads}, {"hidden", key.hidden}, {"intermediate", key.intermediate},
          {"experts", key.experts}, {"top_k", key.top_k}};
}

json to_json(int range, const TunedRange& entry) {
  const TileChoice& choice = entry.choice;
  return {{"first_row", TileChoices::first_row_of(range)},
          {"tile_rows", choice.shape.rows},
          {"tile_panels", choice.shape.panels},
          {"chunk", choice.chunk},
          {"prefetch", choice.prefetch},
          {"row_part", choice.row_part},
          {"tasks_per_thread", choice.tasks_per_thread},
          {"gain", entry.gain},
          {"date", entry.date}};
}

/// Throws on missing fields and wrong types (nlohmann::json::exception); nullopt for values that
/// these kernels cannot run.
std::optional<TunedRange> range_from(const json& entry, const GemmKernels& kernels) {
  TunedRange range;
  range.tuned = true;
  TileChoice& choice = range.choice;
  choice.shape = {entry.at("tile_rows").get<int>(), entry.at("tile_panels").get<int>()};
  choice.chunk = entry.at("chunk").get<std::int64_t>();
  choice.prefetch = entry.at("prefetch").get<bool>();
  choice.row_part = entry.at("row_part").get<std::int64_t>();
  choice.tasks_per_thread = entry.at("tasks_per_thread").get<std::int64_t>();
  range.gain = entry.at("gain").get<double>();
  range.date = entry.at("date").get<std::string>();
  const TileShape* end = kernels.shapes + kernels.shape_count;
  const bool usable = std::find(kernels.shapes, end, choice.shape) != end && choice.chunk >= 0 &&
                      choice.chunk % kernels.depth_multiple == 0 && choice.row_part >= 0 &&
                      choice.tasks_per_thread >= 1;
  return usable ? std::optional(range) : std::nullopt;
}

}  // namespace

std::string machine_name() {
  std::string name = "unknown CPU";
#if defined(__x86_64__)
  unsigned words[12] = {};
  unsigned* to = words;
  for (const unsigned leaf : {0x80000002U, 0x80000003U, 0x80000004U}) {
    __get_cpuid(leaf, to, to + 1, to + 2, to + 3);
    to += 4;
  }
  char brand[sizeof(words) + 1] = {};
  std::copy_n(reinterpret_cast<const char*>(words), sizeof(words), brand);
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  __get_cpuid(1, &eax, &ebx, &ecx, &edx);
  const unsigned family = ((eax >> 8) & 0xfU) + ((eax >> 20) & 0xffU);
  const unsigned model = ((eax >> 4) & 0xfU) | ((eax >> 12) & 0xf0U);
  name = fmt::format("{}, family {} model {} stepping {}", brand, family, model, eax & 0xfU);
#endif
  return name;
}

TuneCache::TuneCache(const std::string& folder, TuneKey key)
    : key_(std::move(key)),
      document_(folder,
                fmt::format("compiled-{}-{}-t{}-h{}-i{}-e{}-k{}-{:016x}.json", key_.isa,
                            name_of(key_.dtype), key_.threads, key_.hidden, key_.intermediate,
                            key_.experts, key_.top_k, hash_of(key_.cpu)),
                kFormat, kRevision) {}

std::optional<TunedRanges> TuneCache::load(const GemmKernels& kernels) const {
  const CacheDocument::Found found = document_.load(to_json(key_));
  if (found.json.empty()) return std::nullopt;
  try {
    TunedRanges ranges;
    const json stored = json::parse(found.json);
    for (const json& entry : stored.at("ranges")) {
      const auto first_row = entry.at("first_row").get<std::int64_t>();
      if (first_row < 1) return std::nullopt;
      const int range = TileChoices::range_of(first_row);
      const std::optional<TunedRange> parsed = range_from(entry, kernels);
      if (TileChoices::first_row_of(range) != first_row || !parsed) return std::nullopt;
      ranges[static_cast<std::size_t>(range)] = *parsed;
    }
    return ranges;
  } catch (const json::exception&) {
    return std::nullopt;
  }
}

std::string TuneCache::save(const TunedRanges& ranges, double seconds) const {
  json entries = json::array();
  for (int range = 0; range < TileChoices::kRanges; ++range) {
    const TunedRange& entry = ranges[static_cast<std::size_t>(range)];
    if (entry.tuned) entries.push_back(to_json(range, entry));
  }
  return document_.save(to_json(key_), {{"seconds", seconds}, {"ranges", entries}});
}

}  // namespace moe::cpu
