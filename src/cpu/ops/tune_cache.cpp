#include "cpu/ops/tune_cache.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>
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

/// FNV-1a: a short, stable name for the machine in the file name.
std::uint32_t hash_of(const std::string& text) {
  std::uint32_t hash = 2166136261U;
  for (const char letter : text) {
    hash = (hash ^ static_cast<unsigned char>(letter)) * 16777619U;
  }
  return hash;
}

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

TuneCache::TuneCache(std::string folder, TuneKey key)
    : folder_(std::move(folder)), key_(std::move(key)) {
  if (folder_.empty() || folder_ == "off") return;
  path_ = fmt::format("{}/compiled-{}-{}-t{}-h{}-i{}-e{}-k{}-{:08x}.json", folder_, key_.isa,
                      name_of(key_.dtype), key_.threads, key_.hidden, key_.intermediate,
                      key_.experts, key_.top_k, hash_of(key_.cpu));
}

std::optional<TunedRanges> TuneCache::load(const GemmKernels& kernels) const {
  if (!enabled()) return std::nullopt;
  std::ifstream file(path_);
  if (!file) return std::nullopt;
  try {
    const json stored = json::parse(file);
    if (stored.at("format") != kFormat || stored.at("revision") != kRevision ||
        stored.at("key") != to_json(key_)) {
      return std::nullopt;
    }
    TunedRanges ranges;
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
  if (!enabled()) return {};
  json entries = json::array();
  for (int range = 0; range < TileChoices::kRanges; ++range) {
    const TunedRange& entry = ranges[static_cast<std::size_t>(range)];
    if (entry.tuned) entries.push_back(to_json(range, entry));
  }
  const json document = {{"format", kFormat},
                         {"revision", kRevision},
                         {"key", to_json(key_)},
                         {"seconds", seconds},
                         {"ranges", entries}};
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  if (error) return fmt::format("cannot create {}: {}", folder_, error.message());
  const std::string temporary = fmt::format("{}.{}.tmp", path_, getpid());
  std::ofstream file(temporary);
  file << document.dump(1) << '\n';
  file.close();
  if (!file) {
    std::filesystem::remove(temporary, error);
    return fmt::format("cannot write {}", temporary);
  }
  std::filesystem::rename(temporary, path_, error);
  if (error) {
    const std::string reason = error.message();
    std::filesystem::remove(temporary, error);
    return fmt::format("cannot rename to {}: {}", path_, reason);
  }
  return {};
}

}  // namespace moe::cpu
