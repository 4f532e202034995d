#include "core/workload.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "core/scalar.h"
#include "moe/error.h"

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
  for (const char* skew_name : {"uniform", "zipf:1", "one-expert"}) {
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
  EXPECT_EQ(Skew::parse("zipf:1.5").describe(), "zipf:1.5");
  EXPECT_EQ(Skew::parse("one-expert").describe(), "one-expert");
  for (const char* bad :
       {"", "zipf", "zipf:", "zipf:0", "zipf:-1", "zipf:nan", "zipf:1x", "zipf:inf", "hot"}) {
    EXPECT_THROW(static_cast<void>(Skew::parse(bad)), Error) << bad;
  }
}

}  // namespace
}  // namespace moe
