// The oracle's sample, its tolerance, its treatment of zero, tied and tiny rows, and its errors.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>

#include "core/rng.h"
#include "core/workload.h"
#include "moe/error.h"
#include "moe/verify.h"
#include "verify/textbook.h"
#include "verify/tolerance.h"

namespace moe {
namespace {

Tensor textbook_y(const Problem& problem, const OwnedWeights& weights, const Tensor& x) {
  Tensor y(problem.dtype, {x.view().dim(0), problem.shape.hidden});
  poison(y.view());
  textbook::forward(problem, weights.view(), x.view(), y.view());
  return y;
}

void set_all(const Tensor& tensor, float value) {
  with_element_type(tensor.view().dtype, [&]<class Element>() {
    std::fill_n(tensor.as<Element>(), tensor.view().elements(), from_float<Element>(value));
  });
}

/// Makes every element non-negative: sums then grow to the full sum of magnitudes.
void make_positive(const Tensor& tensor) {
  with_element_type(tensor.view().dtype, [&]<class Element>() {
    for (std::int64_t i = 0; i < tensor.view().elements(); ++i) {
      tensor.as<Element>()[i] = from_float<Element>(std::abs(to_float(tensor.as<Element>()[i])));
    }
  });
}

/// The values of `tensor` in fp32.
Tensor as_f32(const Tensor& tensor) {
  Tensor out(DType::kF32, {tensor.view().dim(0), tensor.view().dim(1)});
  with_element_type(tensor.view().dtype, [&]<class Element>() {
    for (std::int64_t i = 0; i < tensor.view().elements(); ++i) {
      out.as<float>()[i] = to_float(tensor.as<Element>()[i]);
    }
  });
  return out;
}

class ForBothTypes : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Oracle, ForBothTypes, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& parameter) {
                           return std::string(name_of(parameter.param));
                         });

TEST_P(ForBothTypes, TextbookSumsPassAtTheLongestReductions) {
  // DeepSeek-V3's H, one accumulator per sum: the order with the largest error of those in use.
  const Problem problem{
      {.tokens = 6, .hidden = 7168, .intermediate = 2048, .experts = 3, .top_k = 2}, GetParam()};
  const OwnedWeights weights = make_weights(problem, 5);
  const Tensor x = make_input(problem, 5, 0);
  const Comparison comparison =
      Oracle(problem, weights.view(), x.view()).compare(textbook_y(problem, weights, x).view());
  EXPECT_TRUE(comparison.passed) << comparison.describe();
  EXPECT_GT(comparison.tolerance_used, 0.05)
      << "the tolerance is not far wider than what it has to allow";
}

TEST_P(ForBothTypes, SumsOfOneSignPass) {
  const Problem problem{
      {.tokens = 5, .hidden = 3000, .intermediate = 1500, .experts = 2, .top_k = 1}, GetParam()};
  OwnedWeights weights = make_weights(problem, 6);
  Tensor x = make_input(problem, 6, 0);
  for (const Tensor* tensor : {&weights.gate, &weights.up, &weights.down, &x})
    make_positive(*tensor);
  // |N(0,1)| sums to 0.64·sqrt(H)·sqrt(H) where N(0,1) sums to sqrt(H): keep gate in SwiGLU's
  // range.
  const Comparison comparison =
      Oracle(problem, weights.view(), x.view()).compare(textbook_y(problem, weights, x).view());
  EXPECT_TRUE(comparison.passed) << comparison.describe();
}

TEST_P(ForBothTypes, SampleTouchesEveryActiveExpertAndBothEnds) {
  const Problem problem{
      {.tokens = 1000, .hidden = 40, .intermediate = 30, .experts = 96, .top_k = 3}, GetParam()};
  for (const char* text : {"uniform", "zipf:1.5", "one-expert"}) {
    const Skew skew = Skew::parse(text);
    const OwnedWeights weights = make_weights(problem, 7, skew);
    const Tensor x = make_input(problem, 7, 0, skew);
    const Oracle oracle(problem, weights.view(), x.view(),
                        {.sample_seed = 99, .affordable_work = 0});
    const std::vector<std::int64_t>& tokens = oracle.tokens();
    const std::vector<std::int64_t>& load = oracle.tokens_per_expert();
    EXPECT_GE(tokens.size(), 64U);
    EXPECT_LT(tokens.size(), 200U);
    EXPECT_EQ(tokens.front(), 0);
    EXPECT_EQ(tokens.back(), 999);
    EXPECT_TRUE(std::is_sorted(tokens.begin(), tokens.end()));
    EXPECT_EQ(std::set<std::int64_t>(tokens.begin(), tokens.end()).size(), tokens.size());
    EXPECT_EQ(std::accumulate(load.begin(), load.end(), std::int64_t{0}), 3000);

    // Breaking any one active expert shows, however few tokens it has. Not so under one-expert: the
    // others have weights of e^-24 there, and what they compute does not reach y.
    if (skew.kind == Skew::Kind::kOneExpert) continue;
    for (std::size_t expert = 0; expert < load.size(); ++expert) {
      if (load[expert] == 0) continue;
      OwnedWeights broken = make_weights(problem, 7, skew);
      const std::size_t bytes = broken.gate.view().bytes() / load.size();
      std::memset(broken.gate.as<std::byte>() + expert * bytes, 0, bytes);
      EXPECT_FALSE(oracle.compare(textbook_y(problem, broken, x).view()).passed)
          << text << ", expert " << expert;
    }
  }
}

TEST_P(ForBothTypes, AllRowsWhenAffordable) {
  const Problem problem{{.tokens = 300, .hidden = 8, .intermediate = 8, .experts = 4, .top_k = 1},
                        GetParam()};
  const OwnedWeights weights = make_weights(problem, 7);
  const Tensor x = make_input(problem, 7, 0);
  const double work_per_token = 3.0 * 8 * 8;
  EXPECT_EQ(Oracle(problem, weights.view(), x.view()).tokens().size(), 300U);
  EXPECT_EQ(Oracle(problem, weights.view(), x.view(), {.affordable_work = 100 * work_per_token})
                .tokens()
                .size(),
            100U);
  EXPECT_EQ(Oracle(problem, weights.view(), x.view(), {.affordable_work = 10 * work_per_token})
                .tokens()
                .size(),
            64U);
}

TEST_P(ForBothTypes, RowToleranceMatchesTheRunningAnalysis) {
  // Two derivations of one number: the closed form for unit normal data, and the sum of variances
  // over real values.
  for (const Shape& shape :
       {Shape{40, 256, 512, 4, 2}, Shape{40, 1024, 128, 16, 4}, Shape{40, 64, 64, 8, 1}}) {
    const Problem problem{shape, GetParam()};
    const OwnedWeights weights = make_weights(problem, 8);
    const Tensor x = make_input(problem, 8, 0);
    const Comparison comparison =
        Oracle(problem, weights.view(), x.view()).compare(textbook_y(problem, weights, x).view());
    EXPECT_NEAR(comparison.tolerance / row_tolerance(problem), 1, 0.35) << to_string(shape);
  }
}

TEST(RowTolerance, FollowsTheFormat) {
  const Problem fp32{{.tokens = 1, .hidden = 1024, .intermediate = 2048, .experts = 8, .top_k = 2},
                     DType::kF32};
  Problem bf16 = fp32;
  bf16.dtype = DType::kBF16;
  // Five bf16 roundings (gate, up, act, expert output, y; gate counts 1.45-fold) of variance
  // 2^-16 / 3, times 3·(1 + 1/32); accumulation is invisible beside them.
  EXPECT_NEAR(row_tolerance(bf16), 3 * (1 + 1.0 / 32) * std::sqrt(5.4545 / 3) * 0x1p-8, 1e-5);
  EXPECT_LT(row_tolerance(fp32), 1e-5);
  EXPECT_GT(row_tolerance(fp32), 1e-6);
  Problem longer = fp32;
  longer.shape.hidden = 4 * 1024;
  longer.shape.intermediate = 4 * 2048;
  EXPECT_NEAR(row_tolerance(longer) / row_tolerance(fp32), 2, 0.1)
      << "grows with the root of the reduction length";
}

TEST(Fp8Operands, HaveAToleranceOfTheirOwn) {
  const Problem problem{
      {.tokens = 64, .hidden = 256, .intermediate = 192, .experts = 6, .top_k = 2}, DType::kBF16};
  const OwnedWeights weights = make_weights(problem, 12);
  const Tensor x = make_input(problem, 12, 0);
  const Oracle strict(problem, weights.view(), x.view());
  const Oracle wide(problem, weights.view(), x.view(), {.operands = Operands::kFp8});
  const auto y_of = [&](const textbook::Mutation& mutation) {
    Tensor y(problem.dtype, {problem.shape.tokens, problem.shape.hidden});
    textbook::forward(problem, weights.view(), x.view(), y.view(), mutation);
    return y;
  };
  const Tensor y = y_of({.operands = Operands::kFp8});
  EXPECT_FALSE(strict.compare(y.view()).passed) << "a level may not round further than it says";
  const Comparison right = wide.compare(y.view());
  EXPECT_TRUE(right.passed) << right.describe();
  EXPECT_GT(right.tolerance_used, 0.15) << "a tolerance that hides mistakes";
  EXPECT_NEAR(right.tolerance / row_tolerance(problem, Operands::kFp8), 1, 0.35);
  // What is wrong in the format's own way stays wrong in the wider tolerance.
  EXPECT_GT(
      wide.compare(y_of({.renormalise = false, .operands = Operands::kFp8}).view()).tolerance_used,
      1);
  EXPECT_GT(wide.compare(y_of({.last_rank_off_by_one = true, .operands = Operands::kFp8}).view())
                .tolerance_used,
            1);
  EXPECT_GT(wide.compare(Tensor(problem.dtype, {64, 256}).view()).tolerance_used, 1) << "zeros";
}

TEST_P(ForBothTypes, ZeroRowMustBeExactlyZero) {
  const Problem problem{{.tokens = 4, .hidden = 16, .intermediate = 24, .experts = 4, .top_k = 2},
                        GetParam()};
  const OwnedWeights weights = make_weights(problem, 9);
  Tensor x = make_input(problem, 9, 0);
  std::memset(x.as<std::byte>() + 2 * 16 * size_of(problem.dtype), 0, 16 * size_of(problem.dtype));
  const Oracle oracle(problem, weights.view(), x.view());
  Tensor y = textbook_y(problem, weights, x);
  Comparison comparison = oracle.compare(y.view());
  EXPECT_TRUE(comparison.passed) << comparison.describe();
  EXPECT_EQ(comparison.ambiguous_rows, 0)
      << "equal logits without rounding error: the lowest index wins";
  with_element_type(problem.dtype, [&]<class Element>() {
    y.as<Element>()[2 * 16 + 5] = from_float<Element>(1e-30F);
    comparison = oracle.compare(y.view());
  });
  EXPECT_FALSE(comparison.passed);
  EXPECT_EQ(comparison.worst_row, 2);
  EXPECT_TRUE(std::isinf(comparison.max_row_error));
  EXPECT_TRUE(std::isinf(comparison.tolerance_used));
}

TEST_P(ForBothTypes, CancellingRowsGetTheToleranceOfTheirTerms) {
  // Expert 1 is expert 0 with the sign of down reversed but for a bit: y is the small difference of
  // large terms, and no fp32 implementation gets it to the tolerance of an ordinary row.
  const Problem problem{{.tokens = 8, .hidden = 128, .intermediate = 128, .experts = 2, .top_k = 2},
                        GetParam()};
  OwnedWeights weights = make_weights(problem, 10);
  set_all(weights.router, 0);  // weights 1/2, 1/2
  with_element_type(problem.dtype, [&]<class Element>() {
    constexpr std::int64_t kMatrix = 128 * 128;
    for (std::int64_t i = 0; i < kMatrix; ++i) {
      weights.gate.as<Element>()[kMatrix + i] = weights.gate.as<Element>()[i];
      weights.up.as<Element>()[kMatrix + i] = weights.up.as<Element>()[i];
      const float change = i % 128 == 0 ? 1.01F : 1.0F;
      weights.down.as<Element>()[kMatrix + i] =
          from_float<Element>(-change * to_float(weights.down.as<Element>()[i]));
    }
  });
  const Tensor x = make_input(problem, 10, 0);
  const Comparison comparison =
      Oracle(problem, weights.view(), x.view()).compare(textbook_y(problem, weights, x).view());
  EXPECT_TRUE(comparison.passed) << comparison.describe();
  EXPECT_GT(comparison.tolerance, 10 * row_tolerance(problem));
}

TEST_P(ForBothTypes, TiedTopKAcceptsEveryValidChoiceAndNoOther) {
  // Experts 1 and 3 have the same router row, which is also the second largest: fp32 sums in any
  // order may put either first.
  const Problem problem{{.tokens = 64, .hidden = 48, .intermediate = 32, .experts = 4, .top_k = 2},
                        GetParam()};
  OwnedWeights weights = make_weights(problem, 12);
  const std::size_t row_bytes = 48 * size_of(problem.dtype);
  auto* router = weights.router.as<std::byte>();
  std::memcpy(router + 3 * row_bytes, router + 1 * row_bytes, row_bytes);
  const Tensor x = make_input(problem, 12, 0);
  const Oracle oracle(problem, weights.view(), x.view());
  const Tensor lowest = textbook_y(problem, weights, x);
  const Comparison comparison = oracle.compare(lowest.view());
  EXPECT_TRUE(comparison.passed) << comparison.describe();
  EXPECT_GT(comparison.ambiguous_rows, 5);
  EXPECT_LT(comparison.ambiguous_rows, 64);

  // The highest index among equals: exchange the two experts' matrices, whose router rows are
  // equal.
  OwnedWeights exchanged = make_weights(problem, 12);
  std::memcpy(exchanged.router.as<std::byte>() + 3 * row_bytes, router + 1 * row_bytes, row_bytes);
  const std::size_t matrix = exchanged.gate.view().bytes() / 4;
  for (const Tensor* tensor : {&exchanged.gate, &exchanged.up, &exchanged.down}) {
    auto* data = tensor->as<std::byte>();
    std::swap_ranges(data + matrix, data + 2 * matrix, data + 3 * matrix);
  }
  const Tensor highest = textbook_y(problem, exchanged, x);
  EXPECT_NE(std::memcmp(highest.view().data, lowest.view().data, lowest.view().bytes()), 0);
  EXPECT_TRUE(oracle.compare(highest.view()).passed) << oracle.compare(highest.view()).describe();

  // Two implementations may take the two choices.
  const Tensor other = as_f32(highest);
  EXPECT_TRUE(oracle.compare(lowest.view(), other.view()).passed)
      << oracle.compare(lowest.view(), other.view()).describe();

  // Expert 0 or 2 in the place of the tied ones is no valid choice.
  Tensor wrong(problem.dtype, {64, 48});
  textbook::forward(problem, weights.view(), x.view(), wrong.view(),
                    {.last_rank_off_by_one = true});
  EXPECT_FALSE(oracle.compare(wrong.view()).passed);
  EXPECT_FALSE(oracle.compare(wrong.view(), other.view()).passed);
  EXPECT_FALSE(oracle.compare(lowest.view(), as_f32(wrong).view()).passed);
}

TEST_P(ForBothTypes, AnotherImplementationsOutputTakesThePlaceOfTheAnswers) {
  const Problem problem{{.tokens = 7, .hidden = 48, .intermediate = 32, .experts = 4, .top_k = 2},
                        GetParam()};
  const OwnedWeights weights = make_weights(problem, 21);
  const Tensor x = make_input(problem, 21, 0);
  const Oracle oracle(problem, weights.view(), x.view());
  const Tensor y = textbook_y(problem, weights, x);
  const Tensor expected = as_f32(y);
  Comparison comparison = oracle.compare(y.view(), expected.view());
  EXPECT_TRUE(comparison.passed);
  EXPECT_EQ(comparison.tolerance_used, 0);
  EXPECT_EQ(comparison.rows_compared, 7);

  // One element of row 4 moved by shares of what one implementation may be off in that row: two of
  // them may be off by twice as much.
  Tensor far = as_f32(y);
  far.as<float>()[4 * 48] += 1.0F;
  comparison = oracle.compare(far.view(), expected.view());
  EXPECT_EQ(comparison.worst_row, 4);
  const double allowed = 1.0 / comparison.tolerance_used;  // for two implementations
  EXPECT_GT(allowed, 0);
  for (const double share : {0.9, 1.1}) {
    Tensor moved = as_f32(y);
    moved.as<float>()[4 * 48] += static_cast<float>(share * allowed);
    comparison = oracle.compare(y.view(), moved.view());
    EXPECT_EQ(comparison.passed, share < 1) << comparison.describe();
    EXPECT_EQ(comparison.worst_row, 4);
    EXPECT_NEAR(comparison.tolerance_used, share, 0.01);
  }
  Tensor one_sided = as_f32(y);
  one_sided.as<float>()[4 * 48] += static_cast<float>(0.9 * allowed);
  EXPECT_FALSE(oracle.compare(one_sided.view()).passed) << "alone it may be off by half of that";

  Tensor broken = as_f32(y);
  broken.as<float>()[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(oracle.compare(y.view(), broken.view()).passed);
  EXPECT_FALSE(oracle.compare(broken.view(), expected.view()).passed);
  EXPECT_THROW((void)oracle.compare(y.view(), expected.view().first_rows(6)), Error);
}

TEST_P(ForBothTypes, ExactTiesGoToTheLowestIndex) {
  // A zero router: all logits are exactly 0 in every implementation, experts 0 and 1 are chosen.
  const Problem problem{{.tokens = 10, .hidden = 32, .intermediate = 16, .experts = 5, .top_k = 2},
                        GetParam()};
  OwnedWeights weights = make_weights(problem, 13);
  set_all(weights.router, 0);
  const Tensor x = make_input(problem, 13, 0);
  const Oracle oracle(problem, weights.view(), x.view());
  EXPECT_EQ(oracle.tokens_per_expert(), (std::vector<std::int64_t>{10, 10, 0, 0, 0}));
  EXPECT_EQ(oracle.active_experts(), 2);
  const Comparison comparison = oracle.compare(textbook_y(problem, weights, x).view());
  EXPECT_TRUE(comparison.passed);
  EXPECT_EQ(comparison.ambiguous_rows, 0);
  Tensor wrong(problem.dtype, {10, 32});
  textbook::forward(problem, weights.view(), x.view(), wrong.view(), {.first_rank = 1});
  EXPECT_FALSE(oracle.compare(wrong.view()).passed);
}

TEST_P(ForBothTypes, FirstRowsOfAnInputCompareAlone) {
  const Problem problem{{.tokens = 9, .hidden = 20, .intermediate = 12, .experts = 3, .top_k = 1},
                        GetParam()};
  const OwnedWeights weights = make_weights(problem, 14);
  const Tensor x = make_input(problem, 14, 0);
  const Oracle oracle(problem, weights.view(), x.view());
  const Tensor y = textbook_y(problem, weights, x);
  EXPECT_EQ(oracle.compare(y.view().first_rows(4)).rows_compared, 4);
  EXPECT_TRUE(oracle.compare(y.view().first_rows(4)).passed);
  EXPECT_TRUE(oracle.compare(y.view().first_rows(0)).passed);
  const Oracle fewer(problem, weights.view(), x.view().first_rows(4));
  EXPECT_TRUE(fewer.compare(y.view().first_rows(4)).passed);
  EXPECT_THROW((void)fewer.compare(y.view()), Error);
}

TEST(Oracle, ReportsTheErrorItIsGiven) {
  // y = r·(1 + 0.01) in every element of every row: the relative error is 0.01 everywhere.
  const Problem problem{{.tokens = 12, .hidden = 40, .intermediate = 30, .experts = 3, .top_k = 2},
                        DType::kF32};
  const OwnedWeights weights = make_weights(problem, 15);
  const Tensor x = make_input(problem, 15, 0);
  Tensor y = textbook_y(problem, weights, x);
  for (std::int64_t i = 0; i < y.view().elements(); ++i) y.as<float>()[i] *= 1.01F;
  const Comparison comparison = Oracle(problem, weights.view(), x.view()).compare(y.view());
  EXPECT_NEAR(comparison.max_row_error, 0.01, 1e-5);
  EXPECT_NEAR(comparison.global_error, 0.01, 1e-5);
  EXPECT_NEAR(comparison.tolerance_used, comparison.max_row_error / comparison.tolerance,
              1e-9 * comparison.tolerance_used);
  EXPECT_FALSE(comparison.passed);
  EXPECT_NE(comparison.describe().find("row error 0.01"), std::string::npos)
      << comparison.describe();
}

TEST(Oracle, RefusesWhatDoesNotMatch) {
  const Problem problem{{.tokens = 3, .hidden = 8, .intermediate = 6, .experts = 2, .top_k = 1},
                        DType::kF32};
  const OwnedWeights weights = make_weights(problem, 16);
  Tensor x = make_input(problem, 16, 0);
  const Oracle oracle(problem, weights.view(), x.view());
  const auto message = [](auto&& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      return error.what();
    }
    ADD_FAILURE() << "nothing was thrown";
    return {};
  };
  const Tensor narrow(DType::kF32, {3, 7});
  const Tensor bf16(DType::kBF16, {3, 8});
  EXPECT_NE(message([&] { (void)oracle.compare(narrow.view()); }).find("fp32[3,7]"),
            std::string::npos);
  EXPECT_NE(message([&] { (void)oracle.compare(bf16.view()); }).find("bf16[3,8]"),
            std::string::npos);
  Weights swapped = weights.view();
  std::swap(swapped.gate, swapped.down);
  EXPECT_NE(message([&] { Oracle(problem, swapped, x.view()); }).find("weights.gate"),
            std::string::npos);

  x.as<float>()[11] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_NE(
      message([&] { Oracle(problem, weights.view(), x.view()); }).find("token 1 are not finite"),
      std::string::npos);
  x.as<float>()[11] = 0;
  weights.down.as<float>()[0] = std::numeric_limits<float>::infinity();
  weights.down.as<float>()[48] = std::numeric_limits<float>::infinity();
  EXPECT_NE(message([&] { Oracle(problem, weights.view(), x.view()); }).find("not finite"),
            std::string::npos);
}

TEST(Poison, FillsEveryElementWithNaN) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tensor y(dtype, {5, 13});
    poison(y.view());
    with_element_type(dtype, [&]<class Element>() {
      for (std::int64_t i = 0; i < 65; ++i) EXPECT_TRUE(std::isnan(to_float(y.as<Element>()[i])));
    });
  }
}

}  // namespace
}  // namespace moe
