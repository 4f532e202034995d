// The reference's routers, activations, biases and shared experts against textbook values: formulas
// written down here again, and numbers worked out by hand.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "core/workload.h"
#include "reference/reference.h"

namespace moe::reference {
namespace {

using Experts = std::vector<std::int64_t>;

/// Route of one token with exact logits.
Route route_of(const std::vector<double>& logits, std::int64_t top_k, const char* router,
               const std::vector<float>& selection_bias = {}, double variance = 0) {
  Problem problem{.shape = {.tokens = 1,
                            .hidden = 1,
                            .intermediate = 1,
                            .experts = static_cast<std::int64_t>(logits.size()),
                            .top_k = top_k}};
  problem.router = parse_router(router);
  validate(problem);
  Weights weights;
  weights.selection_bias = {
      const_cast<float*>(selection_bias.data()), DType::kF32, {problem.shape.experts}};
  std::vector<Logit> values;
  for (const double logit : logits) values.push_back({logit, variance});
  return route_logits(problem, weights, values);
}

double sigmoid(double v) {
  return 1 / (1 + std::exp(-v));
}

TEST(Routers, SoftmaxBeforeAndAfterTopK) {
  const std::vector<double> logits = {std::log(1), std::log(6), std::log(2), std::log(3)};
  const Choice after = route_of(logits, 2, "softmax").choices[0];
  EXPECT_EQ(after.experts, (Experts{1, 3}));
  EXPECT_NEAR(after.weights[0], 6.0 / 9, 1e-14);
  const Choice before = route_of(logits, 2, "softmax,raw,scale=0.5").choices[0];
  EXPECT_NEAR(before.weights[0], 0.5 * 6 / 12, 1e-14);
  EXPECT_NEAR(before.weights[1], 0.5 * 3 / 12, 1e-14);
}

TEST(Routers, GroupLimitedSoftmaxKeepsGroupsByTheirBest) {
  // Groups {8,1} {5,5} {6,1} (of 26): the best two groups hold 8 and 6; 5 and 5 are out.
  const std::vector<double> logits = {std::log(8), 0, std::log(5), std::log(5), std::log(6), 0};
  const Choice choice = route_of(logits, 2, "softmax,raw,groups=3/2,scale=16").choices[0];
  EXPECT_EQ(choice.experts, (Experts{0, 4}));
  EXPECT_NEAR(choice.weights[0], 16 * 8.0 / 26, 1e-13);
  EXPECT_NEAR(choice.weights[1], 16 * 6.0 / 26, 1e-13);
}

TEST(Routers, SigmoidWithABiasForSelectionGroupsAndAScale) {
  // Biased scores 0.9 0.1 | 0.6 0.5 | 0.7 0.2: sums 1.0, 1.1, 0.9. Groups 1 and 0 are kept.
  const auto logit = [](double s) { return std::log(s / (1 - s)); };
  const std::vector<double> logits = {logit(0.8), logit(0.2), logit(0.5),
                                      logit(0.5), logit(0.7), logit(0.2)};
  const std::vector<float> bias = {0.1F, -0.1F, 0.1F, 0, 0, 0};
  const Route route = route_of(logits, 2, "sigmoid,selection-bias,groups=3/2,scale=2.5", bias);
  ASSERT_EQ(route.choices.size(), 1U);
  EXPECT_EQ(route.choices[0].experts, (Experts{0, 2}));
  EXPECT_NEAR(route.choices[0].weights[0], 2.5 * 0.8 / 1.3, 1e-12) << "weighed without the bias";
  EXPECT_NEAR(route.choices[0].weights[1], 2.5 * 0.5 / 1.3, 1e-12);
}

TEST(Routers, SqrtSoftplusAndTheInputSigmoid) {
  const Choice roots = route_of({3, -2, 40}, 2, "sqrtsoftplus,raw").choices[0];
  EXPECT_EQ(roots.experts, (Experts{2, 0}));
  EXPECT_NEAR(roots.weights[0], std::sqrt(40.0), 1e-12);
  EXPECT_NEAR(roots.weights[1], std::sqrt(std::log(1 + std::exp(3.0))), 1e-14);
  const Choice one = route_of({0.5, -1, 0.25}, 1, "sigmoid,raw,on-input").choices[0];
  EXPECT_EQ(one.experts, (Experts{0}));
  EXPECT_NEAR(one.weights[0], sigmoid(0.5), 1e-15);
}

TEST(Routers, SparseMixer) {
  // Of 10: 9.81 is 1.9 % below and takes part, 9.79 is 2.1 % below and does not. Of the rest of
  // 9.81: 9.79.
  const Route route = route_of({9.79, 10, 1, 9.81}, 2, "sparsemixer");
  ASSERT_EQ(route.choices.size(), 1U);
  EXPECT_EQ(route.choices[0].experts, (Experts{1, 3}));
  EXPECT_NEAR(route.choices[0].weights[0], sigmoid(0.19), 1e-12);
  EXPECT_NEAR(route.choices[0].weights[1], sigmoid(0.02), 1e-12);
  // The threshold is relative to the larger of |logit| and the best: -1 is 2 below 1, more than 0.02.
  EXPECT_NEAR(route_of({1, -1}, 1, "sparsemixer").choices[0].weights[0], 1, 1e-15);
}

TEST(Routers, ATieOfGroupsOrAtTheThresholdIsEveryChoice) {
  const double noise = 1e-16;
  EXPECT_EQ(route_of({3, 0, 3, 0, 1, 1}, 1, "softmax,groups=3/1", {}, noise).choices.size(), 2U);
  // 9.8 lies on the 2 % threshold of 10: in or out.
  const Route route = route_of({10, 9.8}, 1, "sparsemixer", {}, noise);
  ASSERT_EQ(route.choices.size(), 2U);
  EXPECT_NE(route.choices[0].weights[0], route.choices[1].weights[0]);
  // Saturated sigmoids are equal in fp32, whatever their logits.
  EXPECT_EQ(route_of({40, 50, 0}, 1, "sigmoid", {}, noise).choices.size(), 2U);
}

TEST(Activations, ByTheirFormulas) {
  const Activation gpt_oss{.alpha = 1.702F, .limit = 7, .up_offset = 1};
  EXPECT_NEAR(activation_value(gpt_oss, 2, -3).value, 2 * sigmoid(1.702F * 2.0) * (-3 + 1), 1e-13);
  EXPECT_NEAR(activation_value(gpt_oss, 9, -8).value, 7 * sigmoid(1.702F * 7.0) * (-7 + 1), 1e-13);
  EXPECT_NEAR(activation_value(gpt_oss, -9, 8).value, -9 * sigmoid(1.702F * -9.0) * 8, 1e-13)
      << "gates are not clamped from below";
  const Activation geglu{.kind = Activation::Kind::kGeGLU};
  // gelu(1) = 0.841192 by the tanh formula, 0.841345 by erf.
  EXPECT_NEAR(activation_value(geglu, 1, 2).value, 2 * 0.8411919906, 1e-9);
  const Activation relu2{.kind = Activation::Kind::kReLU2};
  EXPECT_EQ(activation_value(relu2, 0, 3).value, 9);
  EXPECT_EQ(activation_value(relu2, 0, -3).value, 0);
}

TEST(Activations, DerivativesAreTheSlopesOfTheValue) {
  for (const char* text : {"swiglu", "swiglu,alpha=1.702,limit=7,up=1", "geglu", "relu2"}) {
    const Activation activation = parse_activation(text);
    for (const double gate : {-2.0, -0.3, 0.7, 3.0}) {
      for (const double up : {-1.5, 0.4, 2.0}) {
        const double step = 1e-6;
        const auto value = [&](double g, double u) {
          return activation_value(activation, g, u).value;
        };
        const ActivationValue f = activation_value(activation, gate, up);
        EXPECT_NEAR(f.by_gate, (value(gate + step, up) - value(gate - step, up)) / (2 * step),
                    1e-7);
        EXPECT_NEAR(f.by_up, (value(gate, up + step) - value(gate, up - step)) / (2 * step), 1e-7);
      }
    }
  }
}

/// y of one token by loops over doubles: experts and weights given, everything of a block.
TEST(Reference, BiasesSharedExpertAndInputWeightsByTheirDefinition) {
  for (const char* options :
       {"--router sigmoid,raw,on-input --shared 7 --expert-bias",
        "--router softmax,bias --activation swiglu,alpha=1.702,limit=0.8,up=1 --expert-bias",
        "--router sigmoid,selection-bias,scale=2.5 --activation relu2 --shared 12 --expert-bias",
        "--activation geglu --shared 5,switch"}) {
    SCOPED_TRACE(options);
    Problem problem{
        .shape = {.tokens = 5, .hidden = 9, .intermediate = 6, .experts = 4, .top_k = 2}};
    set_block_options(problem, options);
    const OwnedWeights w = make_weights(problem, 9);
    const Tensor x = make_input(problem, 9, 0);
    const std::vector<Route> routes = route(problem, w.view(), x.view());
    const auto answers =
        evaluate(problem, Operands::kAsStored, w.view(), x.view(), routes, {0, 1, 2, 3, 4});
    const auto at = [](const Tensor& tensor, std::int64_t index) {
      return tensor.view().data == nullptr ? 0.0 : static_cast<double>(tensor.as<float>()[index]);
    };
    const Shape& s = problem.shape;
    for (std::int64_t token = 0; token < s.tokens; ++token) {
      const auto project = [&](const Tensor& matrix, std::int64_t row) {
        double sum = 0;
        for (std::int64_t h = 0; h < s.hidden; ++h) {
          sum += at(x, token * s.hidden + h) * at(matrix, row * s.hidden + h);
        }
        return sum;
      };
      std::vector<double> y(static_cast<std::size_t>(s.hidden));
      const Choice& choice = routes[static_cast<std::size_t>(token)].choices[0];
      for (std::size_t slot = 0; slot < choice.experts.size(); ++slot) {
        const std::int64_t e = choice.experts[slot];
        const double in = problem.router.weight_on_input ? choice.weights[slot] : 1;
        const double out = problem.router.weight_on_input ? 1 : choice.weights[slot];
        std::vector<double> act;
        for (std::int64_t i = 0; i < s.intermediate; ++i) {
          const std::int64_t row = e * s.intermediate + i;
          act.push_back(activation_value(problem.activation,
                                         in * project(w.gate, row) + at(w.gate_bias, row),
                                         in * project(w.up, row) + at(w.up_bias, row))
                            .value);
        }
        for (std::int64_t h = 0; h < s.hidden; ++h) {
          double sum = at(w.down_bias, e * s.hidden + h);
          for (std::int64_t i = 0; i < s.intermediate; ++i) {
            sum += act[static_cast<std::size_t>(i)] *
                   at(w.down, (e * s.hidden + h) * s.intermediate + i);
          }
          y[static_cast<std::size_t>(h)] += out * sum;
        }
      }
      const double switched = problem.shared_switch ? sigmoid(project(w.shared_switch, 0)) : 1;
      for (std::int64_t i = 0; i < problem.shared_intermediate; ++i) {
        const double act =
            activation_value(problem.activation, project(w.shared_gate, i), project(w.shared_up, i))
                .value;
        for (std::int64_t h = 0; h < s.hidden; ++h) {
          y[static_cast<std::size_t>(h)] +=
              switched * act * at(w.shared_down, h * problem.shared_intermediate + i);
        }
      }
      const Answer& answer = answers[static_cast<std::size_t>(token)][0];
      for (std::size_t h = 0; h < y.size(); ++h) EXPECT_NEAR(answer.y[h], y[h], 1e-12);
      EXPECT_GT(answer.variance, 0);
    }
  }
}

TEST(Reference, GivenRoutesLeaveOutUnusedSlotsAndAddUpEqualOnes) {
  Problem problem{.shape = {.tokens = 2, .hidden = 3, .intermediate = 2, .experts = 3, .top_k = 3}};
  problem.router = parse_router("given");
  const OwnedWeights w = make_weights(problem, 10);
  const Tensor x = make_input(problem, 10, 0);
  const std::vector<std::int32_t> experts = {2, -1, 2, -1, -1, -1};
  const std::vector<float> weights = {0.25F, NAN, 0.5F, NAN, NAN, NAN};
  const std::vector<Route> routes =
      route(problem, w.view(), x.view(), {experts.data(), weights.data()});
  EXPECT_EQ(routes[0].choices[0].experts, (Experts{2}));
  EXPECT_EQ(routes[0].choices[0].weights, (std::vector<double>{0.75}));
  EXPECT_TRUE(routes[1].choices[0].experts.empty());
  const auto answers = evaluate(problem, Operands::kAsStored, w.view(), x.view(), routes, {0, 1});
  EXPECT_NE(answers[0][0].y[0], 0);
  EXPECT_EQ(answers[1][0].y, (std::vector<double>{0, 0, 0}));
}

}  // namespace
}  // namespace moe::reference
