// Loads of a layer, and the file that keeps their choices. Needs the library, but no GPU.
#include "cuda/ops/expert_choices.h"
#include "temporary_folder.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace moe::cuda {
namespace {

namespace fs = std::filesystem;

const std::vector<Shape> kShapes = {
    {1, 64, 64, 4, 2},          {16, 64, 64, 8, 2},       {5, 64, 64, 64, 8},
    {33, 96, 160, 5, 5},        {8192, 1024, 2048, 8, 2}, {4096, 4096, 14336, 8, 2},
    {16384, 2048, 768, 128, 8}, {1000, 64, 64, 7, 3},     {100000, 64, 64, 1024, 40}};

TEST(ExpertLoads, StartWithTheLayersTokensAndLeaveNoGapBetweenTheirRows) {
  for (const Shape& shape : kShapes) {
    const std::vector<ExpertLoad> loads = expert_loads(shape);
    SCOPED_TRACE(to_string(shape));
    ASSERT_FALSE(loads.empty());
    EXPECT_EQ(loads.front().tokens, shape.tokens);
    EXPECT_LE(loads.front().last_rows, shape.tokens);
    for (std::size_t i = 0; i < loads.size(); ++i) {
      EXPECT_LE(1, loads[i].first_rows);
      EXPECT_LE(loads[i].first_rows, loads[i].last_rows);
      const std::int64_t mean =
          std::max<std::int64_t>(1, loads[i].tokens * shape.top_k / shape.experts);
      EXPECT_LE(loads[i].first_rows, mean);
      if (i == 0) continue;
      EXPECT_LT(loads[i].tokens, loads[i - 1].tokens);
      EXPECT_EQ(loads[i].last_rows + 1, loads[i - 1].first_rows);
    }
  }
  EXPECT_EQ(expert_loads({8192, 1024, 2048, 8, 2}),
            (std::vector<ExpertLoad>{
                {8192, 1024, 4096}, {2048, 256, 1023}, {512, 64, 255}, {128, 16, 63}}));
}

TEST(ExpertLoads, AForwardTakesTheNearest) {
  const std::vector<ExpertChoice> choices = default_choices({8192, 1024, 2048, 8, 2});
  const auto load_of = [&](std::int64_t tokens) { return choice_for(choices, tokens).load.tokens; };
  EXPECT_EQ(load_of(8192), 8192);
  EXPECT_EQ(load_of(4097), 8192);
  EXPECT_EQ(load_of(4096), 2048);
  EXPECT_EQ(load_of(1025), 2048);
  EXPECT_EQ(load_of(1024), 512);
  EXPECT_EQ(load_of(1), 128);
}

class ExpertChoiceFile : public testing::Test {
 protected:
  void SetUp() override {
    facts_.name = "a device";
    facts_.major = 9;
    facts_.multiprocessors = 4;
    facts_.driver_version = 13000;
  }
  [[nodiscard]] ExpertChoiceCache cache() const { return {folder_.path(), facts_, problem_, 4}; }
  [[nodiscard]] StoredChoices example() const {
    StoredChoices stored{.choices = default_choices(problem_.shape),
                         .budget_seconds = 2.5,
                         .complete = true,
                         .cold = {1.5, 20, 300.25, 400}};
    ExpertChoice& first = stored.choices.front();
    first.schedule = {3, 2, Pipeline::kPhases, ExpertOrder::kByIndex};
    first.gate_up = MatmulAlgorithm{{1, 2, 3, 0xffffffffffffffffU, 5, 6, 7, 8}};
    first.timed = true;
    first.microseconds = 0.1;
    first.default_microseconds = 123.456;
    first.date = "2026-01-31T12:00:00Z";
    return stored;
  }
  void edit(const std::function<void(nlohmann::json&)>& change) const {
    const std::string path = cache().path();
    nlohmann::json document = nlohmann::json::parse(std::ifstream(path));
    change(document);
    std::ofstream(path) << document;
  }
  void expect_refused(const std::string& reason) const {
    const ExpertChoiceCache::Found found = cache().load();
    EXPECT_FALSE(found.stored.has_value());
    EXPECT_NE(found.refused.find(reason), std::string::npos) << found.refused;
  }
  /// What an owner of the cache does next.
  void expect_rewritable() const {
    ASSERT_EQ(cache().save(example()), "");
    EXPECT_TRUE(cache().load().stored.has_value());
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator()), 1)
        << "a temporary file stayed";
  }

  test::TemporaryFolder folder_;
  DeviceFacts facts_;
  Problem problem_{{64, 64, 128, 8, 2}, DType::kBF16};
};

TEST_F(ExpertChoiceFile, ComesBackAsItWas) {
  EXPECT_FALSE(cache().load().stored.has_value());
  EXPECT_EQ(cache().load().refused, "") << "a missing file is no finding";
  ASSERT_EQ(cache().save(example()), "");
  const ExpertChoiceCache::Found found = cache().load();
  ASSERT_TRUE(found.stored.has_value()) << found.refused;
  EXPECT_EQ(found.stored->choices, example().choices);
  EXPECT_EQ(found.stored->budget_seconds, 2.5);
  EXPECT_TRUE(found.stored->complete);
  EXPECT_EQ(found.stored->cold, example().cold);
}

TEST_F(ExpertChoiceFile, SaysWhatItIsValidFor) {
  ASSERT_EQ(cache().save(example()), "");
  const nlohmann::json key = nlohmann::json::parse(std::ifstream(cache().path())).at("key");
  EXPECT_EQ(key.at("device"), "a device");
  EXPECT_EQ(key.at("driver"), 13000);
  EXPECT_EQ(key.at("library"), cublaslt_version());
  EXPECT_EQ(key.at("dtype"), "bf16");
  EXPECT_EQ(key.at("tokens"), 64);
  EXPECT_EQ(key.at("intermediate"), 128);
}

TEST_F(ExpertChoiceFile, OfAnotherShapeIsAnotherFile) {
  ASSERT_EQ(cache().save(example()), "");
  const std::string path = cache().path();
  for (std::int64_t Shape::*size :
       {&Shape::tokens, &Shape::hidden, &Shape::intermediate, &Shape::experts}) {
    const Problem before = problem_;
    problem_.shape.*size *= 2;
    EXPECT_NE(cache().path(), path);
    EXPECT_FALSE(cache().load().stored.has_value());
    problem_ = before;
  }
  problem_.dtype = DType::kF32;
  EXPECT_NE(cache().path(), path);
}

TEST_F(ExpertChoiceFile, OfAnotherDeviceDriverOrLibraryIsNotUsedButReplaced) {
  for (const char* member : {"device", "driver", "library", "multiprocessors", "tokens"}) {
    ASSERT_EQ(cache().save(example()), "");
    edit([&](nlohmann::json& document) { document["key"][member] = "another"; });
    expect_refused("it was made for something else");
    expect_rewritable();
  }
  facts_.driver_version = 12080;
  expect_refused("it was made for something else");
  expect_rewritable();
}

TEST_F(ExpertChoiceFile, DamagedIsNotUsedButReplaced) {
  ASSERT_EQ(cache().save(example()), "");
  const std::string path = cache().path();
  const std::string good = *read_whole(path);
  std::string digit = good;  // still JSON, but another algorithm
  const std::size_t at = digit.find("18446744073709551615");
  ASSERT_NE(at, std::string::npos);
  digit[at + 3] = '5';
  for (const std::string& text :
       {std::string(), std::string("{}"), std::string("[1, 2"), good.substr(0, good.size() / 2),
        std::string(1000, '\0'), digit}) {
    std::ofstream(path, std::ios::binary) << text;
    const ExpertChoiceCache::Found found = cache().load();
    EXPECT_FALSE(found.stored.has_value()) << text.substr(0, 100);
    EXPECT_NE(found.refused, "");
    expect_rewritable();
  }
}

TEST_F(ExpertChoiceFile, WithChoicesThatNoLayerCanUseIsRefused) {
  const auto saved_with = [&](const std::function<void(StoredChoices&)>& change) {
    StoredChoices stored = example();
    change(stored);
    ASSERT_EQ(cache().save(stored), "");
    expect_refused("it holds what this layer cannot use");
  };
  saved_with([](StoredChoices& stored) { stored.choices.pop_back(); });
  saved_with([](StoredChoices& stored) { stored.choices.push_back(stored.choices.back()); });
  saved_with([](StoredChoices& stored) { stored.choices[0].load.last_rows += 1; });
  saved_with([](StoredChoices& stored) { stored.choices[0].schedule.streams = 0; });
  saved_with([](StoredChoices& stored) { stored.choices[0].schedule.streams = 9; });
  saved_with([](StoredChoices& stored) { stored.choices[0].schedule.launchers = 0; });
  saved_with([](StoredChoices& stored) { stored.choices[0].schedule.launchers = 4; });
  saved_with([](StoredChoices& stored) {
    stored.choices[0].schedule.streams = 8;
    stored.choices[0].schedule.launchers = 5;
  });
}

TEST_F(ExpertChoiceFile, OffReadsAndWritesNothing) {
  const ExpertChoiceCache off("off", facts_, problem_, 4);
  EXPECT_FALSE(off.enabled());
  EXPECT_EQ(off.save(example()), "");
  EXPECT_FALSE(off.load().stored.has_value());
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

}  // namespace
}  // namespace moe::cuda
