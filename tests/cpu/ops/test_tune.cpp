// The tuner's candidates, order and results, and its cache: round trip, damaged, foreign, read-only.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>

#include "core/workload.h"
#include "cpu/isa/kernels.h"
#include "cpu/ops/tune_cache.h"
#include "cpu/ops/tuner.h"
#include "moe/layer.h"
#include "temporary_folder.h"

namespace moe::cpu {
namespace {

namespace fs = std::filesystem;

using Folder = test::TemporaryFolder;

const GemmKernels& kernels() {
  return kernels_for(best_isa()).gemm(DType::kF32);
}

TuneKey key() {
  return {.cpu = machine_name(),
          .isa = "any",
          .dtype = DType::kF32,
          .threads = 2,
          .hidden = 64,
          .intermediate = 32,
          .experts = 4,
          .top_k = 2};
}

TunedRanges some_ranges() {
  TunedRanges ranges;
  ranges[3] = {.tuned = true,
               .choice = {.shape = kernels().shapes[0],
                          .chunk = 4 * kernels().depth_multiple,
                          .prefetch = true,
                          .row_part = 128,
                          .tasks_per_thread = 72},
               .gain = 1.25,
               .date = "2026-01-31T12:00:00Z"};
  ranges[9] = {.tuned = true,
               .choice = {.shape = kernels().shapes[kernels().shape_count - 1]},
               .gain = 1.0,
               .date = "2026-01-31T12:00:01Z"};
  return ranges;
}

std::string content(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::size_t files_in(const std::string& folder) {
  return static_cast<std::size_t>(
      std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

TEST(TuneCache, RoundTrip) {
  const Folder folder;
  // The folder is made when it is missing.
  const TuneCache cache(folder.path() + "/a/b", key());
  EXPECT_FALSE(cache.load(kernels()).has_value());
  ASSERT_EQ(cache.save(some_ranges(), 1.5), "");
  const auto loaded = cache.load(kernels());
  ASSERT_TRUE(loaded.has_value());
  EXPECT_EQ(*loaded, some_ranges());
  EXPECT_EQ(files_in(folder.path() + "/a/b"), 1U) << "a temporary file was left";
  for (const char* field : {"\"cpu\"", "\"isa\"", "\"threads\"", "\"seconds\"", "\"date\""}) {
    EXPECT_NE(content(cache.path()).find(field), std::string::npos) << field;
  }
}

TEST(TuneCache, OffReadsAndWritesNothing) {
  const TuneCache cache("off", key());
  EXPECT_FALSE(cache.enabled());
  EXPECT_EQ(cache.save(some_ranges(), 1.0), "");
  EXPECT_FALSE(cache.load(kernels()).has_value());
  EXPECT_FALSE(fs::exists("off"));
}

TEST(TuneCache, DamagedFilesAreIgnoredAndReplaced) {
  const Folder folder;
  const TuneCache cache(folder.path(), key());
  ASSERT_EQ(cache.save(some_ranges(), 1.0), "");
  const std::string good = content(cache.path());
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const std::size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  };
  const std::string damaged[] = {
      "",
      "not json",
      "[]",
      "{}",
      "null",
      std::string("\0\xff\xfe", 3),
      good.substr(0, good.size() / 2),
      replaced("\"revision\": 1", "\"revision\": 999"),
      replaced("\"tile_rows\": ", "\"tile_rows\": 9"),
      replaced("\"chunk\": ", "\"chunk\": -"),
      replaced("\"prefetch\": true", "\"prefetch\": 3"),
      replaced("\"tasks_per_thread\": 72", "\"tasks_per_thread\": 0"),
      replaced("\"first_row\": 5", "\"first_row\": 6"),
      replaced("\"first_row\": 5", "\"first_row\": -5"),
  };
  for (const std::string& text : damaged) {
    std::ofstream(cache.path(), std::ios::binary) << text;
    EXPECT_FALSE(cache.load(kernels()).has_value()) << text;
    ASSERT_EQ(cache.save(some_ranges(), 1.0), "");
    EXPECT_TRUE(cache.load(kernels()).has_value());
  }
}

TEST(TuneCache, ForeignFilesAreIgnored) {
  const Folder folder;
  const TuneCache cache(folder.path(), key());
  ASSERT_EQ(cache.save(some_ranges(), 1.0), "");
  TuneKey others[] = {key(), key(), key(), key(), key(), key(), key(), key()};
  others[0].cpu = "another CPU";
  others[1].isa = "other";
  others[2].dtype = DType::kBF16;
  others[3].threads = 3;
  others[4].hidden = 65;
  others[5].intermediate = 33;
  others[6].experts = 5;
  others[7].top_k = 1;
  for (const TuneKey& other : others) {
    const TuneCache foreign(folder.path(), other);
    EXPECT_NE(foreign.path(), cache.path());
    // Even under its own name, a file that says it belongs to someone else is not believed.
    fs::copy_file(cache.path(), foreign.path(), fs::copy_options::overwrite_existing);
    EXPECT_FALSE(foreign.load(kernels()).has_value());
  }
}

TEST(TuneCache, FolderThatCannotBeWrittenIsReported) {
  const Folder folder;
  std::ofstream(folder.path() + "/file") << "x";
  // A file where the folder should be: fails for every user, root included.
  const TuneCache cache(folder.path() + "/file", key());
  EXPECT_NE(cache.save(some_ranges(), 1.0), "");
  EXPECT_FALSE(cache.load(kernels()).has_value());
  if (geteuid() != 0) {
    chmod(folder.path().c_str(), 0500);
    EXPECT_NE(TuneCache(folder.path(), key()).save(some_ranges(), 1.0), "");
    chmod(folder.path().c_str(), 0700);
  }
}

TEST(Tuner, CandidatesStartWithTheHeuristicAndDiffer) {
  for (const Isa isa : available_isas()) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const GemmKernels& gemm = kernels_for(isa).gemm(dtype);
      const TileChoices heuristic = TileChoices::defaults(gemm, dtype);
      for (int range = 0; range < TileChoices::kRanges; ++range) {
        const auto candidates =
            tune_candidates(gemm, dtype, TileChoices::first_row_of(range),
                            TileChoices::last_row_of(range), heuristic.choices[range]);
        ASSERT_FALSE(candidates.empty());
        EXPECT_EQ(candidates.front(), heuristic.choices[range]);
        for (std::size_t i = 0; i < candidates.size(); ++i) {
          for (std::size_t j = 0; j < i; ++j) EXPECT_NE(candidates[i], candidates[j]);
        }
      }
    }
  }
}

TEST(Tuner, OrderStartsAtTheLikeliestRangeAndStaysReachable) {
  const std::vector<int> order =
      tune_order({.tokens = 64, .hidden = 8, .intermediate = 8, .experts = 8, .top_k = 2});
  EXPECT_EQ(order.front(), TileChoices::range_of(16));
  EXPECT_EQ(std::set<int>(order.begin(), order.end()).size(), order.size());
  for (const int range : order) EXPECT_LE(TileChoices::first_row_of(range), 64);
  EXPECT_EQ(order.size(), static_cast<std::size_t>(TileChoices::range_of(64) + 1));
  EXPECT_EQ(tune_order({.tokens = 1, .hidden = 8, .intermediate = 8, .experts = 8, .top_k = 2}),
            std::vector<int>{0});
}

class CompiledCache : public testing::Test {
 protected:
  CompiledCache()
      : problem_{{.tokens = 24, .hidden = 96, .intermediate = 40, .experts = 4, .top_k = 2},
                 DType::kF32},
        weights_(make_weights(problem_, 3)) {}

  Layer layer(const std::string& folder, double seconds) {
    return Layer::create({.level = "compiled",
                          .problem = problem_,
                          .threads = 2,
                          .tune_seconds = seconds,
                          .tune_cache = folder},
                         weights_.view());
  }
  std::vector<float> output(Layer& layer) {
    const Tensor x = make_input(problem_, 3, 0);
    const Tensor y(DType::kF32, {24, 96});
    layer.forward(x.view(), y.view());
    return {y.as<float>(), y.as<float>() + y.view().elements()};
  }

  Problem problem_;
  OwnedWeights weights_;
};

TEST_F(CompiledCache, SecondLayerReadsWhatTheFirstTuned) {
  const Folder folder;
  Layer first = layer(folder.path(), 20.0);
  EXPECT_EQ(first.plan().find(" 0 ranges tuned now"), std::string::npos) << first.plan();
  ASSERT_EQ(files_in(folder.path()), 1U);
  const std::string path = fs::directory_iterator(folder.path())->path().string();
  const std::string written = content(path);
  Layer second = layer(folder.path(), 20.0);
  EXPECT_NE(second.plan().find("(read); 0 ranges tuned now"), std::string::npos) << second.plan();
  EXPECT_EQ(content(path), written);
  // Below the first line, which tells where the choices come from, the plans agree; so do the bits.
  const auto choices = [](const std::string& plan) { return plan.substr(plan.find('\n')); };
  EXPECT_EQ(choices(first.plan()), choices(second.plan()));
  EXPECT_EQ(output(first), output(second));
}

TEST_F(CompiledCache, NoBudgetNoFile) {
  const Folder folder;
  Layer untuned = layer(folder.path(), 0.0);
  EXPECT_EQ(files_in(folder.path()), 0U);
  EXPECT_NE(untuned.plan().find("heuristic"), std::string::npos);
}

TEST_F(CompiledCache, DamagedOrUnwritableCacheStillGivesALayer) {
  const Folder folder;
  Layer reference = layer("off", 0.0);
  layer(folder.path(), 20.0);
  const std::string path = fs::directory_iterator(folder.path())->path().string();
  std::ofstream(path) << "{ damaged";
  Layer damaged = layer(folder.path(), 0.0);
  EXPECT_NE(damaged.plan().find("(none valid)"), std::string::npos) << damaged.plan();
  EXPECT_EQ(output(damaged), output(reference));
  Layer unwritable = layer(path, 20.0);  // the path is a file
  EXPECT_NE(unwritable.plan().find("cannot"), std::string::npos) << unwritable.plan();
}

}  // namespace
}  // namespace moe::cpu
