// Level 8's plans, the file of its choices, and the tuner on a clockwork instead of a device. No GPU needed.
#include "cuda/ops/persistent_choices.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "cuda/ops/persistent_tuner.h"
#include "cuda/ops/tile_order.h"
#include "temporary_folder.h"

namespace moe::cuda {
namespace {

namespace fs = std::filesystem;

DeviceFacts hopper() {
  DeviceFacts facts;
  facts.name = "a device";
  facts.major = 9;
  facts.multiprocessors = 132;
  facts.l2_bytes = std::size_t{60} << 20;
  facts.shared_bytes_per_block = 232448;
  facts.driver_version = 13000;
  return facts;
}

const Shape kQwen = {16384, 2048, 768, 128, 8};
const Shape kMixtral = {16384, 4096, 14336, 8, 2};

Problem bf16(const Shape& shape) {
  return {.shape = shape, .dtype = DType::kBF16};
}

bool has_tile(const PersistentCandidates& candidates, int largest_tile) {
  return std::any_of(
      candidates.plans.begin(), candidates.plans.end(),
      [&](const PersistentPlan& plan) { return plan.gate_up.largest_tile == largest_tile; });
}

TEST(PersistentCandidates, TheHeuristicIsFirstAndAllAreDifferentAndFit) {
  for (const Shape& shape :
       {kQwen, kMixtral, Shape{1, 64, 64, 1, 1}, Shape{4096, 2880, 2880, 128, 4}}) {
    for (const std::int64_t tokens : token_buckets(shape.tokens)) {
      SCOPED_TRACE(to_string(shape) + ", " + std::to_string(tokens) + " tokens");
      const PersistentCandidates candidates = candidate_plans(bf16(shape), tokens, hopper());
      ASSERT_FALSE(candidates.plans.empty());
      EXPECT_EQ(candidates.plans.front(), heuristic_plan(bf16(shape), tokens, hopper()));
      EXPECT_LE(candidates.plans.size(), 41U);
      std::set<std::string> names;
      for (const PersistentPlan& plan : candidates.plans) {
        EXPECT_TRUE(names.insert(to_string(plan)).second) << to_string(plan);
        EXPECT_EQ(plan.gate_up.largest_tile, plan.down.largest_tile);
        EXPECT_LE(grouped_gemm_shared_bytes(plan.gate_up.largest_tile, plan.gate_up.gathers),
                  hopper().shared_bytes_per_block);
        EXPECT_GE(plan.gate_up.tiles_together, 1);
        EXPECT_GE(plan.down.tiles_together, 1);
        EXPECT_FALSE(plan.down.gathers);
      }
    }
  }
}

TEST(HeuristicPlan, TakesTheKindThatWasFastest) {
  struct Case {
    const char* what;
    Shape shape;
    int tile;
    bool gathers;
  };
  const Shape gpt_oss = {1, 2880, 2880, 128, 4};
  const Shape small_experts = {1, 2048, 512, 256, 8};
  const Shape lab = {1, 1024, 2048, 8, 2};
  const Shape deepseek = {1, 7168, 2048, 256, 8};
  const auto with = [](Shape shape, std::int64_t tokens) {
    shape.tokens = tokens;
    return shape;
  };
  for (const Case& c : {
           Case{"one token", with(kQwen, 1), kGatheringTile, true},
           Case{"64 rows", with(kQwen, 1024), kGatheringTile, true},
           Case{"95 rows", with(kQwen, 1520), kGatheringTile, true},
           Case{"96 rows, small experts", with(kQwen, 1536), kCooperativeTile, true},
           Case{"144 rows", with(kQwen, 2304), kCooperativeTile, true},
           Case{"145 rows", with(kQwen, 2305), kGatheringTile, true},
           Case{"192 rows", with(kQwen, 3072), kCooperativeTile, true},
           Case{"288 rows", with(kQwen, 4608), kCooperativeTile, true},
           Case{"256 rows, I = 192", {4096, 2048, 192, 128, 8}, kCooperativeTile, true},
           Case{"256 rows, I = 128", {4096, 2048, 128, 128, 8}, kDeepTile, false},
           Case{"289 rows", with(kQwen, 4624), kGatheringTile, true},
           Case{"1024 rows", with(kQwen, 16384), kGatheringTile, true},
           Case{"120 rows, small experts, I > H / 2", with({1, 2048, 1408, 64, 6}, 1280),
                kCooperativeTile, true},
           Case{"128 rows, small experts, few items", with({1, 512, 2048, 64, 2}, 4096),
                kGatheringTile, true},
           Case{"128 rows, large experts", with(gpt_oss, 4096), kGatheringTile, true},
           Case{"256 rows, I = H", with(gpt_oss, 8192), kDeepTile, false},
           Case{"512 rows, I = H", with(gpt_oss, 16384), kGatheringTile, true},
           Case{"256 rows of few large experts", with(kMixtral, 1024), kGatheringTile, false},
           Case{"512 rows of few large experts", with(kMixtral, 2048), kGatheringTile, true},
           Case{"256 rows of few experts", with(lab, 1024), kDeepTile, false},
           Case{"128 rows, I < H / 2", with(deepseek, 4096), kCooperativeTile, true},
           Case{"64 rows, I < H / 2", with(deepseek, 2048), kGatheringTile, true},
           Case{"128 rows of few experts", with(lab, 512), kGatheringTile, true},
           Case{"64 rows, I = 512", with(small_experts, 2048), kGatheringTile, true},
           Case{"128 rows, I = 512", with(small_experts, 4096), kCooperativeTile, true},
           Case{"512 rows, I = 512", with(small_experts, 16384), kGatheringTile, false},
           Case{"512 rows, H = 1024, I = 512", with({1, 1024, 512, 32, 8}, 2048), kDeepTile, true},
           Case{"128 rows, H = 1024, I = 512", with({1, 1024, 512, 32, 8}, 512), kGatheringTile,
                false},
           Case{"512 rows, H = 512, I = 512", with({1, 512, 512, 32, 8}, 2048), kDeepTile, false},
           Case{"2048 rows, H = 512", with({1, 512, 2048, 4, 2}, 4096), kDeepTile, false},
       }) {
    const PersistentPlan plan = heuristic_plan(bf16(c.shape), c.shape.tokens, hopper());
    EXPECT_EQ(plan.gate_up.largest_tile, c.tile) << c.what;
    EXPECT_EQ(plan.down.largest_tile, c.tile) << c.what;
    EXPECT_EQ(plan.gate_up.gathers, c.gathers) << c.what;
  }
}

TEST(PersistentCandidates, EveryKindOfTileWhereExpertsHaveTheRows) {
  const PersistentCandidates many =
      candidate_plans(bf16(kQwen), 4096, hopper());  // 256 rows an expert
  for (const int tile : {kGatheringTile, kDeepTile, kCooperativeTile}) {
    EXPECT_TRUE(has_tile(many, tile)) << tile;
  }
  const auto permuted = [](const PersistentPlan& plan) {
    return plan.gate_up.largest_tile == kGatheringTile && !plan.gate_up.gathers;
  };
  EXPECT_TRUE(std::any_of(many.plans.begin(), many.plans.end(), permuted));
  const auto deep_and_gathered = [](const PersistentPlan& plan) {
    return plan.gate_up.largest_tile == kDeepTile && plan.gate_up.gathers;
  };
  EXPECT_TRUE(std::any_of(many.plans.begin(), many.plans.end(), deep_and_gathered));
  EXPECT_TRUE(many.pruned.empty());
}

TEST(PersistentCandidates, OfBlocksOfRealModels) {
  const auto block = [](const Shape& shape, const char* options) {
    Problem problem = bf16(shape);
    set_block_options(problem, options);
    return problem;
  };
  // Which kernels: by biases and activation. A shared expert of 1.5 I has two parts.
  const PersistentSpecs plain(block(kQwen, "--shared 1152,switch"));
  EXPECT_EQ(plain.gate_up.epilogue, GemmEpilogue::kSwiGLU);
  EXPECT_EQ(plain.down.epilogue, GemmEpilogue::kStore);
  EXPECT_EQ(plain.down.experts, 130);
  const PersistentSpecs clamped(block(kQwen, "--activation swiglu,alpha=1.702,limit=7,up=1"));
  EXPECT_EQ(clamped.gate_up.epilogue, GemmEpilogue::kGated);
  EXPECT_EQ(clamped.gate_up.activation.linear, 1.702F);
  EXPECT_EQ(clamped.gate_up.feature_blocks, 12);
  EXPECT_EQ(clamped.down.epilogue, GemmEpilogue::kStore);
  const PersistentSpecs biased(block(kQwen, "--expert-bias"));
  EXPECT_EQ(biased.gate_up.epilogue, GemmEpilogue::kGated);
  EXPECT_EQ(biased.down.epilogue, GemmEpilogue::kStoreBias);
  const PersistentSpecs ungated(block(kQwen, "--activation relu2"));
  EXPECT_EQ(ungated.gate_up.epilogue, GemmEpilogue::kReLU2);
  EXPECT_EQ(ungated.gate_up.feature_blocks, 6);

  // The tile is that of a routed expert's rows, whatever the shared one has.
  const Problem shared = block(kQwen, "--shared 6144");
  for (const std::int64_t tokens : {64, 1024, 4096, 16384}) {
    EXPECT_EQ(heuristic_plan(shared, tokens, hopper()).gate_up.largest_tile,
              heuristic_plan(bf16(kQwen), tokens, hopper()).gate_up.largest_tile);
  }
  // Rows that the router's weight multiplies are made before; every kind of tile is still there.
  const PersistentCandidates on_input =
      candidate_plans(block(kQwen, "--router sigmoid,raw,on-input"), 4096, hopper());
  for (const PersistentPlan& plan : on_input.plans)
    EXPECT_FALSE(plan.gate_up.gathers) << to_string(plan);
  for (const int tile : {kGatheringTile, kDeepTile, kCooperativeTile}) {
    EXPECT_TRUE(has_tile(on_input, tile)) << tile;
  }
}

TEST(PersistentCandidates, ArePrunedByRowsAndBySharedMemory) {
  const PersistentCandidates few = candidate_plans(bf16(kQwen), 64, hopper());  // 4 rows an expert
  EXPECT_FALSE(has_tile(few, kCooperativeTile));
  ASSERT_EQ(few.pruned.size(), 1U);
  EXPECT_NE(few.pruned.front().find("4 rows a mean expert"), std::string::npos)
      << few.pruned.front();
  // One tile at most for every expert that can be: all groups are the same order.
  EXPECT_LT(few.plans.size(), candidate_plans(bf16(kQwen), 4096, hopper()).plans.size());

  // Reductions of fewer than three blocks.
  Shape narrow = kQwen;
  narrow.intermediate = 128;
  const PersistentCandidates shallow = candidate_plans(bf16(narrow), 4096, hopper());
  EXPECT_FALSE(has_tile(shallow, kCooperativeTile));
  ASSERT_FALSE(shallow.pruned.empty());
  EXPECT_NE(shallow.pruned.back().find("2 blocks of 64 in a reduction"), std::string::npos)
      << shallow.pruned.back();

  DeviceFacts small = hopper();
  small.shared_bytes_per_block = grouped_gemm_shared_bytes(kGatheringTile, true) - 1;
  const PersistentCandidates without = candidate_plans(bf16(kQwen), 4096, small);
  EXPECT_TRUE(std::any_of(without.pruned.begin(), without.pruned.end(), [](const std::string& why) {
    return why.find("bytes of shared memory") != std::string::npos;
  }));
  // The heuristic itself stays, whatever it is: it is what an untuned layer takes.
  for (std::size_t i = 1; i < without.plans.size(); ++i) {
    const GroupedGemmConfig& gate_up = without.plans[i].gate_up;
    EXPECT_LE(grouped_gemm_shared_bytes(gate_up.largest_tile, gate_up.gathers),
              small.shared_bytes_per_block);
  }

  // 4096 rows an expert: its weights are read by many tiles.
  const PersistentCandidates many = candidate_plans(bf16(kMixtral), 16384, hopper());
  for (const PersistentPlan& plan : many.plans) EXPECT_FALSE(plan.gate_up.weights_read_once);
}

TEST(TokenBuckets, ArePowersOfTwoUpToTheTokens) {
  EXPECT_EQ(token_buckets(1), (std::vector<std::int64_t>{1}));
  EXPECT_EQ(token_buckets(8), (std::vector<std::int64_t>{8, 4, 2, 1}));
  EXPECT_EQ(token_buckets(9), (std::vector<std::int64_t>{9, 8, 4, 2, 1}));
  const std::vector<std::int64_t> buckets = token_buckets(1000);
  EXPECT_EQ(buckets[bucket_of(buckets, 1000)], 1000);
  EXPECT_EQ(buckets[bucket_of(buckets, 513)], 1000);
  EXPECT_EQ(buckets[bucket_of(buckets, 512)], 512);
  EXPECT_EQ(buckets[bucket_of(buckets, 3)], 4);
  EXPECT_EQ(buckets[bucket_of(buckets, 1)], 1);
}

class PersistentChoiceFile : public testing::Test {
 protected:
  [[nodiscard]] PersistentChoiceCache cache() const {
    return {folder_.path(), facts_, problem_, placed_};
  }
  [[nodiscard]] PersistentChoice example(std::int64_t tokens) const {
    return {.tokens = tokens,
            .plan = candidate_plans(problem_, tokens, facts_).plans.back(),
            .routing = "zipf:1",
            .date = "2026-01-31T12:00:00Z",
            .candidates = 17,
            .complete = true,
            .budget_seconds = 2.5,
            .heuristic_us = 123.456,
            .chosen_us = 0.1,
            .noise = 0.25};
  }
  void expect_refused(const std::string& reason) const {
    const PersistentChoiceCache::Found found = cache().load();
    EXPECT_TRUE(found.choices.empty());
    EXPECT_EQ(found.refused, reason);
    // What an owner of the cache does next.
    ASSERT_EQ(cache().save({example(64)}), "");
    EXPECT_EQ(cache().load().choices, std::vector<PersistentChoice>{example(64)});
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator()), 1)
        << "a temporary file stayed";
  }
  void edit(const std::function<void(nlohmann::json&)>& change) const {
    nlohmann::json document = nlohmann::json::parse(std::ifstream(cache().path()));
    change(document);
    std::ofstream(cache().path()) << document;
  }

  test::TemporaryFolder folder_;
  DeviceFacts facts_ = hopper();
  Problem problem_{{4096, 2048, 768, 128, 8}, DType::kBF16};
  std::string placed_;
};

TEST_F(PersistentChoiceFile, ComesBackAndGrowsByTokens) {
  EXPECT_TRUE(cache().load().choices.empty());
  EXPECT_EQ(cache().load().refused, "") << "a missing file is no finding";
  ASSERT_EQ(cache().save({example(4096), example(64)}), "");
  // A layer of other tokens adds its own and replaces what both have.
  problem_.shape.tokens = 100;
  PersistentChoice newer = example(64);
  newer.chosen_us = 7;
  ASSERT_EQ(cache().save({example(100), newer}), "");
  const PersistentChoiceCache::Found found = cache().load();
  EXPECT_EQ(found.refused, "");
  EXPECT_EQ(found.choices, (std::vector<PersistentChoice>{newer, example(100), example(4096)}));
}

TEST_F(PersistentChoiceFile, OfAnotherDriverOrKernelsIsRefused) {
  ASSERT_EQ(cache().save({example(64)}), "");
  facts_.driver_version = 12080;
  expect_refused("it was made for something else");
  edit([](nlohmann::json& document) {
    document["key"]["version"] = "driver 12080, kernels of yesterday";
  });
  expect_refused("it was made for something else");
  edit([](nlohmann::json& document) { document["revision"] = 0; });
  expect_refused("it is another revision's");
}

TEST_F(PersistentChoiceFile, OfWeightsThatLieOtherwiseIsRefused) {
  ASSERT_EQ(cache().save({example(64)}), "");
  EXPECT_EQ(cache().load().choices, std::vector<PersistentChoice>{example(64)});
  placed_ = "gate|up and down";
  expect_refused("it was made for something else");
}

TEST_F(PersistentChoiceFile, OfAnotherDeviceOrProblemIsAnotherFile) {
  ASSERT_EQ(cache().save({example(64)}), "");
  const std::string path = cache().path();
  facts_.name = "another device";
  EXPECT_NE(cache().path(), path);
  facts_ = hopper();
  for (std::int64_t Shape::*size :
       {&Shape::hidden, &Shape::intermediate, &Shape::experts, &Shape::top_k}) {
    const Problem before = problem_;
    problem_.shape.*size *= 2;
    EXPECT_NE(cache().path(), path);
    problem_ = before;
  }
  problem_.shape.tokens = 1;
  EXPECT_EQ(cache().path(), path) << "layers of any tokens share it";
}

TEST_F(PersistentChoiceFile, DamagedOrImpossibleIsRefused) {
  ASSERT_EQ(cache().save({example(64)}), "");
  const std::string good = *read_whole(cache().path());
  std::string digit = good;  // still JSON, but another time
  const std::size_t at = digit.find("123.456");
  ASSERT_NE(at, std::string::npos);
  digit[at] = '9';
  for (const std::string& text : {std::string(), good.substr(0, good.size() / 2), digit}) {
    std::ofstream(cache().path(), std::ios::binary) << text;
    expect_refused("it is damaged");
  }
  PersistentChoice impossible = example(64);
  impossible.plan.down.largest_tile = kDeepTile + 16;
  ASSERT_EQ(cache().save({impossible}), "");
  expect_refused("it holds what this layer cannot use");
  impossible = example(64);
  impossible.plan.gate_up.tiles_together = 0;
  ASSERT_EQ(cache().save({impossible}), "");
  expect_refused("it holds what this layer cannot use");
}

TEST_F(PersistentChoiceFile, OffReadsAndWritesNothing) {
  const PersistentChoiceCache off("off", facts_, problem_, placed_);
  EXPECT_FALSE(off.enabled());
  EXPECT_EQ(off.save({example(64)}), "");
  EXPECT_TRUE(off.load().choices.empty());
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

/// Deep tiles, permuted before, are the fastest from 1024 tokens on; elsewhere all take as long.
PersistentContest clockwork() {
  return {.problem = bf16({4096, 2048, 768, 128, 8}),
          .facts = hopper(),
          .routing = "uniform",
          .prepare = [](std::int64_t) {},
          .sample =
              [](const PersistentPlan& plan, std::int64_t tokens) {
                const bool fast = tokens >= 1024 && plan.gate_up.largest_tile == kDeepTile &&
                                  !plan.gate_up.gathers;
                return static_cast<double>(tokens) * (fast ? 0.8 : 1.0);
              }};
}

TEST(PersistentTuner, TakesWhatIsFasterAndElseTheHeuristic) {
  const PersistentContest contest = clockwork();
  const std::vector<TunedBucket> tuned = tune_persistent(contest, {4096, 1024, 16}, 60);
  ASSERT_EQ(tuned.size(), 3U);
  for (const TunedBucket& bucket : tuned) {
    const PersistentChoice& choice = bucket.choice;
    EXPECT_TRUE(choice.complete);
    EXPECT_EQ(choice.routing, "uniform");
    EXPECT_EQ(choice.budget_seconds, 60);
    EXPECT_EQ(static_cast<std::size_t>(choice.candidates), bucket.timings.size());
    const PersistentPlan heuristic = heuristic_plan(contest.problem, choice.tokens, contest.facts);
    if (choice.tokens >= 1024) {
      EXPECT_EQ(choice.plan.gate_up.largest_tile, kDeepTile) << choice.tokens;
      if (heuristic.gate_up.largest_tile != kDeepTile) {
        EXPECT_DOUBLE_EQ(choice.heuristic_us / choice.chosen_us, 1.25);
      }
    } else {
      EXPECT_EQ(choice.plan, heuristic);
      EXPECT_EQ(choice.heuristic_us, choice.chosen_us);
    }
  }
}

TEST(PersistentTuner, WithoutTimeTheHeuristicStays) {
  const PersistentContest contest = clockwork();
  for (const TunedBucket& bucket : tune_persistent(contest, {4096, 16}, 1e-9)) {
    EXPECT_FALSE(bucket.choice.complete);
    EXPECT_EQ(bucket.choice.plan,
              heuristic_plan(contest.problem, bucket.choice.tokens, contest.facts));
    EXPECT_EQ(bucket.choice.budget_seconds, 1e-9);
  }
}

}  // namespace
}  // namespace moe::cuda
