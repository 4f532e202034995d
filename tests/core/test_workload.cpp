#include "core/workload.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <vector>

#include "core/scalar.h"
#include "moe/error.h"
#include "reference/reference.h"

namespace moe {
namespace {

const Problem kProblem{.shape = {64, 96, 160, 8, 2}, .dtype = DType::kF32};

double deviation(const TensorView& tensor) {
  double squares = 0;
  for (std::int64_t i = 0; i < tensor.elements(); ++i) {
    const double value = tensor.as<float>()[i];
    squares += value * value;
  }
  return std::sqrt(squares / static_cast<double>(tensor.elements()));
}

TEST(Workload, IsNormalWithTheDocumentedScales) {
  const OwnedWeights weights = make_weights(kProblem, 7);
  EXPECT_NEAR(deviation(weights.gate.view()) * std::sqrt(96.0), 1.0, 0.01);
  EXPECT_NEAR(deviation(weights.up.view()) * std::sqrt(96.0), 1.0, 0.01);
  const Tensor x = make_input(kProblem, 7, 0);
  EXPECT_NEAR(deviation(x.view()), 1.0, 0.05);
  double fourth = 0;  // a normal variable's kurtosis is 3
  for (std::int64_t i = 0; i < weights.gate.view().elements(); ++i) {
    const double value = weights.gate.as<float>()[i] * std::sqrt(96.0);
    fourth += value * value * value * value;
  }
  EXPECT_NEAR(fourth / static_cast<double>(weights.gate.view().elements()), 3.0, 0.1);
}

TEST(Workload, OutputHasUnitScaleUnderEverySkew) {
  for (const char* skew_name : {"uniform", "zipf:1", "one-expert", "hot:2,0.45", "dirichlet:0.2"}) {
    Problem problem = kProblem;
    problem.shape = {256, 128, 256, 16, 4};
    const Skew skew = Skew::parse(skew_name);
    const OwnedWeights weights = make_weights(problem, 3, skew);
    const Tensor x = make_input(problem, 3, 0, skew);
    const Tensor y(problem.dtype, {256, 128});
    Layer::create({.level = "memefficient", .problem = problem}, weights.view())
        .forward(x.view(), y.view());
    EXPECT_NEAR(deviation(y.view()), 1.0, 0.2) << skew_name;
  }
}

TEST(Workload, DependsOnSeedAndVariantOnly) {
  const Tensor once = make_input(kProblem, 7, 0);
  omp_set_num_threads(1);
  const Tensor again = make_input(kProblem, 7, 0);
  omp_set_num_threads(omp_get_num_procs());
  EXPECT_EQ(std::memcmp(once.as<char>(), again.as<char>(), once.view().bytes()), 0);
  EXPECT_NE(
      std::memcmp(once.as<char>(), make_input(kProblem, 8, 0).as<char>(), once.view().bytes()), 0);
  EXPECT_NE(
      std::memcmp(once.as<char>(), make_input(kProblem, 7, 1).as<char>(), once.view().bytes()), 0);
}

TEST(Workload, Bf16IsTheRoundedFp32) {
  Problem bf16 = kProblem;
  bf16.dtype = DType::kBF16;
  const Tensor exact = make_input(kProblem, 7, 0);
  const Tensor rounded = make_input(bf16, 7, 0);
  for (std::int64_t i = 0; i < exact.view().elements(); ++i) {
    ASSERT_EQ(rounded.as<BFloat16>()[i], to_bfloat16(exact.as<float>()[i]));
  }
}

TEST(Skew, ParsesAndRefuses) {
  for (const char* good :
       {"uniform", "zipf:1.5", "one-expert", "hot:3,0.25", "dirichlet:0.1", "hot:1,1"}) {
    EXPECT_EQ(Skew::parse(good).describe(), good);
  }
  for (const char* bad : {"",
                          "zipf",
                          "zipf:",
                          "zipf:0",
                          "zipf:-1",
                          "zipf:nan",
                          "zipf:1x",
                          "zipf:inf",
                          "zipf:11",
                          "hot",
                          "hot:",
                          "hot:2",
                          "hot:0,0.5",
                          "hot:2,0",
                          "hot:2,1.5",
                          "hot:2,nan",
                          "hot:2.5,0.5",
                          "hot:2,0.5,1",
                          "dirichlet:",
                          "dirichlet:0",
                          "dirichlet:-1",
                          "dirichlet:nan",
                          "dirichlet:1e9",
                          "trace:",
                          "trace:/no/such.jsonl"}) {
    EXPECT_THROW(static_cast<void>(Skew::parse(bad)), Error) << bad;
  }
}

std::string refusal(const std::string& skew, const Shape& shape) {
  try {
    Skew::parse(skew).check(shape);
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

TEST(Skew, RefusesShapesThatCannotBe) {
  const Shape shape{8, 64, 64, 8, 2};
  EXPECT_EQ(refusal("hot:8,0.5", shape), "skew hot:8,0.5: 8 hot experts of 8");
  EXPECT_EQ(refusal("hot:1,0.6", shape),
            "skew hot:1,0.6: with top_k=2 and experts=8, 1 experts get a share of 0 to 0.5");
  EXPECT_EQ(refusal("hot:7,0.4", shape),
            "skew hot:7,0.4: with top_k=2 and experts=8, 7 experts get a share of 0.5 to 1");
  EXPECT_EQ(refusal("hot:1,0.5", shape), "");
  EXPECT_THROW(static_cast<void>(make_weights({.shape = shape}, 1, Skew::parse("hot:8,0.5"))),
               Error);
}

/// Rows per expert by the fp64 router, of generated weights and inputs.
std::vector<std::int64_t> loads(const Shape& shape, DType dtype, const std::string& skew_name,
                                std::uint64_t seed = 3) {
  const Problem problem{.shape = shape, .dtype = dtype};
  const Skew skew = Skew::parse(skew_name);
  const OwnedWeights weights = make_weights(problem, seed, skew);
  const Tensor x = make_input(problem, seed, 0, skew);
  std::vector<std::int64_t> rows(static_cast<std::size_t>(shape.experts));
  for (const reference::Route& route : reference::route(problem, weights.view(), x.view())) {
    for (const std::int64_t expert : route.choices.front().experts) {
      ++rows[static_cast<std::size_t>(expert)];
    }
  }
  return rows;
}

/// Of the `count` busiest experts.
double share_of_busiest(std::vector<std::int64_t> rows, std::size_t count) {
  std::sort(rows.begin(), rows.end(), std::greater<>());
  std::int64_t total = 0;
  std::int64_t busiest = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    total += rows[i];
    if (i < count) busiest += rows[i];
  }
  return static_cast<double>(busiest) / static_cast<double>(total);
}

TEST(Skew, HotExpertsGetTheirShareOfAllRows) {
  struct Case {
    const char* skew;
    std::int64_t experts, top_k;
    std::size_t hot;
    double share;
  };
  for (const Case& c : {Case{"hot:1,0.5", 16, 1, 1, 0.5}, Case{"hot:4,0.8", 64, 1, 4, 0.8},
                        Case{"hot:2,0.5", 16, 4, 2, 0.5}, Case{"hot:4,0.6", 32, 6, 4, 0.6}}) {
    const Shape shape{2000, 128, 16, c.experts, c.top_k};
    // 2000 tokens, and a router with 128 features: two per cent either way.
    EXPECT_NEAR(share_of_busiest(loads(shape, DType::kF32, c.skew), c.hot), c.share, 0.03)
        << c.skew;
    EXPECT_NEAR(share_of_busiest(loads(shape, DType::kBF16, c.skew), c.hot), c.share, 0.03)
        << c.skew;
    const RouteTrace drawn = draw_routes(shape, 5, Skew::parse(c.skew));
    EXPECT_NEAR(share_of_busiest(load_of(drawn).rows, c.hot), c.share, 0.03) << c.skew;
  }
}

TEST(Skew, DirichletIsEvenOrNotByItsConcentration) {
  const Shape shape{2000, 128, 16, 32, 1};
  const auto variation = [&](const char* skew, std::uint64_t seed) {
    return load_of(loads(shape, DType::kF32, skew, seed)).variation;
  };
  // Shares p of a symmetric Dirichlet have a relative variance of (E-1)/(E*A+1).
  double even = 0;
  double uneven = 0;
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    even += variation("dirichlet:100", seed) / 8;
    uneven += variation("dirichlet:0.3", seed) / 8;
  }
  EXPECT_LT(even, 0.35);
  EXPECT_NEAR(uneven, std::sqrt(31 / (32 * 0.3 + 1)), 0.5);
  EXPECT_NE(loads(shape, DType::kF32, "dirichlet:0.3", 1),
            loads(shape, DType::kF32, "dirichlet:0.3", 2));
  EXPECT_EQ(loads(shape, DType::kF32, "dirichlet:0.3", 1),
            loads(shape, DType::kF32, "dirichlet:0.3", 1));
  // However small: a choice of K experts is always possible.
  EXPECT_EQ(load_of(loads({64, 64, 16, 8, 4}, DType::kBF16, "dirichlet:0.001")).max_over_mean, 2);
}

TEST(Skew, ATraceIsRoutedAsRecorded) {
  const std::string path = testing::TempDir() + "moe_workload_trace.jsonl";
  const Shape recorded{50, 64, 32, 12, 3};
  const RouteTrace trace = draw_routes(recorded, 9, Skew::parse("zipf:1"));
  std::ofstream(path) << trace_as_jsonl(trace);
  const Skew skew = Skew::parse("trace:" + path);
  EXPECT_EQ(skew.describe(), "trace:" + path);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Problem problem{.shape = {40, 64, 32, 12, 3}, .dtype = dtype};
    const OwnedWeights weights = make_weights(problem, 4, skew);
    for (const std::uint64_t variant : {0, 1, 2}) {
      const Tensor x = make_input(problem, 4, variant, skew);
      const auto routes = reference::route(problem, weights.view(), x.view());
      for (std::size_t token = 0; token < routes.size(); ++token) {
        ASSERT_EQ(routes[token].choices.size(), 1U) << "no ties";
        const std::size_t first = (variant * 40 + token) % 50 * 3;
        for (std::size_t slot = 0; slot < 3; ++slot) {
          EXPECT_EQ(routes[token].choices[0].experts[slot], trace.indices[first + slot]);
          EXPECT_NEAR(routes[token].choices[0].weights[slot], trace.weights[first + slot],
                      dtype == DType::kF32 ? 1e-6 : 0.01);
        }
      }
      Tensor y(dtype, {40, 64});
      Layer::create({.level = "memefficient", .problem = problem}, weights.view())
          .forward(x.view(), y.view());
      if (dtype == DType::kF32) {
        EXPECT_NEAR(deviation(y.view()), 1.0, 0.3);
      }
    }
  }
  EXPECT_EQ(refusal("trace:" + path, {8, 64, 64, 12, 2}), path + " has 3 choices a token, top_k=2");
  EXPECT_EQ(refusal("trace:" + path, {8, 64, 64, 11, 3}), path + " is of 12 experts, experts=11");
  EXPECT_EQ(refusal("trace:" + path, {8, 16, 64, 12, 3}),
            "skew trace:" + path +
                ": a trace needs two features per expert, hidden=16 is below 2 x experts=12");
  EXPECT_THROW(static_cast<void>(draw_routes(recorded, 9, skew)), Error);
  std::filesystem::remove(path);
}

TEST(Skew, DrawnRoutesSpreadLikeTheRouters) {
  const Shape shape{3000, 128, 16, 16, 2};
  for (const char* skew : {"uniform", "zipf:1", "dirichlet:0.5", "one-expert"}) {
    const RouteLoad drawn = load_of(draw_routes(shape, 3, Skew::parse(skew)));
    const RouteLoad routed = load_of(loads(shape, DType::kF32, skew));
    EXPECT_NEAR(drawn.max_over_mean / routed.max_over_mean, 1, 0.25) << skew;
    EXPECT_NEAR(drawn.entropy, routed.entropy, 0.06) << skew;
  }
  const RouteTrace trace = draw_routes(shape, 3, Skew{});
  validate(trace, "drawn");
  for (std::size_t token = 0; token < 3000; ++token) {
    ASSERT_NEAR(trace.weights[2 * token] + trace.weights[2 * token + 1], 1, 1e-6);
    ASSERT_GE(trace.weights[2 * token], trace.weights[2 * token + 1]);
  }
}

}  // namespace
}  // namespace moe
