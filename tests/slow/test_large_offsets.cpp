// Offsets beyond 2^31 elements, in weights and in activations. Gigabytes of memory and minutes of
// time, hence apart from the other tests and under the label "slow".
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "conformance/levels_under_test.h"
#include "core/dispatch.h"
#include "core/memory.h"
#include "core/rng.h"
#include "core/workload.h"
#include "moe/verify.h"

namespace moe {
namespace {

constexpr std::int64_t kInt32Limit = std::int64_t{1} << 31;
constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;

class LargeOffsets : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Slow, LargeOffsets, testing::ValuesIn(levels_under_test()),
                         [](const auto& parameter) { return parameter.param; });

/// `count` normal values from element `first` on, of the given deviation.
void fill(const Tensor& tensor, std::int64_t first, std::int64_t count, std::uint64_t stream,
          double deviation) {
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < count; ++i) {
    // A sum of four uniforms is normal enough for this, and cheap.
    double sum = -2;
    for (std::uint64_t part = 0; part < 4; ++part) {
      sum += random_uniform(7, stream, 4 * static_cast<std::uint64_t>(first + i) + part);
    }
    tensor.as<BFloat16>()[first + i] = to_bfloat16(static_cast<float>(deviation * 1.7320508 * sum));
  }
}

TEST_P(LargeOffsets, WeightsBeyond2To31Elements) {
  const Problem problem{
      {.tokens = 8, .hidden = 2048, .intermediate = 1024, .experts = 1100, .top_k = 2},
      DType::kBF16};
  const Shape& shape = problem.shape;
  const std::int64_t matrix = shape.hidden * shape.intermediate;
  ASSERT_GT(shape.experts * matrix, kInt32Limit);
  const LayerOptions options = options_of(GetParam(), problem);
  MemoryNeeds needs;
  try {
    needs = Layer::predict(options);
  } catch (const Error& error) {
    GTEST_SKIP() << error.what();
  }
  // Weights of experts that no token chooses are never written here, and stay without memory unless
  // a level copies them.
  if (needs.total() + 3 * kGiB > available_memory()) {
    GTEST_SKIP() << "needs " << needs.total() << " bytes, " << available_memory()
                 << " are available";
  }
  const OwnedWeights weights{
      Tensor(problem.dtype, {shape.experts, shape.hidden}),
      Tensor(problem.dtype, {shape.experts, shape.intermediate, shape.hidden}),
      Tensor(problem.dtype, {shape.experts, shape.intermediate, shape.hidden}),
      Tensor(problem.dtype, {shape.experts, shape.hidden, shape.intermediate})};
  // Expert 1024 begins at element 2^31. All other router rows are zero: a token whose logits are
  // negative goes to experts 0 and 1.
  ASSERT_EQ(1024 * matrix, kInt32Limit);
  for (const std::int64_t expert : {0, 1, 1023, 1024, 1099}) {
    fill(weights.gate, expert * matrix, matrix, 1, 1 / std::sqrt(2048.0));
    fill(weights.up, expert * matrix, matrix, 2, 1 / std::sqrt(2048.0));
    fill(weights.down, expert * matrix, matrix, 3, 1 / std::sqrt(1024.0));
    if (expert > 1)
      fill(weights.router, expert * shape.hidden, shape.hidden, 4, 1 / std::sqrt(2048.0));
  }
  const Tensor x = make_input(problem, 51, 0);
  const Oracle oracle(problem, weights.view(), x.view());
  const std::int64_t beyond = oracle.tokens_per_expert()[1024] + oracle.tokens_per_expert()[1099];
  ASSERT_GT(beyond, 0) << "the test's own premise: some token uses weights beyond 2^31 elements";
  MOE_CREATE_OR_SKIP(layer, options, weights.view());
  const Tensor y(problem.dtype, {shape.tokens, shape.hidden});
  poison(y.view());
  layer.forward(x.view(), y.view());
  const Comparison comparison = oracle.compare(y.view());
  EXPECT_TRUE(comparison.passed) << comparison.describe();
}

TEST_P(LargeOffsets, ActivationsBeyond2To31Elements) {
  const Problem problem{
      {.tokens = 32784, .hidden = 65600, .intermediate = 1, .experts = 2, .top_k = 1},
      DType::kBF16};
  const Shape& shape = problem.shape;
  ASSERT_GT(shape.tokens * shape.hidden, kInt32Limit);
  const LayerOptions options = options_of(GetParam(), problem);
  MemoryNeeds needs;
  try {
    needs = Layer::predict(options);
  } catch (const Error& error) {
    GTEST_SKIP() << error.what();
  }
  static bool made = false;  // x and y, which then are no longer part of the available memory
  const std::uint64_t tensors =
      made ? 0
           : 2 * static_cast<std::uint64_t>(shape.tokens * shape.hidden) * size_of(problem.dtype);
  if (needs.total() + tensors + 2 * kGiB > available_memory()) {
    GTEST_SKIP() << "needs " << needs.total() + tensors << " bytes, " << available_memory()
                 << " are available";
  }
  // One for all levels: making four gigabytes takes longer than any level's forward.
  static const OwnedWeights weights = make_weights(problem, 52);
  static const Tensor x = make_input(problem, 52, 0);
  static const Tensor y(problem.dtype, {shape.tokens, shape.hidden});
  static const Oracle oracle(problem, weights.view(), x.view());
  made = true;
  MOE_CREATE_OR_SKIP(layer, options, weights.view());
  poison(y.view());
  layer.forward(x.view(), y.view());
  // The oracle's sample contains the last token, and every row is searched for the poison.
  const auto first_beyond =
      std::lower_bound(oracle.tokens().begin(), oracle.tokens().end(), kInt32Limit / shape.hidden);
  ASSERT_NE(first_beyond, oracle.tokens().end());
  const Comparison comparison = oracle.compare(y.view());
  EXPECT_TRUE(comparison.passed) << comparison.describe();
}

}  // namespace
}  // namespace moe
