#include "moe/levels.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <set>
#include <string>

#include "core/level.h"
#include "moe/error.h"

namespace moe {
namespace {

TEST(Levels, AscendFromZeroWithUniqueNames) {
  std::set<std::string> names;
  ASSERT_FALSE(list_levels().empty());
  EXPECT_EQ(list_levels().front().number, 0);
  int previous = -1;
  for (const LevelInfo& info : list_levels()) {
    EXPECT_GT(info.number, previous) << info.name;  // a number may be missing, none comes twice
    previous = info.number;
    EXPECT_TRUE(names.insert(info.name).second) << info.name;
    EXPECT_LE(info.builds_on, info.number);
    EXPECT_EQ(info.symbol, (info.number < 10 ? "level0" : "level") + std::to_string(info.number) +
                               "_" + info.name);
  }
}

TEST(Levels, EveryLevelHasItsDocsPage) {
  for (const LevelInfo& info : list_levels()) {
    EXPECT_TRUE(std::ifstream(MOE_SOURCE_DIR "/docs/levels/" + info.symbol + ".md").good())
        << info.symbol;
  }
}

TEST(Levels, EveryCpuLevelHasAFactory) {
  for (const auto* list : {&list_levels(), &list_variants()}) {
    for (const LevelInfo& info : *list) {
      EXPECT_EQ(level_factory(info, Backend::kCpu) != nullptr, info.on_cpu) << info.name;
    }
  }
}

TEST(Variants, AreFoundByNameOnlyAndDescribedOnThePageOfTheirLevel) {
  std::set<std::string> names;
  for (const LevelInfo& info : list_levels()) names.insert(info.name);
  for (const LevelInfo& info : list_variants()) {
    EXPECT_TRUE(info.variant) << info.name;
    EXPECT_TRUE(names.insert(info.name).second) << info.name << " names two things";
    EXPECT_EQ(find_level(info.name).name, info.name);
    const LevelInfo& level = find_level(std::to_string(info.number));
    EXPECT_FALSE(level.variant) << info.name;
    std::ifstream page(MOE_SOURCE_DIR "/docs/levels/" + level.symbol + ".md");
    const std::string text((std::istreambuf_iterator<char>(page)), {});
    EXPECT_NE(text.find("`" + info.name + "`"), std::string::npos) << info.name;
  }
}

TEST(FindLevel, TakesNumberNameAndAlias) {
  EXPECT_EQ(find_level("0").name, "naive");
  EXPECT_EQ(find_level("memefficient").number, 3);
  EXPECT_EQ(find_level("cudagraphs").name, "graphs");
}

TEST(FindLevel, SuggestsTheNearestName) {
  try {
    static_cast<void>(find_level("grupped"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "unknown level 'grupped'; did you mean 'grouped'?");
  }
  EXPECT_THROW(static_cast<void>(find_level("99")), Error);
  EXPECT_THROW(static_cast<void>(find_level("-1")), Error);
  EXPECT_THROW(static_cast<void>(find_level("")), Error);
}

}  // namespace
}  // namespace moe
