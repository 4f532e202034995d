// The crossover of two levels and its file in the cache.
#include "core/crossover.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "core/problem_key.h"
#include "temporary_folder.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

TEST(Crossover, EndsAtTheFirstSampleThatIsSlower) {
  const auto of = [](std::vector<CrossoverSample> samples) {
    return Crossover{.samples = std::move(samples), .routing = "uniform", .date = ""};
  };
  EXPECT_EQ(of({{1, 10, 20}, {2, 10, 20}, {4, 20, 20}, {8, 30, 20}, {16, 10, 20}}).most_tokens(),
            4);
  EXPECT_EQ(of({{1, 10, 20}, {2, 30, 20}, {4, 10, 20}}).first_slower(), 2);
  EXPECT_EQ(of({{1, 30, 20}, {2, 10, 20}}).most_tokens(), 0);
  EXPECT_EQ(of({{1, 10, 20}, {2, 10, 20}}).most_tokens(), 2);
  EXPECT_EQ(of({{1, 10, 20}, {2, 10, 20}}).first_slower(), 0);
}

class CrossoverFile : public testing::Test {
 protected:
  [[nodiscard]] CrossoverCache cache() const {
    return {folder_.path(), device_, problem_, "streaming", "persistent"};
  }
  test::TemporaryFolder folder_;
  DeviceIdentity device_{"a device", "driver 1, kernels 2"};
  Problem problem_{{16, 64, 128, 8, 2}, DType::kBF16};
  const Crossover example_{.samples = {{1, 10.5, 20.25}, {2, 11, 20}, {4, 21, 20}},
                           .routing = "zipf:1",
                           .date = "2026-01-31T12:00:00Z"};
};

TEST_F(CrossoverFile, ComesBackForAnyNumberOfTokens) {
  EXPECT_FALSE(cache().load().stored.has_value());
  EXPECT_EQ(cache().load().refused, "") << "a missing file is no finding";
  ASSERT_EQ(cache().save(example_), "");
  problem_.shape.tokens = 4096;
  const CrossoverCache::Found found = cache().load();
  ASSERT_TRUE(found.stored.has_value()) << found.refused;
  EXPECT_EQ(*found.stored, example_);
}

TEST_F(CrossoverFile, OfAnotherDriverOrBuildIsRefused) {
  ASSERT_EQ(cache().save(example_), "");
  device_.version = "driver 1, kernels 3";
  EXPECT_FALSE(cache().load().stored.has_value());
  EXPECT_EQ(cache().load().refused, "it was made for something else");
  ASSERT_EQ(cache().save(example_), "");
  EXPECT_TRUE(cache().load().stored.has_value());
}

TEST_F(CrossoverFile, OfAnotherProblemOrDeviceIsAnotherFile) {
  ASSERT_EQ(cache().save(example_), "");
  const std::string path = cache().path();
  device_.device = "another";
  EXPECT_NE(cache().path(), path);
  device_.device = "a device";
  for (std::int64_t Shape::*size :
       {&Shape::hidden, &Shape::intermediate, &Shape::experts, &Shape::top_k}) {
    const Problem before = problem_;
    problem_.shape.*size *= 2;
    EXPECT_NE(cache().path(), path);
    EXPECT_FALSE(cache().load().stored.has_value());
    problem_ = before;
  }
  problem_.dtype = DType::kF32;
  EXPECT_NE(cache().path(), path);
}

TEST_F(CrossoverFile, DamagedIsRefusedWithAReason) {
  ASSERT_EQ(cache().save(example_), "");
  const std::string path = cache().path();
  const auto with = [&](const std::function<void(nlohmann::json&)>& change) {
    ASSERT_EQ(cache().save(example_), "");
    nlohmann::json document = nlohmann::json::parse(std::ifstream(path));
    change(document);
    std::ofstream(path) << document;
    EXPECT_FALSE(cache().load().stored.has_value()) << document;
    EXPECT_EQ(cache().load().refused, "it is damaged") << document;
  };
  with([](nlohmann::json& d) { d.erase("samples"); });
  with([](nlohmann::json& d) { d["samples"] = nlohmann::json::array(); });
  with([](nlohmann::json& d) { d["samples"][0]["few_us"] = "fast"; });
  with([](nlohmann::json& d) { d["samples"][0]["few_us"] = -1; });
  with([](nlohmann::json& d) { d["samples"][2]["tokens"] = 2; });
  std::ofstream(path, std::ios::binary) << "damage";
  EXPECT_EQ(cache().load().refused, "it is damaged");
}

TEST_F(CrossoverFile, OffReadsAndWritesNothing) {
  const CrossoverCache off("off", device_, problem_, "streaming", "persistent");
  EXPECT_EQ(off.save(example_), "");
  EXPECT_FALSE(off.load().stored.has_value());
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

TEST(ProblemKey, HasEverythingButTheTokens) {
  const Problem problem{{16, 64, 128, 8, 2}, DType::kBF16};
  Problem more = problem;
  more.shape.tokens = 17;
  EXPECT_EQ(key_without_tokens(more), key_without_tokens(problem));
  EXPECT_EQ(file_stem(more), file_stem(problem));
  more = problem;
  more.dtype = DType::kF32;
  EXPECT_NE(key_without_tokens(more), key_without_tokens(problem));
  EXPECT_TRUE(file_stem(problem).starts_with("bf16-h64-i128-e8-k2-")) << file_stem(problem);
}

}  // namespace
}  // namespace moe
