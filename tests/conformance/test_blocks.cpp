// The blocks of real models on every level: routers, activations, biases, shared experts. A level that
// does not compute one of them says so, and the test is skipped with its sentence.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "conformance/blocks_under_test.h"
#include "conformance/levels_under_test.h"
#include "core/isa.h"
#include "core/scalar.h"
#include "core/workload.h"
#include "moe/verify.h"
#include "temporary_folder.h"
#include "verify/layer_check.h"

namespace moe {
namespace {

/// Keeps what levels compile while the tests run: many blocks share kernels.
LayerOptions options_with_cache(const std::string& level, const Problem& problem) {
  static const test::TemporaryFolder folder;
  LayerOptions options = options_of(level, problem);
  options.tune_cache = folder.path();
  return options;
}

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
    return options_with_cache(std::get<0>(GetParam()), problem(dtype));
  }
};
INSTANTIATE_TEST_SUITE_P(Levels, EveryBlock,
                         testing::Combine(testing::ValuesIn(levels_under_test()),
                                          testing::ValuesIn(kBlocks)),
                         [](const auto& p) {
                           return std::get<0>(p.param) + "_" + std::get<1>(p.param).name;
                         });

TEST_P(EveryBlock, MatchesTheOracle) {
  std::string refused;
  int ran = 0;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const OwnedWeights weights = make_weights(problem(dtype), 5);
    LayerOrReason created = create_layer(options(dtype), weights.view());
    if (!created.layer) {
      refused = created.reason;  // a type, at some levels
      continue;
    }
    ++ran;
    const VerifyResult result = verify(**created.layer, weights.view(), {.seed = 5});
    EXPECT_TRUE(result.passed) << name_of(dtype) << ": " << result.failure;
    EXPECT_GT(result.worst.rows_compared, 0);
  }
  if (ran == 0) GTEST_SKIP() << refused;
}

/// Multiplies every element by -1.5.
void change(const TensorView& tensor) {
  for (std::int64_t i = 0; i < tensor.elements(); ++i) {
    if (tensor.dtype == DType::kF32) {
      tensor.as<float>()[i] *= -1.5F;
    } else {
      tensor.as<BFloat16>()[i] = from_float<BFloat16>(-1.5F * to_float(tensor.as<BFloat16>()[i]));
    }
  }
}

/// The best one is MatchesTheOracle's.
TEST_P(EveryBlock, LowerInstructionSetsMatchTheOracle) {
  if (kBackend != Backend::kCpu) GTEST_SKIP() << "instruction sets are the CPU's";
  int ran = 0;
  std::string reason = "there is no lower one";
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const OwnedWeights weights = make_weights(problem(dtype), 7);
    LayerCheck check(problem(dtype), weights.view(), 7, {});
    for (const Isa isa : available_isas()) {
      if (isa == best_isa()) continue;
      LayerOptions lowered = options(dtype);
      lowered.isa = name_of(isa);
      LayerOrReason created = create_layer(lowered, weights.view());
      if (!created.layer) {
        reason = created.reason;
        continue;
      }
      ++ran;
      const VerifyResult result = check.run(**created.layer);
      EXPECT_TRUE(result.passed) << name_of(dtype) << " " << name_of(isa) << ": " << result.failure;
    }
  }
  if (ran == 0) GTEST_SKIP() << reason;
}

/// A level that left any one tensor of the block out would give another y.
TEST_P(EveryBlock, EveryTensorMatters) {
  // The finer type where the level has it.
  const DType dtype =
      create_layer(options(DType::kF32), make_weights(problem(DType::kF32), 6).view()).layer
          ? DType::kF32
          : DType::kBF16;
  const Problem block = problem(dtype);
  OwnedWeights weights = make_weights(block, 6);
  MOE_CREATE_OR_SKIP(layer, options(dtype), weights.view());
  LayerCheck check(block, weights.view(), 6, Skew{});
  EXPECT_TRUE(check.run(*layer).passed);
  for (Tensor* tensor : {&weights.router_bias, &weights.selection_bias, &weights.gate_bias,
                         &weights.up_bias, &weights.down_bias, &weights.shared_up,
                         &weights.shared_down, &weights.shared_gate, &weights.shared_switch}) {
    if (tensor->view().data == nullptr) continue;
    const TensorView whole = tensor->view();
    const auto* const bytes = whole.as<const std::byte>();
    const std::vector<std::byte> kept(bytes, bytes + whole.bytes());
    change(whole);
    MOE_CREATE_OR_SKIP(changed, options(dtype), weights.view());
    EXPECT_FALSE(check.run(*changed).passed) << "a change of " << whole.describe();
    std::copy(kept.begin(), kept.end(), whole.as<std::byte>());
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
  MOE_CREATE_OR_SKIP(layer, options_with_cache(GetParam(), problem), weights.view());
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

/// Routes that leave slots out, name an expert again, or both.
struct GivenCase {
  const char* name;
  std::int64_t tokens;
  std::int32_t (*expert)(std::int64_t token, std::int64_t slot);
};
const GivenCase kGivenCases[] = {
    {"no slot is used", 9, [](std::int64_t, std::int64_t) { return -1; }},
    {"one row has slots", 9,
     [](std::int64_t token, std::int64_t slot) {
       return token == 4 ? static_cast<std::int32_t>(slot) : -1;
     }},
    {"one expert in all slots", 70, [](std::int64_t, std::int64_t) { return 3; }},
    {"twice or not at all", 33,
     [](std::int64_t token, std::int64_t slot) {
       return slot == 2 ? -1 : static_cast<std::int32_t>(token * 7 % 5);
     }},
    {"one row", 1, [](std::int64_t, std::int64_t slot) { return slot == 1 ? 4 : -1; }},
};

TEST_P(EveryLevelsRoutes, MaskedAndRepeatedExpertsMatchTheOracle) {
  std::string refused;
  int ran = 0;
  for (const char* block : {"--router given", "--router given --shared 40 --expert-bias",
                            "--router given --shared 57,switch --activation relu2"}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      Problem problem{
          .shape = {.tokens = 70, .hidden = 48, .intermediate = 24, .experts = 5, .top_k = 3}};
      set_block_options(problem, block);
      problem.dtype = dtype;
      const OwnedWeights weights = make_weights(problem, 9);
      LayerOrReason created = create_layer(options_with_cache(GetParam(), problem), weights.view());
      if (!created.layer) {
        refused = created.reason;  // a type, at some levels
        continue;
      }
      HostLayer& layer = *created.layer;
      const Tensor input = make_input(problem, 9, 0);
      ++ran;
      for (const GivenCase& given : kGivenCases) {
        const TensorView x = input.view().first_rows(given.tokens);
        std::vector<std::int32_t> experts;
        std::vector<float> factors;
        for (std::int64_t slot = 0; slot < given.tokens * 3; ++slot) {
          experts.push_back(given.expert(slot / 3, slot % 3));
          factors.push_back(experts.back() < 0 ? std::numeric_limits<float>::quiet_NaN()
                                               : 0.25F * static_cast<float>(slot % 3 + 1));
        }
        const Routes routes{experts.data(), factors.data()};
        const Tensor y(dtype, {given.tokens, 48});
        poison(y.view());
        layer.forward(x, y.view(), routes);
        const Comparison comparison =
            Oracle(problem, weights.view(), x, {.operands = layer->operands(), .routes = routes})
                .compare(y.view());
        EXPECT_TRUE(comparison.passed) << block << ", " << name_of(dtype) << ", " << given.name
                                       << ": " << comparison.describe();
        EXPECT_EQ(comparison.rows_compared, given.tokens);
      }
    }
  }
  if (ran == 0) GTEST_SKIP() << refused;
}

/// Element `at` of a tensor, of either type.
float element_of(const Tensor& tensor, std::int64_t at) {
  if (tensor.view().dtype == DType::kF32) return tensor.as<const float>()[at];
  return to_float(tensor.as<const BFloat16>()[at]);
}

TEST_P(EveryLevelsRoutes, ANaNInARowStaysThere) {
  std::string refused;
  int ran = 0;
  for (const char* block :
       {"--router softmax", "--router softmax,raw", "--router sigmoid", "--router sqrtsoftplus",
        "--router sparsemixer", "--activation geglu", "--activation relu2",
        "--activation swiglu,alpha=1.702,limit=1,up=1", "--expert-bias --shared 24,switch"}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      Problem problem{
          .shape = {.tokens = 3, .hidden = 32, .intermediate = 16, .experts = 6, .top_k = 2}};
      set_block_options(problem, block);
      problem.dtype = dtype;
      const OwnedWeights weights = make_weights(problem, 8);
      LayerOrReason created = create_layer(options_with_cache(GetParam(), problem), weights.view());
      if (!created.layer) {
        refused = created.reason;
        continue;
      }
      HostLayer& layer = *created.layer;
      ++ran;
      const Tensor x = make_input(problem, 8, 0);
      const Tensor clean(dtype, {3, 32});
      layer.forward(x.view(), clean.view());
      if (dtype == DType::kF32) {
        x.as<float>()[32 + 5] = std::numeric_limits<float>::quiet_NaN();
      } else {
        x.as<BFloat16>()[32 + 5] = from_float<BFloat16>(std::numeric_limits<float>::quiet_NaN());
      }
      const Tensor y(dtype, {3, 32});
      layer.forward(x.view(), y.view());
      bool all_nan = true;
      for (std::int64_t h = 0; h < 32; ++h) {
        // Not bitwise: how many rows an expert has may choose another kernel for it.
        for (const std::int64_t at : {h, 64 + h}) {
          const float want = element_of(clean, at);
          EXPECT_NEAR(element_of(y, at), want,
                      dtype == DType::kF32 ? 1e-5 : 1e-3 + 0.02 * std::abs(want))
              << block << ", " << name_of(dtype);
        }
        // Logits that are NaN choose experts, whose outputs are NaN unless their weight is zero.
        all_nan = all_nan && std::isnan(element_of(y, 32 + h));
      }
      EXPECT_TRUE(all_nan) << block << ", " << name_of(dtype);
    }
  }
  if (ran == 0) GTEST_SKIP() << refused;
}

}  // namespace
}  // namespace moe
