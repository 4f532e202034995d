// Every level computes the layer: registered levels x shapes x dtypes, against the fp64 oracle.
#include <gtest/gtest.h>

#include <cstring>
#include <tuple>

#include "conformance/levels_under_test.h"
#include "core/dispatch.h"
#include "core/isa.h"
#include "core/workload.h"
#include "moe/verify.h"
#include "verify/layer_check.h"

namespace moe {
namespace {

struct ShapeCase {
  const char* name;
  Shape shape;
  const char* skew;
};

// Sizes that implementations get wrong first, and the proportions of real layers scaled down to H in
// the hundreds (the ratios I/H, E and K are theirs).
constexpr ShapeCase kCases[] = {
    {"one_of_everything", {1, 1, 1, 1, 1}, "uniform"},
    {"one_token", {1, 64, 128, 8, 2}, "uniform"},
    {"fewer_tokens_than_experts", {3, 48, 80, 40, 4}, "uniform"},
    {"every_expert_for_every_token", {17, 40, 56, 5, 5}, "uniform"},
    {"one_expert_takes_all", {130, 64, 96, 16, 1}, "one-expert"},
    {"one_expert_takes_all_of_two", {65, 64, 96, 16, 2}, "one-expert"},
    {"single_expert", {33, 72, 40, 1, 1}, "uniform"},
    {"mostly_empty_experts", {9, 32, 32, 72, 2}, "zipf:4"},
    {"skewed", {127, 96, 64, 40, 6}, "zipf:1"},
    {"odd_hidden_and_intermediate", {31, 33, 7, 3, 2}, "uniform"},
    {"hidden_1", {16, 1, 33, 4, 2}, "uniform"},
    {"intermediate_1", {16, 33, 1, 4, 2}, "uniform"},
    {"off_tile_2880", {20, 360, 360, 4, 2}, "uniform"},   // gpt-oss / 8: 2880 = 22.5 * 128
    {"off_tile_1856", {12, 336, 232, 16, 6}, "uniform"},  // nemotron-3-nano / 8
    {"off_tile_704", {14, 352, 88, 8, 4}, "uniform"},     // gemma-4 / 8
    {"mixtral", {48, 256, 896, 8, 2}, "uniform"},         // / 16
    {"qwen3_30b_a3b", {64, 256, 96, 128, 8}, "uniform"},  // / 8
    {"deepseek_v3", {40, 448, 128, 256, 8}, "uniform"},   // / 16
    {"top_22", {10, 64, 48, 64, 22}, "uniform"},          // nemotron-3-super's K
    {"many_blocks_of_tokens", {700, 72, 48, 4, 2}, "zipf:1"},
};

class Values : public testing::TestWithParam<std::tuple<std::string, ShapeCase, DType>> {};
INSTANTIATE_TEST_SUITE_P(Conformance, Values,
                         testing::Combine(testing::ValuesIn(levels_under_test()),
                                          testing::ValuesIn(kCases),
                                          testing::Values(DType::kF32, DType::kBF16)),
                         [](const auto& parameter) {
                           return std::get<0>(parameter.param) + "_" +
                                  std::get<1>(parameter.param).name + "_" +
                                  std::string(name_of(std::get<2>(parameter.param)));
                         });

TEST_P(Values, MatchTheOracle) {
  // Two inputs in turn, the first again (bitwise), T' < T and T' = 0, into poisoned outputs between
  // canaries: see verify() in moe/verify.h.
  const auto& [level, shape_case, dtype] = GetParam();
  const Problem problem{shape_case.shape, dtype};
  const Skew skew = Skew::parse(shape_case.skew);
  const OwnedWeights weights = make_weights(problem, 3, skew);
  MOE_CREATE_OR_SKIP(layer, options_of(level, problem), weights.view());
  const VerifyResult result = LayerCheck(problem, weights.view(), 3, skew).run(*layer);
  EXPECT_TRUE(result.passed) << result.failure;
  EXPECT_EQ(result.steps.size(), problem.shape.tokens > 1 ? 5U : 4U);
  EXPECT_EQ(layer->level().name, level);
}

class EveryLevel : public testing::TestWithParam<std::tuple<std::string, DType>> {
 protected:
  [[nodiscard]] const std::string& level() const { return std::get<0>(GetParam()); }
  [[nodiscard]] DType dtype() const { return std::get<1>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Conformance, EveryLevel,
                         testing::Combine(testing::ValuesIn(levels_under_test()),
                                          testing::Values(DType::kF32, DType::kBF16)),
                         [](const auto& parameter) {
                           return std::get<0>(parameter.param) + "_" +
                                  std::string(name_of(std::get<1>(parameter.param)));
                         });

TEST_P(EveryLevel, AnyThreadCountMatchesTheOracle) {
  if (kBackend != Backend::kCpu) GTEST_SKIP() << "threads are the CPU's";
  const Problem problem{{.tokens = 37, .hidden = 96, .intermediate = 80, .experts = 6, .top_k = 2},
                        dtype()};
  const OwnedWeights weights = make_weights(problem, 21);
  LayerCheck check(problem, weights.view(), 21, {});
  for (const int threads : {1, 2, 3, 7}) {
    LayerOptions options = options_of(level(), problem);
    options.threads = threads;
    MOE_CREATE_OR_SKIP(layer, options, weights.view());
    const VerifyResult result = check.run(*layer);
    EXPECT_TRUE(result.passed) << threads << " threads: " << result.failure;
    EXPECT_GE(layer->threads(), 1);
    EXPECT_LE(layer->threads(), threads) << "more threads than allowed";
  }
}

TEST_P(EveryLevel, AnyInstructionSetMatchesTheOracle) {
  if (kBackend != Backend::kCpu) GTEST_SKIP() << "instruction sets are the CPU's";
  const Problem problem{{.tokens = 37, .hidden = 97, .intermediate = 80, .experts = 6, .top_k = 2},
                        dtype()};
  const OwnedWeights weights = make_weights(problem, 22);
  LayerCheck check(problem, weights.view(), 22, {});
  int ran = 0;
  std::string reason;
  for (const Isa isa : available_isas()) {
    LayerOptions options = options_of(level(), problem);
    options.isa = name_of(isa);
    LayerOrReason created = create_layer(options, weights.view());
    if (!created.layer) {
      reason = created.reason;
      continue;
    }
    ++ran;
    const VerifyResult result = check.run(**created.layer);
    EXPECT_TRUE(result.passed) << name_of(isa) << ": " << result.failure;
    EXPECT_FALSE((*created.layer)->isa().empty());
  }
  if (ran == 0) GTEST_SKIP() << reason;
}

TEST_P(EveryLevel, RoutingMayChangeBetweenForwards) {
  // One layer, inputs that go to one expert after the other: a token along an expert's router row has
  // its largest logit there. What a plan recorded for one routing must not be replayed for the next.
  const Problem problem{{.tokens = 24, .hidden = 64, .intermediate = 48, .experts = 6, .top_k = 1},
                        dtype()};
  const OwnedWeights weights = make_weights(problem, 23);
  MOE_CREATE_OR_SKIP(layer, options_of(level(), problem), weights.view());
  Tensor x(dtype(), {24, 64});
  Tensor y(dtype(), {24, 64});
  with_element_type(dtype(), [&]<class Element>() {
    const Tensor noise = make_input(problem, 23, 0);
    for (const std::int64_t rows : {24, 1, 23, 8}) {
      for (std::int64_t expert = 0; expert < 6; ++expert) {
        const Element* direction = weights.router.as<Element>() + expert * 64;
        float norm = 0;
        for (std::int64_t h = 0; h < 64; ++h)
          norm += to_float(direction[h]) * to_float(direction[h]);
        for (std::int64_t i = 0; i < 24 * 64; ++i) {
          x.as<Element>()[i] = from_float<Element>(20 * to_float(direction[i % 64]) / norm +
                                                   to_float(noise.as<Element>()[i]));
        }
        const TensorView given = x.view().first_rows(rows);
        const Oracle oracle(problem, weights.view(), given);
        ASSERT_EQ(oracle.tokens_per_expert()[static_cast<std::size_t>(expert)], rows)
            << "the test's own premise";
        poison(y.view());
        layer.forward(given, y.view().first_rows(rows));
        const Comparison comparison = oracle.compare(y.view().first_rows(rows));
        EXPECT_TRUE(comparison.passed)
            << "expert " << expert << ", " << rows << " rows: " << comparison.describe();
      }
    }
  });
}

TEST_P(EveryLevel, ReplaysAreBitwiseTheEagerForward) {
  // A graph is launched again and again while counts, empty experts and the number of rows change
  // under it; the same level, asked not to launch graphs, is what it must equal.
  const Problem problem{{.tokens = 48, .hidden = 64, .intermediate = 80, .experts = 12, .top_k = 2},
                        dtype()};
  const Skew skew = Skew::parse("zipf:1");
  const OwnedWeights weights = make_weights(problem, 27, skew);
  LayerOptions options = options_of(level(), problem);
  MOE_CREATE_OR_SKIP(layer, options, weights.view());
  if (layer->launch() != Launch::kGraph) GTEST_SKIP() << level() << " launches no graph";
  options.launch = Launch::kEager;
  MOE_CREATE_OR_SKIP(eager, options, weights.view());
  ASSERT_EQ(eager->launch(), Launch::kEager);
  Tensor y(dtype(), {48, 64});
  Tensor expected(dtype(), {48, 64});
  std::int64_t different_inputs = 0;
  for (std::uint64_t variant = 0; variant < 100; ++variant) {
    // Uniform inputs through the skewed router and skewed ones take turns.
    const Tensor x = make_input(problem, 27, variant, variant % 2 == 0 ? skew : Skew{});
    const std::int64_t rows = variant % 3 == 0 ? 48 : 1 + static_cast<std::int64_t>(variant) % 47;
    poison(y.view());
    poison(expected.view());
    layer.forward(x.view().first_rows(rows), y.view().first_rows(rows));
    eager.forward(x.view().first_rows(rows), expected.view().first_rows(rows));
    ASSERT_EQ(std::memcmp(y.view().data, expected.view().data, y.view().bytes()), 0)
        << "replay " << variant << " of " << rows << " rows differs from the eager forward";
    if (variant < 4) {
      const Oracle oracle(problem, weights.view(), x.view().first_rows(rows));
      const Comparison comparison = oracle.compare(y.view().first_rows(rows));
      EXPECT_TRUE(comparison.passed) << comparison.describe();
      different_inputs += oracle.active_experts();
    }
  }
  EXPECT_GT(different_inputs, 0);
}

TEST_P(EveryLevel, ExactTiesGoToTheLowestIndex) {
  const Problem problem{{.tokens = 19, .hidden = 32, .intermediate = 48, .experts = 9, .top_k = 3},
                        dtype()};
  const OwnedWeights weights = make_weights(problem, 24);
  std::memset(weights.router.view().data, 0, weights.router.view().bytes());
  MOE_CREATE_OR_SKIP(layer, options_of(level(), problem), weights.view());
  const Tensor x = make_input(problem, 24, 0);
  const Oracle oracle(problem, weights.view(), x.view());
  ASSERT_EQ(oracle.tokens_per_expert(), (std::vector<std::int64_t>{19, 19, 19, 0, 0, 0, 0, 0, 0}));
  Tensor y(dtype(), {19, 32});
  poison(y.view());
  layer.forward(x.view(), y.view());
  const Comparison comparison = oracle.compare(y.view());
  EXPECT_TRUE(comparison.passed) << comparison.describe();
  EXPECT_EQ(comparison.ambiguous_rows, 0);
}

TEST_P(EveryLevel, ZeroTokensGiveZeroRows) {
  const Problem problem{{.tokens = 6, .hidden = 40, .intermediate = 24, .experts = 4, .top_k = 2},
                        dtype()};
  const OwnedWeights weights = make_weights(problem, 25);
  MOE_CREATE_OR_SKIP(layer, options_of(level(), problem), weights.view());
  const Tensor x = make_input(problem, 25, 0);
  std::memset(x.as<std::byte>() + 3 * 40 * size_of(dtype()), 0, 40 * size_of(dtype()));
  Tensor y(dtype(), {6, 40});
  poison(y.view());
  layer.forward(x.view(), y.view());
  const Comparison comparison = Oracle(problem, weights.view(), x.view()).compare(y.view());
  EXPECT_TRUE(comparison.passed) << comparison.describe();
}

TEST_P(EveryLevel, LargeActivationsNeitherOverflowNorTurnIntoNaN) {
  // gate of +-hundreds: exp(-gate) is infinite or zero in fp32.
  const Problem problem{{.tokens = 16, .hidden = 64, .intermediate = 64, .experts = 4, .top_k = 2},
                        dtype()};
  const OwnedWeights weights = make_weights(problem, 26);
  MOE_CREATE_OR_SKIP(layer, options_of(level(), problem), weights.view());
  Tensor x = make_input(problem, 26, 0);
  with_element_type(dtype(), [&]<class Element>() {
    for (std::int64_t i = 0; i < 16 * 64; ++i)
      x.as<Element>()[i] = from_float<Element>(100 * to_float(x.as<Element>()[i]));
  });
  Tensor y(dtype(), {16, 64});
  poison(y.view());
  layer.forward(x.view(), y.view());
  const Comparison comparison = Oracle(problem, weights.view(), x.view()).compare(y.view());
  EXPECT_TRUE(comparison.passed) << comparison.describe();
}

}  // namespace
}  // namespace moe
