// verify() of a layer, its canaries, and the fuzzer.
#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "core/workload.h"
#include "moe/error.h"
#include "moe/verify.h"
#include "verify/fuzz.h"
#include "verify/guarded.h"

namespace moe {
namespace {

const Problem kProblem{{.tokens = 10, .hidden = 32, .intermediate = 24, .experts = 5, .top_k = 2},
                       DType::kF32};

TEST(Verify, ARightLayerPassesEveryStep) {
  const VerifyResult result =
      verify(LayerOptions{.level = "naive", .problem = kProblem}, {.seed = 71, .skew = "zipf:1"});
  EXPECT_TRUE(result.passed) << result.failure;
  EXPECT_EQ(result.failure, "");
  ASSERT_EQ(result.steps.size(), 5U);
  EXPECT_EQ(result.steps[0].what, "input 0");
  EXPECT_EQ(result.steps[0].comparison.rows_compared, 10);
  EXPECT_EQ(result.steps[3].what, "first 5 tokens");
  EXPECT_EQ(result.steps[3].comparison.rows_compared, 5);
  EXPECT_EQ(result.steps[4].comparison.rows_compared, 0);
  EXPECT_GT(result.worst.tolerance_used, 0);
  EXPECT_LE(result.worst.tolerance_used, 1);
}

TEST(Verify, WeightsOtherThanTheLayersFail) {
  const OwnedWeights weights = make_weights(kProblem, 72);
  const OwnedWeights others = make_weights(kProblem, 73);
  Layer layer = Layer::create({.level = "naive", .problem = kProblem}, weights.view());
  EXPECT_TRUE(verify(layer, weights.view()).passed);
  const VerifyResult result = verify(layer, others.view());
  EXPECT_FALSE(result.passed);
  EXPECT_EQ(result.steps.size(), 1U) << "stops at the first failure";
  EXPECT_EQ(result.failure.find("input 0: row error"), 0U) << result.failure;
  EXPECT_GT(result.worst.tolerance_used, 100);
}

TEST(Verify, WeightsThatChangeBetweenForwardsFail) {
  // State that decays: the layer is right once, then its weights are gone.
  const OwnedWeights weights = make_weights(kProblem, 74);
  const OwnedWeights used = make_weights(kProblem, 74);
  Layer layer = Layer::create({.level = "naive", .problem = kProblem}, used.view());
  ASSERT_TRUE(verify(layer, weights.view()).passed);
  std::memset(used.down.view().data, 0, used.down.view().bytes());
  EXPECT_FALSE(verify(layer, weights.view()).passed);
}

TEST(Verify, RefusesWhatLayerCreateRefuses) {
  EXPECT_THROW((void)verify(LayerOptions{.level = "no such level", .problem = kProblem}), Error);
  EXPECT_THROW((void)verify(LayerOptions{.level = "naive", .problem = kProblem}, {.skew = "steep"}),
               Error);
  Problem wrong = kProblem;
  wrong.shape.top_k = 6;
  EXPECT_THROW((void)verify(LayerOptions{.level = "naive", .problem = wrong}), Error);
}

TEST(GuardedTensor, SeesEveryByteWrittenOutside) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const std::int64_t offset : {0, 3}) {
      const Tensor source(dtype, {3, 5});
      std::memset(source.view().data, 0x11, source.view().bytes());
      const GuardedTensor tensor(source.view(), offset);
      EXPECT_EQ(std::memcmp(tensor.view().data, source.view().data, source.view().bytes()), 0);
      const auto address = reinterpret_cast<std::uintptr_t>(tensor.view().data);
      EXPECT_EQ(address % 64, static_cast<std::size_t>(offset) * size_of(dtype));
      EXPECT_EQ(tensor.damaged_bytes(), 0);
      auto* bytes = tensor.view().as<std::byte>();
      bytes[0] = std::byte{1};
      bytes[tensor.view().bytes() - 1] = std::byte{1};
      EXPECT_EQ(tensor.damaged_bytes(), 0) << "the tensor itself may change";
      bytes[-1] = std::byte{1};
      EXPECT_EQ(tensor.damaged_bytes(), 1);
      bytes[tensor.view().bytes()] = std::byte{1};
      bytes[tensor.view().bytes() + 700] = std::byte{1};
      EXPECT_EQ(tensor.damaged_bytes(), 3);
    }
  }
}

TEST(Fuzz, CasesFollowFromTheirSeedAndVary) {
  std::set<std::string> shapes;
  std::set<std::int64_t> tokens;
  std::set<std::string> others;
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    const FuzzCase one = make_fuzz_case(seed);
    const FuzzCase same = make_fuzz_case(seed);
    EXPECT_EQ(one.problem, same.problem);
    EXPECT_EQ(one.threads, same.threads);
    EXPECT_EQ(one.offset_elements, same.offset_elements);
    EXPECT_NO_THROW(validate(one.problem.shape));
    EXPECT_GE(one.threads, 1);
    shapes.insert(to_string(one.problem.shape));
    tokens.insert(one.problem.shape.tokens);
    others.insert(std::string(name_of(one.problem.dtype)) + one.skew.describe() + one.isa);
  }
  EXPECT_GT(shapes.size(), 350U);
  EXPECT_GT(tokens.size(), 12U);
  EXPECT_GT(others.size(), 7U);
}

TEST(Fuzz, EveryLevelOnRandomProblems) {
  const FuzzResult result = fuzz({.cases = 60, .seed = 1});
  EXPECT_EQ(result.cases, 60);
  EXPECT_GE(result.layers, 60) << "level 0 runs everywhere";
  for (const FuzzFailure& failure : result.failures) {
    ADD_FAILURE() << failure.level << ": " << failure.what << "\n  " << failure.repro << "\n  "
                  << failure.exact;
  }
  EXPECT_LE(result.worst_tolerance_used, 1);
}

TEST(Fuzz, RunsTheLevelsAskedForUntilToldToStop) {
  std::int64_t calls = 0;
  const FuzzResult result = fuzz({.cases = 50,
                                  .seed = 2,
                                  .levels = {"0"},
                                  .on_case = [&](std::int64_t done, std::int64_t failures) {
                                    EXPECT_EQ(done, ++calls);
                                    EXPECT_EQ(failures, 0);
                                    return done < 4;
                                  }});
  EXPECT_EQ(result.cases, 4);
  EXPECT_EQ(result.layers, 4);
  EXPECT_THROW((void)fuzz({.levels = {"groped"}}), Error);
}

}  // namespace
}  // namespace moe
