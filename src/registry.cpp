// Expands src/levels.def into the list of levels and their factories.
#include <algorithm>
#include <array>
#include <charconv>

#include "core/level.h"
#include "core/text.h"

namespace moe {
namespace {
constexpr unsigned kCpu = 1;
constexpr unsigned kCuda = 2;
}  // namespace

#define MOE_LEVEL(number, symbol, name, builds_on, backends, technique) \
  namespace cpu {                                                       \
  std::unique_ptr<Level> make_##symbol();                               \
  }                                                                     \
  namespace cuda {                                                      \
  std::unique_ptr<Level> make_##symbol();                               \
  }
#define MOE_VARIANT(number, symbol, name, backends, technique) \
  namespace cpu {                                              \
  std::unique_ptr<Level> make_variant_##name();                \
  }                                                            \
  namespace cuda {                                             \
  std::unique_ptr<Level> make_variant_##name();                \
  }
#include "levels.def"
#undef MOE_LEVEL
#undef MOE_VARIANT

namespace {

struct Registration {
  LevelInfo info;
  LevelFactory cpu = nullptr;
  LevelFactory cuda = nullptr;
};

// A factory is named only for the backends that the line lists and this build contains, so a
// missing one is a link error and an unlisted one needs no definition.
const std::vector<Registration>& registrations() {
  static const std::vector<Registration> all = [] {
    std::vector<Registration> list;
#define MOE_REGISTER(number, symbol, name, factory, builds_on, backends, technique, variant)  \
  {                                                                                           \
    Registration entry{{number, name, #symbol, technique, builds_on, ((backends)&kCpu) != 0,  \
                        ((backends)&kCuda) != 0, variant}};                                   \
    if constexpr (((backends)&kCpu) != 0) entry.cpu = &cpu::factory;                          \
    if constexpr (((backends)&kCuda) != 0 && MOE_HAVE_CUDA != 0) entry.cuda = &cuda::factory; \
    list.push_back(std::move(entry));                                                         \
  }
#define MOE_LEVEL(number, symbol, name, builds_on, backends, technique) \
  MOE_REGISTER(number, symbol, name, make_##symbol, builds_on, backends, technique, false)
#define MOE_VARIANT(number, symbol, name, backends, technique) \
  MOE_REGISTER(number, symbol, #name, make_variant_##name, number, backends, technique, true)
#include "levels.def"
#undef MOE_LEVEL
#undef MOE_VARIANT
#undef MOE_REGISTER
    return list;
  }();
  return all;
}

/// Other names under which a level is known outside this project.
constexpr std::array<std::pair<std::string_view, std::string_view>, 1> kAliases = {
    {{"cudagraphs", "graphs"}}};

std::vector<LevelInfo> registered(bool variants) {
  std::vector<LevelInfo> list;
  for (const Registration& entry : registrations()) {
    if (entry.info.variant == variants) list.push_back(entry.info);
  }
  return list;
}

}  // namespace

const std::vector<LevelInfo>& list_levels() {
  static const std::vector<LevelInfo> infos = registered(false);
  return infos;
}

const std::vector<LevelInfo>& list_variants() {
  static const std::vector<LevelInfo> infos = registered(true);
  return infos;
}

const LevelInfo& find_level(std::string_view number_or_name) {
  std::string_view wanted = number_or_name;
  for (const auto& [alias, name] : kAliases) {
    if (wanted == alias) wanted = name;
  }
  int number = -1;
  const auto parsed = std::from_chars(wanted.data(), wanted.data() + wanted.size(), number);
  const bool is_number = parsed.ec == std::errc() && parsed.ptr == wanted.data() + wanted.size();
  std::vector<std::string> names;
  for (const LevelInfo& info : list_levels()) {
    if (info.name == wanted || (is_number && info.number == number)) return info;
    names.push_back(info.name);
  }
  for (const LevelInfo& info : list_variants()) {
    if (info.name == wanted) return info;
    names.push_back(info.name);
  }
  if (is_number) {
    fail(ErrorCode::kInvalidArgument, "no level {}: levels run from {} to {}", number_or_name,
         list_levels().front().number, list_levels().back().number);
  }
  fail(ErrorCode::kInvalidArgument, "unknown level '{}'; did you mean '{}'?", number_or_name,
       nearest_match(wanted, names));
}

LevelFactory level_factory(const LevelInfo& level, Backend backend) {
  const auto& all = registrations();
  const auto entry = std::find_if(all.begin(), all.end(), [&](const Registration& candidate) {
    return candidate.info.name == level.name;
  });
  if (entry == all.end()) return nullptr;
  return backend == Backend::kCpu ? entry->cpu : entry->cuda;
}

}  // namespace moe
