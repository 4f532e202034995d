// The fp64 reference against values worked out by hand and against formulas written down directly,
// and its error variances against errors that were measured.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/rng.h"
#include "core/scalar.h"
#include "core/workload.h"
#include "reference/dot.h"
#include "reference/reference.h"
#include "reference/rounding.h"

namespace moe::reference {
namespace {

void set(const Tensor& tensor, const std::vector<float>& values) {
  ASSERT_EQ(static_cast<std::size_t>(tensor.view().elements()), values.size());
  with_element_type(tensor.view().dtype, [&]<class Element>() {
    for (std::size_t i = 0; i < values.size(); ++i)
      tensor.as<Element>()[i] = from_float<Element>(values[i]);
  });
}

double silu(double v) {
  return v / (1 + std::exp(-v));
}

TEST(Reference, OneTokenByHand) {
  // H = 2, I = 1, E = 3, K = 2. x = (1, 2); logits 1, 2 and 4: experts 2 and 1 with weights
  // e^4 : e^2. Expert e: gate = e + 1, up = 2, down = (e + 1, -1).
  const Problem problem{{.tokens = 1, .hidden = 2, .intermediate = 1, .experts = 3, .top_k = 2},
                        DType::kF32};
  const OwnedWeights weights{Tensor(DType::kF32, {3, 2}), Tensor(DType::kF32, {3, 1, 2}),
                             Tensor(DType::kF32, {3, 1, 2}), Tensor(DType::kF32, {3, 2, 1})};
  const Tensor x(DType::kF32, {1, 2});
  set(x, {1, 2});
  set(weights.router, {1, 0, 0, 1, 0, 2});
  set(weights.gate, {1, 0, 0, 1, 3, 0});
  set(weights.up, {0, 1, 0, 1, 0, 1});
  set(weights.down, {1, -1, 2, -1, 3, -1});
  const std::vector<Route> routes = route(problem, weights.view(), x.view());
  ASSERT_EQ(routes.size(), 1U);
  ASSERT_EQ(routes[0].choices.size(), 1U);
  const Choice& choice = routes[0].choices[0];
  EXPECT_EQ(choice.experts, (std::vector<std::int64_t>{2, 1}));
  const double first = std::exp(4.0) / (std::exp(4.0) + std::exp(2.0));
  EXPECT_NEAR(choice.weights[0], first, 1e-15);
  EXPECT_NEAR(choice.weights[1], 1 - first, 1e-15);

  const auto answers =
      evaluate(problem, Operands::kAsStored, weights.view(), x.view(), routes, {0});
  const double act2 = silu(3) * 2;
  const double act1 = silu(2) * 2;
  EXPECT_NEAR(answers[0][0].y[0], first * 3 * act2 + (1 - first) * 2 * act1, 1e-13);
  EXPECT_NEAR(answers[0][0].y[1], -first * act2 - (1 - first) * act1, 1e-13);
}

/// The layer once more, straight from its formula, over any sizes.
std::vector<double> direct(const Problem& problem, const Weights& weights, const TensorView& x,
                           std::int64_t token) {
  const auto at = [](const TensorView& tensor, std::int64_t index) {
    return tensor.dtype == DType::kF32
               ? static_cast<double>(tensor.as<float>()[index])
               : static_cast<double>(to_float(tensor.as<BFloat16>()[index]));
  };
  const std::int64_t hidden = problem.shape.hidden;
  const std::int64_t intermediate = problem.shape.intermediate;
  std::vector<std::pair<double, std::int64_t>> logits;
  for (std::int64_t e = 0; e < problem.shape.experts; ++e) {
    double logit = 0;
    for (std::int64_t h = 0; h < hidden; ++h)
      logit += at(x, token * hidden + h) * at(weights.router, e * hidden + h);
    logits.emplace_back(-logit, e);
  }
  std::sort(logits.begin(), logits.end());
  double total = 0;
  for (std::int64_t k = 0; k < problem.shape.top_k; ++k)
    total += std::exp(-logits[static_cast<std::size_t>(k)].first);
  std::vector<double> y(static_cast<std::size_t>(hidden));
  for (std::int64_t k = 0; k < problem.shape.top_k; ++k) {
    const auto [negative, e] = logits[static_cast<std::size_t>(k)];
    for (std::int64_t i = 0; i < intermediate; ++i) {
      double gate = 0;
      double up = 0;
      for (std::int64_t h = 0; h < hidden; ++h) {
        gate += at(x, token * hidden + h) * at(weights.gate, (e * intermediate + i) * hidden + h);
        up += at(x, token * hidden + h) * at(weights.up, (e * intermediate + i) * hidden + h);
      }
      for (std::int64_t h = 0; h < hidden; ++h) {
        y[static_cast<std::size_t>(h)] += std::exp(-negative) / total * silu(gate) * up *
                                          at(weights.down, (e * hidden + h) * intermediate + i);
      }
    }
  }
  return y;
}

TEST(Reference, MatchesTheFormulaAtEveryBlockWidth) {
  // With E = K every expert gets all rows: 1 to 9 tokens fill blocks of 1, 2, 4, 8 and 8 + 1 rows.
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const std::int64_t tokens : {1, 2, 3, 4, 5, 7, 8, 9, 17}) {
      for (const std::int64_t top_k : {1, 3}) {
        const Problem problem{
            {.tokens = tokens, .hidden = 13, .intermediate = 9, .experts = 3, .top_k = top_k},
            dtype};
        const OwnedWeights weights = make_weights(problem, 61);
        const Tensor x = make_input(problem, 61, 0);
        std::vector<std::int64_t> all(static_cast<std::size_t>(tokens));
        std::iota(all.begin(), all.end(), std::int64_t{0});
        const auto answers = evaluate(problem, Operands::kAsStored, weights.view(), x.view(),
                                      route(problem, weights.view(), x.view()), all);
        for (std::int64_t token = 0; token < tokens; ++token) {
          const std::vector<double> expected = direct(problem, weights.view(), x.view(), token);
          for (std::size_t h = 0; h < expected.size(); ++h) {
            EXPECT_NEAR(answers[static_cast<std::size_t>(token)][0].y[h], expected[h], 1e-12);
          }
        }
      }
    }
  }
}

TEST(Reference, EvaluatesOnlyTheTokensAskedFor) {
  const Problem problem{{.tokens = 20, .hidden = 8, .intermediate = 6, .experts = 4, .top_k = 2},
                        DType::kF32};
  const OwnedWeights weights = make_weights(problem, 62);
  const Tensor x = make_input(problem, 62, 0);
  const auto answers = evaluate(problem, Operands::kAsStored, weights.view(), x.view(),
                                route(problem, weights.view(), x.view()), {3, 19});
  ASSERT_EQ(answers.size(), 2U);
  const std::array<std::int64_t, 2> tokens = {3, 19};
  for (std::size_t i = 0; i < 2; ++i) {
    const std::vector<double> expected = direct(problem, weights.view(), x.view(), tokens[i]);
    for (std::size_t h = 0; h < 8; ++h) EXPECT_NEAR(answers[i][0].y[h], expected[h], 1e-12);
  }
}

/// Routes of one token x = (1, scale) over a router with the given logits as column 0.
Route route_of(const std::vector<float>& logits, std::int64_t top_k) {
  const auto experts = static_cast<std::int64_t>(logits.size());
  const Problem problem{
      {.tokens = 1, .hidden = 1, .intermediate = 1, .experts = experts, .top_k = top_k},
      DType::kF32};
  const Tensor router(DType::kF32, {experts, 1});
  const Tensor x(DType::kF32, {1, 1});
  set(router, logits);
  set(x, {1});
  return route(problem, {router.view()}, x.view())[0];
}

TEST(Route, ClearGapsHaveOneChoice) {
  const Route route = route_of({0.5F, 3, -1, 2, 2.5F}, 3);
  ASSERT_EQ(route.choices.size(), 1U);
  EXPECT_EQ(route.choices[0].experts, (std::vector<std::int64_t>{1, 4, 3}));
  EXPECT_NEAR(
      std::accumulate(route.choices[0].weights.begin(), route.choices[0].weights.end(), 0.0), 1,
      1e-15);
}

TEST(Route, TieAcrossTheBoundaryHasEveryChoiceLowestIndexFirst) {
  // Rank 2 is one of experts 0, 3 and 4, which are equal.
  const Route route = route_of({1, 5, -2, 1, 1}, 2);
  ASSERT_EQ(route.choices.size(), 3U);
  EXPECT_EQ(route.choices[0].experts, (std::vector<std::int64_t>{1, 0}));
  EXPECT_EQ(route.choices[1].experts, (std::vector<std::int64_t>{1, 3}));
  EXPECT_EQ(route.choices[2].experts, (std::vector<std::int64_t>{1, 4}));
}

TEST(Route, TieAmongTheChosenIsNoAmbiguity) {
  const Route route = route_of({4, 4, 4, 1, 0}, 3);
  ASSERT_EQ(route.choices.size(), 1U) << "the set is the same in any order";
  EXPECT_EQ(route.choices[0].experts, (std::vector<std::int64_t>{0, 1, 2}));
}

TEST(Route, ATieIsWhatFp32CannotTellApart) {
  EXPECT_EQ(route_of({1, 1 + 0x1p-23F, -3}, 1).choices.size(), 2U) << "one unit in the last place";
  EXPECT_EQ(route_of({1, 1 + 0x1p-14F, -3}, 1).choices.size(), 1U) << "five hundred of them";
  // A fraction of 10^-4 of random tokens at most: ties are not a way out.
  const Problem problem{
      {.tokens = 4000, .hidden = 256, .intermediate = 1, .experts = 64, .top_k = 8}, DType::kF32};
  const OwnedWeights weights = make_weights(problem, 63);
  const Tensor x = make_input(problem, 63, 0);
  std::int64_t tied = 0;
  for (const Route& route : route(problem, weights.view(), x.view())) {
    if (route.choices.size() > 1) ++tied;
  }
  EXPECT_LE(tied, 4);
}

TEST(Route, ManyTiesKeepTheNearestChoices) {
  const Route route = route_of(std::vector<float>(40, 1.0F), 20);
  ASSERT_EQ(route.choices.size(), kMaxChoices);
  for (std::int64_t k = 0; k < 20; ++k)
    EXPECT_EQ(route.choices[0].experts[static_cast<std::size_t>(k)], k);
}

TEST(Route, ZeroLogitsAreEqualExactly) {
  const Route route = route_of({0, 0, 0, 0}, 2);
  ASSERT_EQ(route.choices.size(), 1U);
  EXPECT_EQ(route.choices[0].experts, (std::vector<std::int64_t>{0, 1}));
}

TEST(Rounding, UnitRoundoffIsTheLargestRelativeErrorOfARounding) {
  // Between two neighbours the middle is the worst: 1 + 2^-8 for bf16, whose neighbours are 2^-7 apart.
  EXPECT_EQ(to_float(to_bfloat16(1 + 0x1p-8F)), 1.0F);
  EXPECT_EQ(to_float(to_bfloat16(1 + 0x1p-7F)), 1 + 0x1p-7F);
  EXPECT_EQ(kBf16Roundoff, 0x1p-8);
  EXPECT_EQ(static_cast<float>(1 + 0x1p-24), 1.0F);
  EXPECT_EQ(kFp32Roundoff, 0x1p-24);
  double squares = 0;
  constexpr int kCount = 100000;
  for (int i = 0; i < kCount; ++i) {
    const double value = 1 + random_uniform(5, 0, static_cast<std::uint64_t>(i));
    const double error = to_float(to_bfloat16(static_cast<float>(value))) - value;
    squares += error * error / (value * value);
  }
  EXPECT_LE(squares / kCount, storage_variance(DType::kBF16));
  EXPECT_GE(squares / kCount, 0.4 * storage_variance(DType::kBF16));
}

TEST(Rounding, VarianceOfASumIsWhatSequentialSumsHave) {
  // Measured over many sums, for zero-mean terms and for terms of one sign.
  for (const double mean : {0.0, 1.0}) {
    for (const std::int64_t n : {8, 300, 4000}) {
      double measured = 0;
      double predicted = 0;
      for (std::uint64_t trial = 0; trial < 400; ++trial) {
        float sum = 0;
        double exact = 0;
        double squares = 0;
        for (std::int64_t i = 0; i < n; ++i) {
          const auto a =
              static_cast<float>(mean + random_normal(6, trial, static_cast<std::uint64_t>(2 * i)));
          const auto b = static_cast<float>(
              mean + random_normal(6, trial, static_cast<std::uint64_t>(2 * i + 1)));
          const float product = a * b;
          sum += product;
          const double term = static_cast<double>(a) * b;
          exact += term;
          squares += term * term;
        }
        measured += (sum - exact) * (sum - exact);
        const SumVariance variance = sum_variance(n);
        predicted += variance.of_squares * squares + variance.of_value * exact * exact;
      }
      // Roundings within a binade average to 0.53 of the bound u²/3 that the model takes.
      EXPECT_LT(measured, predicted) << "mean " << mean << ", n = " << n;
      EXPECT_GT(measured, 0.25 * predicted) << "mean " << mean << ", n = " << n;
    }
  }
}

TEST(DotBlock, SumsAndErrorSums) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tensor matrix(dtype, {2, 3});
    set(matrix, {9, 9, 9, 1, -2, 4});
    for (int rows = 1; rows <= kBlockRows; ++rows) {
      Block block(rows, 3);
      for (int r = 0; r < rows; ++r) {
        for (std::int64_t j = 0; j < 3; ++j) {
          const auto at = static_cast<std::size_t>(j * block.width() + r);
          block.values[at] = static_cast<double>(10 * r + j);
          block.coefficients[at] = static_cast<double>(r + 1);
        }
      }
      std::array<double, kBlockRows> sums{};
      std::array<double, kBlockRows> errors{};
      dot_block(matrix.view(), 1, block, sums.data(), errors.data());
      for (int r = 0; r < rows; ++r) {
        EXPECT_EQ(sums[static_cast<std::size_t>(r)],
                  10.0 * r - 2.0 * (10 * r + 1) + 4.0 * (10 * r + 2));
        EXPECT_EQ(errors[static_cast<std::size_t>(r)], 21.0 * (r + 1));
      }
    }
  }
}

}  // namespace
}  // namespace moe::reference
