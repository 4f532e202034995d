// The blocks of real models on every level: routers, activations, biases, shared experts. A level that
// does not compute one of them says so, and the test is skipped with its sentence.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "conformance/levels_under_test.h"
#include "core/workload.h"
#include "moe/verify.h"
#include "verify/layer_check.h"

namespace moe {
namespace {

/// A name for a test and the options of the command line.
struct Block {
  const char* name;
  const char* options;
};

const Block kBlocks[] = {
    {"renormalised_with_bias", "--router softmax,bias"},
    {"softmax_raw", "--router softmax,raw,scale=1.5"},
    {"router_v2", "--router softmax,raw,groups=4/2,scale=16"},
    {"router_v3", "--router sigmoid,selection-bias,groups=4/2,scale=2.5"},
    {"router_v4", "--router sqrtsoftplus,selection-bias,scale=1.5"},
    {"deepseek_v2", "--router softmax,raw,groups=4/2,scale=16 --shared 80"},
    {"deepseek_v3", "--router sigmoid,selection-bias,groups=4/2,scale=2.5 --shared 40"},
    {"deepseek_v4",
     "--router sqrtsoftplus,selection-bias,scale=1.5 --activation swiglu,limit=1.5 --shared 40"},
    {"llama4", "--router sigmoid,raw,on-input --shared 40"},
    {"gpt_oss", "--router softmax,bias --activation swiglu,alpha=1.702,limit=2,up=1 --expert-bias"},
    {"sparsemixer", "--router sparsemixer"},
    {"qwen_next", "--shared 100,switch"},
    {"nemotron",
     "--router sigmoid,selection-bias,scale=2.5 --activation relu2 --shared 56 --expert-bias"},
    {"gemma", "--activation geglu --shared 24"},
    {"geglu_on_input", "--router softmax,on-input --activation geglu --expert-bias"},
    {"given", "--router given --shared 40 --expert-bias"},
};

class EveryBlock : public testing::TestWithParam<std::tuple<std::string, Block>> {
 protected:
  [[nodiscard]] static Problem problem(DType dtype) {
    Problem problem{
        .shape = {.tokens = 37, .hidden = 72, .intermediate = 40, .experts = 12, .top_k = 3}};
    set_block_options(problem, std::get<1>(GetParam()).options);
    problem.dtype = dtype;
    return problem;
  }
  [[nodiscard]] static LayerOptions options(DType dtype) {
    return options_of(std::get<0>(GetParam()), problem(dtype));
  }
};
INSTANTIATE_TEST_SUITE_P(Levels, EveryBlock,
                         testing::Combine(testing::ValuesIn(levels_under_test()),
                                          testing::ValuesIn(kBlocks)),
                         [](const auto& p) {
                           return std::get<0>(p.param) + "_" + std::get<1>(p.param).name;
                         });

TEST_P(EveryBlock, MatchesTheOracle) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const OwnedWeights weights = make_weights(problem(dtype), 5);
    MOE_CREATE_OR_SKIP(layer, options(dtype), weights.view());
    const VerifyResult result = verify(*layer, weights.view(), {.seed = 5});
    EXPECT_TRUE(result.passed) << name_of(dtype) << ": " << result.failure;
    EXPECT_GT(result.worst.rows_compared, 0);
  }
}

/// A level that left any one tensor of the block out would give another y.
TEST_P(EveryBlock, EveryTensorMatters) {
  const Problem block = problem(DType::kF32);
  OwnedWeights weights = make_weights(block, 6);
  MOE_CREATE_OR_SKIP(layer, options(DType::kF32), weights.view());
  LayerCheck check(block, weights.view(), 6, Skew{});
  EXPECT_TRUE(check.run(*layer).passed);
  for (Tensor* tensor : {&weights.router_bias, &weights.selection_bias, &weights.gate_bias,
                         &weights.up_bias, &weights.down_bias, &weights.shared_up,
                         &weights.shared_down, &weights.shared_gate, &weights.shared_switch}) {
    if (tensor->view().data == nullptr) continue;
    const TensorView whole = tensor->view();
    std::vector<float> kept(whole.as<float>(), whole.as<float>() + whole.elements());
    for (std::int64_t i = 0; i < whole.elements(); ++i) whole.as<float>()[i] *= -1.5F;
    MOE_CREATE_OR_SKIP(changed, options(DType::kF32), weights.view());
    EXPECT_FALSE(check.run(*changed).passed) << "a change of " << whole.describe();
    std::copy(kept.begin(), kept.end(), whole.as<float>());
  }
}

/// The levels again, without a block.
class EveryLevelsRoutes : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Levels, EveryLevelsRoutes, testing::ValuesIn(levels_under_test()),
                         [](const auto& p) { return p.param; });

TEST_P(EveryLevelsRoutes, UnusedSlotsAreZeroAndTheirInputsAreNotTouched) {
  Problem problem{
      .shape = {.tokens = 4, .hidden = 48, .intermediate = 24, .experts = 5, .top_k = 2}};
  problem.router = parse_router("given");
  const OwnedWeights weights = make_weights(problem, 7);
  MOE_CREATE_OR_SKIP(layer, options_of(GetParam(), problem), weights.view());
  const Tensor x = make_input(problem, 7, 0);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  // The row that no expert takes is padding: anything may stand there.
  for (std::int64_t h = 0; h < 48; ++h) x.as<float>()[48 + h] = nan;
  const std::vector<std::int32_t> experts = {4, -1, -1, -1, 2, 2, 0, 3};
  const std::vector<float> factors = {0.5F, nan, nan, nan, 0.25F, 0.75F, 1, 0};
  const Tensor y(DType::kF32, {4, 48});
  poison(y.view());
  layer.forward(x.view(), y.view(), {experts.data(), factors.data()});
  for (std::int64_t h = 0; h < 48; ++h) EXPECT_EQ(y.as<float>()[48 + h], 0);
  // Half of what the whole weight gives; two slots of one expert are one with the sum.
  const Tensor other(DType::kF32, {4, 48});
  const std::vector<std::int32_t> single = {4, -1, -1, -1, 2, -1, 0, -1};
  const std::vector<float> ones = {1, nan, nan, nan, 1, nan, 1, nan};
  layer.forward(x.view(), other.view(), {single.data(), ones.data()});
  for (std::int64_t h = 0; h < 48; ++h) {
    EXPECT_FLOAT_EQ(y.as<float>()[h], 0.5F * other.as<float>()[h]);
    EXPECT_NEAR(y.as<float>()[96 + h], other.as<float>()[96 + h], 1e-5);
    EXPECT_NE(other.as<float>()[96 + h], 0);
  }
}

TEST_P(EveryLevelsRoutes, ANaNInARowStaysThere) {
  for (const char* router : {"softmax", "softmax,raw", "sigmoid", "sqrtsoftplus", "sparsemixer"}) {
    Problem problem{
        .shape = {.tokens = 3, .hidden = 32, .intermediate = 16, .experts = 6, .top_k = 2}};
    problem.router = parse_router(router);
    const OwnedWeights weights = make_weights(problem, 8);
    MOE_CREATE_OR_SKIP(layer, options_of(GetParam(), problem), weights.view());
    const Tensor x = make_input(problem, 8, 0);
    const Tensor clean(DType::kF32, {3, 32});
    layer.forward(x.view(), clean.view());
    x.as<float>()[32 + 5] = std::numeric_limits<float>::quiet_NaN();
    const Tensor y(DType::kF32, {3, 32});
    layer.forward(x.view(), y.view());
    for (std::int64_t h = 0; h < 32; ++h) {
      // Not bitwise: how many rows an expert has may choose another kernel for it.
      EXPECT_NEAR(y.as<float>()[h], clean.as<float>()[h], 1e-5) << router;
      EXPECT_NEAR(y.as<float>()[64 + h], clean.as<float>()[64 + h], 1e-5) << router;
    }
    // Logits that are NaN choose experts, whose outputs are NaN unless their weight is zero.
    const auto* row = y.as<const float>() + 32;
    const bool all_nan = std::all_of(row, row + 32, [](float v) { return std::isnan(v); });
    EXPECT_TRUE(all_nan) << router;
  }
}

}  // namespace
}  // namespace moe
