// The oracle rejects wrong outputs: each test breaks a right output in one way that real
// implementations have been wrong in, for both dtypes, with all rows compared and with a sample.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <future>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "core/workload.h"
#include "moe/verify.h"
#include "verify/textbook.h"

namespace moe {
namespace {

enum class Rows { kAll, kSample };

/// A right output and its oracle, computed once per problem: the tests only read them.
struct Scene {
  Problem problem;
  OwnedWeights weights;
  Tensor x;
  Tensor y;  // right
  Oracle oracle;

  static const Scene& of(DType dtype, Rows rows) {
    static std::map<std::pair<DType, Rows>, Scene> scenes;
    return scenes.try_emplace({dtype, rows}, dtype, rows).first->second;
  }

  Scene(DType dtype, Rows rows)
      : problem{{.tokens = 480, .hidden = 64, .intermediate = 96, .experts = 12, .top_k = 2},
                dtype},
        weights(make_weights(problem, 11)),
        x(make_input(problem, 11, 0)),
        y(dtype, {problem.shape.tokens, problem.shape.hidden}),
        oracle(problem, weights.view(), x.view(),
               {.affordable_work = rows == Rows::kSample ? 0 : 8e9}) {
    textbook::forward(problem, weights.view(), x.view(), y.view());
  }
};

class Mutations : public testing::TestWithParam<std::tuple<DType, Rows>> {
 protected:
  [[nodiscard]] const Scene& scene() const {
    return Scene::of(std::get<0>(GetParam()), std::get<1>(GetParam()));
  }
  [[nodiscard]] Tensor empty_y() const {
    Tensor y(scene().problem.dtype, {scene().problem.shape.tokens, scene().problem.shape.hidden});
    poison(y.view());
    return y;
  }
  [[nodiscard]] Tensor right_y() const {
    Tensor y = empty_y();
    std::memcpy(y.view().data, scene().y.view().data, y.view().bytes());
    return y;
  }
  [[nodiscard]] Tensor forward(const Weights& weights, const TensorView& x,
                               const textbook::Mutation& mutation = {}) const {
    Tensor y = empty_y();
    textbook::forward(scene().problem, weights, x, y.view(), mutation);
    return y;
  }
  [[nodiscard]] std::byte* row(const Tensor& y, std::int64_t token) const {
    return y.as<std::byte>() + static_cast<std::size_t>(token) * row_bytes();
  }
  [[nodiscard]] std::size_t row_bytes() const {
    return static_cast<std::size_t>(scene().problem.shape.hidden) * size_of(scene().problem.dtype);
  }
  /// Rejected by a wide margin, not at the edge of the tolerance.
  void expect_rejected(const Tensor& y, double least_tolerance_used = 10) const {
    const Comparison comparison = scene().oracle.compare(y.view());
    EXPECT_FALSE(comparison.passed) << comparison.describe();
    EXPECT_GE(comparison.tolerance_used, least_tolerance_used) << comparison.describe();
  }
};

INSTANTIATE_TEST_SUITE_P(Oracle, Mutations,
                         testing::Combine(testing::Values(DType::kF32, DType::kBF16),
                                          testing::Values(Rows::kAll, Rows::kSample)),
                         [](const auto& parameter) {
                           return std::string(name_of(std::get<0>(parameter.param))) +
                                  (std::get<1>(parameter.param) == Rows::kAll ? "_all_rows"
                                                                              : "_sampled");
                         });

TEST_P(Mutations, UnmutatedPasses) {
  const Comparison comparison = scene().oracle.compare(scene().y.view());
  EXPECT_TRUE(comparison.passed) << comparison.describe();
  EXPECT_LT(comparison.tolerance_used, 0.8) << comparison.describe();
  EXPECT_EQ(comparison.non_finite, 0);
  const std::int64_t tokens = scene().problem.shape.tokens;
  if (std::get<1>(GetParam()) == Rows::kAll) {
    EXPECT_EQ(comparison.rows_compared, tokens);
  } else {
    EXPECT_GE(comparison.rows_compared, 64);
    EXPECT_LT(comparison.rows_compared, tokens) << "this scene is meant to be sampled";
  }
}

TEST_P(Mutations, Zeros) {
  Tensor y = empty_y();
  std::memset(y.view().data, 0, y.view().bytes());
  expect_rejected(y);
}

TEST_P(Mutations, TwoExpertsSwapped) {
  // Experts 0 and 1 exchange their matrices, the router stays.
  const Scene& s = scene();
  OwnedWeights swapped = make_weights(s.problem, 11);
  const std::size_t bytes =
      swapped.gate.view().bytes() / static_cast<std::size_t>(s.problem.shape.experts);
  for (const Tensor* tensor : {&swapped.gate, &swapped.up, &swapped.down}) {
    auto* data = tensor->as<std::byte>();
    std::swap_ranges(data, data + bytes, data + bytes);
  }
  expect_rejected(forward(swapped.view(), s.x.view()));
}

TEST_P(Mutations, OneTokenDropped) {
  // The token is one that is compared; docs/verification.md says what a sample cannot see.
  for (const std::int64_t token : {scene().oracle.tokens().front(), scene().oracle.tokens()[20],
                                   scene().oracle.tokens().back()}) {
    Tensor y = right_y();
    std::memset(row(y, token), 0, row_bytes());
    expect_rejected(y);
    EXPECT_EQ(scene().oracle.compare(y.view()).worst_row, token);
  }
}

TEST_P(Mutations, OneTokenNotWritten) {
  // Any token, compared or not: the poison is left in it.
  Tensor y = right_y();
  const std::int64_t token = scene().problem.shape.tokens / 2 + 1;
  poison(TensorView(row(y, token), y.view().dtype, {1, scene().problem.shape.hidden}));
  const Comparison comparison = scene().oracle.compare(y.view());
  EXPECT_FALSE(comparison.passed);
  EXPECT_EQ(comparison.non_finite, scene().problem.shape.hidden);
}

TEST_P(Mutations, WeightsNotRenormalised) {
  expect_rejected(forward(scene().weights.view(), scene().x.view(), {.renormalise = false}));
}

TEST_P(Mutations, GateAndUpSwapped) {
  Weights weights = scene().weights.view();
  std::swap(weights.gate, weights.up);
  expect_rejected(forward(weights, scene().x.view()));
}

TEST_P(Mutations, RowsShiftedByOne) {
  const std::int64_t tokens = scene().problem.shape.tokens;
  Tensor y = right_y();
  std::memcpy(row(y, 1), scene().y.view().data, static_cast<std::size_t>(tokens - 1) * row_bytes());
  std::memcpy(row(y, 0), row(scene().y, tokens - 1), row_bytes());
  expect_rejected(y);
}

TEST_P(Mutations, OneNaN) {
  // In a row that no sample contains or in one that is compared: all of y is searched.
  const std::int64_t elements = scene().y.view().elements();
  for (const std::int64_t element : {std::int64_t{0}, elements / 3, elements - 1}) {
    for (const float value :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      Tensor y = right_y();
      with_element_type(y.view().dtype, [&]<class Element>() {
        y.as<Element>()[element] = from_float<Element>(value);
      });
      const Comparison comparison = scene().oracle.compare(y.view());
      EXPECT_FALSE(comparison.passed);
      EXPECT_EQ(comparison.non_finite, 1);
      EXPECT_LT(comparison.tolerance_used, 0.8) << "counted apart from the errors";
    }
  }
}

TEST_P(Mutations, CachedOutputOfThePreviousInput) {
  // A forward that answers with what it computed the first time, whatever it is given.
  const Tensor previous = make_input(scene().problem, 11, 1);
  Tensor cached;
  const auto cached_forward = [&](const TensorView& x) {
    if (cached.view().data == nullptr) cached = forward(scene().weights.view(), x);
    return cached;
  };
  const Tensor first = cached_forward(previous.view());
  const Oracle oracle_of_previous(scene().problem, scene().weights.view(), previous.view());
  EXPECT_TRUE(oracle_of_previous.compare(first.view()).passed) << "right the first time";
  expect_rejected(cached_forward(scene().x.view()));
}

TEST_P(Mutations, ReturnsBeforeItsWorkIsDone) {
  // The last rows are written by a thread that is still waiting when forward has returned.
  const std::int64_t tokens = scene().problem.shape.tokens;
  Tensor y = empty_y();
  std::memcpy(y.view().data, scene().y.view().data,
              static_cast<std::size_t>(tokens - 3) * row_bytes());
  std::promise<void> compared;
  std::thread late([&, wait = compared.get_future()]() mutable {
    wait.wait();
    std::memcpy(row(y, tokens - 3), row(scene().y, tokens - 3), 3 * row_bytes());
  });
  const Comparison early = scene().oracle.compare(y.view());
  compared.set_value();
  late.join();
  EXPECT_FALSE(early.passed);
  EXPECT_EQ(early.non_finite, 3 * scene().problem.shape.hidden);
  EXPECT_TRUE(scene().oracle.compare(y.view()).passed) << "the work itself was right";
}

TEST_P(Mutations, OneElementOffByAFewTolerances) {
  const std::int64_t hidden = scene().problem.shape.hidden;
  const std::int64_t token = scene().oracle.tokens()[33];
  with_element_type(scene().problem.dtype, [&]<class Element>() {
    Tensor y = right_y();
    Element* values = y.as<Element>() + token * hidden;
    double norm = 0;
    for (std::int64_t h = 0; h < hidden; ++h) norm += std::pow(to_float(values[h]), 2);
    const double change = 4 * row_tolerance(scene().problem) * std::sqrt(norm);
    values[hidden / 2] =
        from_float<Element>(to_float(values[hidden / 2]) + static_cast<float>(change));
    const Comparison comparison = scene().oracle.compare(y.view());
    EXPECT_FALSE(comparison.passed) << comparison.describe();
    EXPECT_EQ(comparison.worst_row, token);
    EXPECT_NEAR(comparison.tolerance_used, 4, 1);
  });
}

TEST_P(Mutations, TopKTakesTheNextExpert) {
  expect_rejected(
      forward(scene().weights.view(), scene().x.view(), {.last_rank_off_by_one = true}));
  expect_rejected(forward(scene().weights.view(), scene().x.view(), {.first_rank = 1}));
}

TEST_P(Mutations, LastTermOfTheReductionForgotten) {
  // The remainder of a vector loop: the last column of x does not reach gate and up.
  const std::int64_t hidden = scene().problem.shape.hidden;
  Tensor x = make_input(scene().problem, 11, 0);
  with_element_type(scene().problem.dtype, [&]<class Element>() {
    for (std::int64_t token = 0; token < scene().problem.shape.tokens; ++token) {
      x.as<Element>()[token * hidden + hidden - 1] = from_float<Element>(0);
    }
  });
  expect_rejected(forward(scene().weights.view(), x.view()), 2);
}

}  // namespace
}  // namespace moe
