// verify() of a layer, its canaries, and the fuzzer.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "core/workload.h"
#include "moe/error.h"
#include "moe/verify.h"
#include "verify/fuzz.h"
#include "verify/guarded.h"
#include "verify/layer_check.h"
#include "verify/textbook.h"

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

/// Forwards that are right but for one thing, put through the steps of verify().
class WrongForwards : public testing::TestWithParam<DType> {
 protected:
  using Forward = LayerCheck::Forward;
  [[nodiscard]] Problem problem() const { return {kProblem.shape, GetParam()}; }
  /// The failure of `forward`; it gets the right forward to build on.
  [[nodiscard]] std::string failure_of(
      const std::function<void(const Forward& right, const TensorView& x, const TensorView& y)>&
          forward) const {
    const OwnedWeights weights = make_weights(problem(), 75);
    const Forward right = [&](const TensorView& x, const TensorView& y) {
      textbook::forward(problem(), weights.view(), x, y);
    };
    const VerifyResult result =
        LayerCheck(problem(), weights.view(), 75, {})
            .run([&](const TensorView& x, const TensorView& y) { forward(right, x, y); });
    EXPECT_EQ(result.passed, result.failure.empty());
    return result.failure;
  }
};
INSTANTIATE_TEST_SUITE_P(Verify, WrongForwards, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& parameter) {
                           return std::string(name_of(parameter.param));
                         });

TEST_P(WrongForwards, TheRightOnePasses) {
  EXPECT_EQ(
      failure_of([](const auto& right, const TensorView& x, const TensorView& y) { right(x, y); }),
      "");
}

TEST_P(WrongForwards, CachedOutput) {
  std::vector<std::byte> cache;
  const std::string failure =
      failure_of([&](const auto& right, const TensorView& x, const TensorView& y) {
        if (cache.empty()) {
          right(x, y);
          cache.assign(y.as<std::byte>(), y.as<std::byte>() + y.bytes());
        }
        if (y.bytes() > 0) std::memcpy(y.data, cache.data(), y.bytes());
      });
  EXPECT_EQ(failure.find("input 1: row error"), 0U) << failure;
}

TEST_P(WrongForwards, DoesNothing) {
  EXPECT_EQ(failure_of([](const auto&, const TensorView&, const TensorView&) {
            }).find("input 0: 320 values of y are NaN"),
            0U);
}

TEST_P(WrongForwards, WritesAllRowsWhenGivenFewer) {
  const std::string failure =
      failure_of([](const auto& right, const TensorView& x, const TensorView& y) {
        right(x, y);
        if (x.dim(0) == 5) std::memset(y.as<std::byte>() + y.bytes(), 0, 6 * size_of(y.dtype));
      });
  EXPECT_EQ(failure, "first 5 tokens: 6 elements of y after row 5 were written");
}

TEST_P(WrongForwards, WritesWhenGivenNoTokens) {
  const std::string failure =
      failure_of([](const auto& right, const TensorView& x, const TensorView& y) {
        right(x, y);
        if (x.dim(0) == 0) std::memset(y.data, 0, size_of(y.dtype));
      });
  EXPECT_EQ(failure, "no tokens: 1 elements of y after row 0 were written");
}

TEST_P(WrongForwards, WritesBehindOrBeforeY) {
  for (const std::int64_t at :
       {std::int64_t{-1}, static_cast<std::int64_t>(10 * 32 * size_of(GetParam()))}) {
    const std::string failure =
        failure_of([at](const auto& right, const TensorView& x, const TensorView& y) {
          right(x, y);
          if (x.dim(0) == 10) y.as<std::byte>()[at] = std::byte{0};
        });
    EXPECT_EQ(failure, "input 0: 1 bytes before or after x or y were written");
  }
}

TEST_P(WrongForwards, ChangesItsInput) {
  const std::string failure =
      failure_of([](const auto& right, const TensorView& x, const TensorView& y) {
        right(x, y);
        if (x.bytes() > 0) std::memset(x.data, 0, size_of(x.dtype));
      });
  EXPECT_EQ(failure, "input 0: x was changed");
}

TEST_P(WrongForwards, DiffersInTheLastBitTheSecondTime) {
  int calls = 0;
  const std::string failure =
      failure_of([&](const auto& right, const TensorView& x, const TensorView& y) {
        right(x, y);
        if (++calls == 3) {
          // A row of fp32 has room for one bit; the largest element of a bf16 row may not: the smallest.
          with_element_type(y.dtype, [&]<class Element>() {
            Element* values = y.as<Element>();
            Element* smallest = std::min_element(values, values + 320, [](Element a, Element b) {
              return std::abs(to_float(a)) < std::abs(to_float(b));
            });
            y.as<std::byte>()[static_cast<std::size_t>(smallest - values) * sizeof(Element)] ^=
                std::byte{1};
          });
        }
      });
  EXPECT_EQ(failure, "input 0 again: y is not bitwise that of the first forward of the same input");
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
