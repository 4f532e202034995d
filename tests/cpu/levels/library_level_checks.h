// What the levels on library GEMMs (04, 05) must hold, whatever the routing.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "core/workload.h"
#include "moe/error.h"
#include "moe/layer.h"
#include "moe/verify.h"

namespace moe {

inline LayerOptions library_level(const std::string& level, const Problem& problem, int threads) {
  LayerOptions options;
  options.level = level;
  options.problem = problem;
  options.threads = threads;
  return options;
}

/// Why the level cannot run here, "" when it can. Creating a layer of one token is the cheapest way.
inline std::string why_unsupported(const std::string& level, DType dtype) {
  try {
    (void)Layer::predict(library_level(level, {{1, 1, 1, 1, 1}, dtype}, 1));
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kUnsupported) return error.what();
    throw;
  }
  return {};
}

inline Tensor run(Layer& layer, const Tensor& x, std::int64_t tokens) {
  const Problem& problem = layer.problem();
  Tensor y(problem.dtype, {tokens, problem.shape.hidden});
  poison(y.view());
  layer.forward(x.view().first_rows(tokens), y.view());
  return y;
}

inline void expect_right(const std::string& level, const Shape& shape, DType dtype, int threads,
                         const Skew& skew) {
  const Problem problem{shape, dtype};
  const OwnedWeights weights = make_weights(problem, 3, skew);
  const Tensor x = make_input(problem, 3, 0, skew);
  Layer layer = Layer::create(library_level(level, problem, threads), weights.view());
  EXPECT_EQ(layer.threads(), threads);
  const Tensor y = run(layer, x, shape.tokens);
  const Comparison comparison = Oracle(problem, weights.view(), x.view()).compare(y.view());
  EXPECT_TRUE(comparison.passed) << level << " " << to_string(shape) << " " << name_of(dtype) << " "
                                 << skew.describe() << " threads=" << threads << ": "
                                 << comparison.describe();
}

/// Runs one layer through inputs whose routing differs (uniform rows, rows that all go to one
/// expert, fewer rows) and compares each output bit by bit with that of a new layer.
inline void expect_no_memory_of_earlier_routings(const std::string& level, DType dtype,
                                                 int threads) {
  const Problem problem{{150, 72, 136, 6, 2}, dtype};
  const Skew one_expert = Skew::parse("one-expert");
  // The router of the skewed weights has a bias on feature 0, which only skewed inputs set to 1.
  const OwnedWeights weights = make_weights(problem, 8, one_expert);
  const Tensor uniform = make_input(problem, 8, 0);
  const Tensor skewed = make_input(problem, 8, 1, one_expert);
  Layer layer = Layer::create(library_level(level, problem, threads), weights.view());
  struct Step {
    const Tensor* x;
    std::int64_t tokens;
  };
  for (const Step& step :
       {Step{&uniform, 150}, Step{&skewed, 150}, Step{&uniform, 1}, Step{&skewed, 7},
        Step{&uniform, 150}, Step{&skewed, 2}, Step{&skewed, 149}, Step{&uniform, 3}}) {
    const Tensor replayed = run(layer, *step.x, step.tokens);
    Layer fresh = Layer::create(library_level(level, problem, threads), weights.view());
    const Tensor expected = run(fresh, *step.x, step.tokens);
    ASSERT_EQ(std::memcmp(replayed.view().data, expected.view().data, expected.view().bytes()), 0)
        << level << " " << name_of(dtype) << ": " << step.tokens << " tokens of the "
        << (step.x == &skewed ? "one-expert" : "uniform") << " input";
  }
}

/// The details of all steps with operation `op`.
inline std::vector<std::string> details_of(const std::vector<TraceEvent>& trace,
                                           const std::string& op) {
  std::vector<std::string> details;
  for (const TraceEvent& event : trace) {
    if (event.op == op) details.push_back(event.detail);
  }
  return details;
}

}  // namespace moe
