// Oracle: which tokens the reference computes, and the comparison with what a level wrote.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/check.h"
#include "core/dispatch.h"
#include "core/rng.h"
#include "core/weight_tensors.h"
#include "moe/verify.h"
#include "reference/reference.h"
#include "verify/tolerance.h"

namespace moe {
namespace {

constexpr std::int64_t kAffordableElements = std::int64_t{1} << 25;  // of y, kept as doubles
constexpr std::int64_t kSmallestSample = 64;

void check(const char* name, const TensorView& tensor, const TensorView& expected) {
  MOE_CHECK(tensor.dtype == expected.dtype && tensor.rank == expected.rank &&
                tensor.dims == expected.dims && (tensor.data != nullptr || tensor.elements() == 0),
            "oracle: {} is {}{}, but the problem needs {}", name, tensor.describe(),
            tensor.data == nullptr ? " without data" : "", expected.describe());
}

/// Rows of x to evaluate, ascending.
std::vector<std::int64_t> sample_tokens(const Shape& shape,
                                        const std::vector<reference::Route>& routes,
                                        const OracleOptions& options) {
  const auto tokens = static_cast<std::int64_t>(routes.size());
  const double work_per_token = 3.0 * static_cast<double>(shape.top_k) *
                                static_cast<double>(shape.hidden) *
                                static_cast<double>(shape.intermediate);
  const auto affordable =
      std::min(static_cast<std::int64_t>(options.affordable_work / work_per_token),
               kAffordableElements / shape.hidden);
  std::vector<std::int64_t> order(routes.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  const std::int64_t size = std::max(kSmallestSample, affordable);
  if (size >= tokens) return order;

  // The last and the first token, where edges go wrong, then seeded random ones.
  std::swap(order[1], order.back());
  for (std::size_t i = 2; i < order.size(); ++i) {
    const std::uint64_t left = order.size() - i;
    std::swap(order[i], order[i + random_bits(options.sample_seed, 0, i) % left]);
  }
  std::vector<char> touched(static_cast<std::size_t>(shape.experts), 0);
  std::vector<std::int64_t> sample;
  for (const std::int64_t token : order) {
    const auto& experts = routes[static_cast<std::size_t>(token)].choices[0].experts;
    const bool new_expert = std::any_of(experts.begin(), experts.end(), [&](std::int64_t expert) {
      return touched[static_cast<std::size_t>(expert)] == 0;
    });
    if (static_cast<std::int64_t>(sample.size()) >= size && !new_expert) continue;
    sample.push_back(token);
    for (const std::int64_t expert : experts) touched[static_cast<std::size_t>(expert)] = 1;
  }
  std::sort(sample.begin(), sample.end());
  return sample;
}

struct RowError {
  double absolute = 0;  // |y - r|
  double norm = 0;      // |r|
  double allowed = 0;
  /// 0 when both are zero: a zero row has tolerance zero and y = 0 meets it.
  [[nodiscard]] double used() const {
    if (absolute <= allowed && allowed == 0) return 0;
    return absolute / allowed;
  }
  [[nodiscard]] double relative() const {
    if (norm > 0) return absolute / norm;
    return absolute <= allowed ? 0 : std::numeric_limits<double>::infinity();
  }
};

template <class Element>
RowError row_error(const Element* y, const reference::Answer& answer, double deviations) {
  double error = 0;
  double norm = 0;
  for (std::size_t h = 0; h < answer.y.size(); ++h) {
    const double value = to_float(y[h]);
    if (!std::isfinite(value)) continue;  // counted apart, and fails by itself
    error += (value - answer.y[h]) * (value - answer.y[h]);
    norm += answer.y[h] * answer.y[h];
  }
  // Values below fp32's normal range may be flushed to zero, in y or on the way to it.
  const double underflow = answer.variance > 0
                               ? static_cast<double>(std::numeric_limits<float>::min()) *
                                     std::sqrt(static_cast<double>(answer.y.size()))
                               : 0;
  return {std::sqrt(error), std::sqrt(norm), deviations * (std::sqrt(answer.variance) + underflow)};
}

/// Against the choice of experts that y is nearest to.
template <class Element>
RowError row_error(const Element* y, const std::vector<reference::Answer>& choices,
                   double deviations) {
  RowError row = row_error(y, choices[0], deviations);
  for (std::size_t c = 1; c < choices.size(); ++c) {
    const RowError other = row_error(y, choices[c], deviations);
    if (other.used() < row.used()) row = other;
  }
  return row;
}

/// Against another implementation's row: twice what one of them is allowed.
template <class Element>
RowError row_error(const Element* y, const float* expected,
                   const std::vector<reference::Answer>& choices, double deviations) {
  RowError row = row_error(y, choices, deviations);
  const RowError other = row_error(expected, choices, deviations);
  RowError direct{0, 0, row.allowed + other.allowed};
  for (std::size_t h = 0; h < choices[0].y.size(); ++h) {
    const double value = to_float(y[h]);
    if (!std::isfinite(expected[h])) {
      return {std::numeric_limits<double>::infinity(), row.norm, direct.allowed};
    }
    if (!std::isfinite(value)) continue;  // counted apart, and fails by itself
    const double distance = value - static_cast<double>(expected[h]);
    direct.absolute += distance * distance;
    direct.norm += static_cast<double>(expected[h]) * static_cast<double>(expected[h]);
  }
  direct.absolute = std::sqrt(direct.absolute);
  direct.norm = std::sqrt(direct.norm);
  if (choices.size() == 1 || direct.used() <= 1) return direct;
  return row.used() > other.used() ? row : other;
}

template <class Element>
std::int64_t count_non_finite(const Element* values, std::int64_t count) {
  std::int64_t found = 0;
#pragma omp parallel for schedule(static) reduction(+ : found) if (count > (1 << 20))
  for (std::int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(to_float(values[i]))) ++found;
  }
  return found;
}

}  // namespace

struct Oracle::State {
  Problem problem;
  std::int64_t rows = 0;  // of x
  std::vector<std::int64_t> tokens;
  std::vector<std::vector<reference::Answer>> answers;  // of tokens[i]: one per valid routing
  std::vector<std::int64_t> tokens_per_expert;

  [[nodiscard]] Comparison compare(const TensorView& y, const float* expected) const;
};

Oracle::Oracle(const Problem& problem, const Weights& weights, const TensorView& x,
               const OracleOptions& options)
    : state_(std::make_unique<State>()) {
  const Shape& shape = problem.shape;
  validate(problem);
  const std::int64_t rows = x.rank == 2 ? x.dim(0) : -1;
  MOE_CHECK(rows <= shape.tokens, "oracle: x has {} rows, but the problem has tokens={}", rows,
            shape.tokens);
  check("x", x, TensorView(nullptr, problem.dtype, {rows, shape.hidden}));
  for (const WeightTensor& tensor : weight_tensors(problem)) {
    check((std::string("weights.") + tensor.name).c_str(), weights.*tensor.view, tensor.expected);
  }
  MOE_CHECK(problem.router.scoring != Scoring::kGiven || rows == 0 ||
                (options.routes.experts != nullptr && options.routes.weights != nullptr),
            "oracle: the problem's routes are given, but OracleOptions::routes is empty");

  const std::vector<reference::Route> routes =
      reference::route(problem, weights, x, options.routes);
  state_->problem = problem;
  state_->rows = rows;
  state_->tokens_per_expert.resize(static_cast<std::size_t>(shape.experts));
  for (const reference::Route& route : routes) {
    for (const std::int64_t expert : route.choices[0].experts) {
      ++state_->tokens_per_expert[static_cast<std::size_t>(expert)];
    }
  }
  state_->tokens = sample_tokens(shape, routes, options);
  state_->answers =
      reference::evaluate(problem, options.operands, weights, x, routes, state_->tokens);
  for (std::size_t i = 0; i < state_->answers.size(); ++i) {
    for (const reference::Answer& answer : state_->answers[i]) {
      // A NaN or an infinity among the values shows in their sum of squares, which variance
      // contains.
      MOE_CHECK(std::isfinite(answer.variance),
                "oracle: the answer of token {} is not finite: x or the weights hold NaN, infinity "
                "or values "
                "beyond fp32",
                state_->tokens[i]);
    }
  }
}

Oracle::Oracle(Oracle&&) noexcept = default;
Oracle& Oracle::operator=(Oracle&&) noexcept = default;
Oracle::~Oracle() = default;

/// What the two forms of compare() share; without `expected` the answers are what y should be.
Comparison Oracle::State::compare(const TensorView& y, const float* expected) const {
  const Shape& shape = problem.shape;
  const std::int64_t y_rows = y.rank == 2 ? y.dim(0) : -1;
  MOE_CHECK(y_rows <= rows, "oracle: y has {} rows, x had {}", y_rows, rows);
  const DType dtype = y.dtype == DType::kF32 ? DType::kF32 : problem.dtype;
  check("y", y, TensorView(nullptr, dtype, {y_rows, shape.hidden}));
  const double deviations = allowed_deviations(shape);

  Comparison result;
  double error_squares = 0;
  double norm_squares = 0;
  with_element_type(y.dtype, [&]<class Element>() {
    const auto* values = y.as<const Element>();
    result.non_finite = count_non_finite(values, y.elements());
    for (std::size_t i = 0; i < tokens.size() && tokens[i] < y_rows; ++i) {
      const std::int64_t token = tokens[i];
      const std::vector<reference::Answer>& choices = answers[i];
      const Element* y_row = values + token * shape.hidden;
      const RowError row = expected == nullptr ? row_error(y_row, choices, deviations)
                                               : row_error(y_row, expected + token * shape.hidden,
                                                           choices, deviations);
      ++result.rows_compared;
      if (choices.size() > 1) ++result.ambiguous_rows;
      error_squares += row.absolute * row.absolute;
      norm_squares += row.norm * row.norm;
      if (result.worst_row < 0 || !(row.used() <= result.tolerance_used)) {
        result.worst_row = token;
        result.tolerance_used = row.used();
        result.max_row_error = row.relative();
        result.tolerance = row.norm > 0 ? row.allowed / row.norm : 0;
      }
    }
  });
  if (error_squares > 0) result.global_error = std::sqrt(error_squares / norm_squares);
  result.passed = result.non_finite == 0 && result.tolerance_used <= 1;
  return result;
}

Comparison Oracle::compare(const TensorView& y) const {
  return state_->compare(y, nullptr);
}

Comparison Oracle::compare(const TensorView& y, const TensorView& expected) const {
  TensorView needed = y;
  needed.dtype = DType::kF32;
  check("expected", expected, needed);
  return state_->compare(y, expected.as<const float>());
}

const std::vector<std::int64_t>& Oracle::tokens() const {
  return state_->tokens;
}
const std::vector<std::int64_t>& Oracle::tokens_per_expert() const {
  return state_->tokens_per_expert;
}
std::int64_t Oracle::active_experts() const {
  return std::count_if(state_->tokens_per_expert.begin(), state_->tokens_per_expert.end(),
                       [](std::int64_t tokens) { return tokens > 0; });
}

std::string Comparison::describe() const {
  std::string text;
  if (non_finite > 0) text = fmt::format("{} values of y are NaN or infinite; ", non_finite);
  text += fmt::format("row error {:.2g} at token {}, {:.3g} % of tolerance; {} rows compared",
                      max_row_error, worst_row, 100 * tolerance_used, rows_compared);
  if (ambiguous_rows > 0) text += fmt::format(", {} with a tied top-k", ambiguous_rows);
  return text;
}

void poison(const TensorView& y) {
  with_element_type(y.dtype, [&]<class Element>() {
    std::fill_n(y.as<Element>(), y.elements(),
                from_float<Element>(std::numeric_limits<float>::quiet_NaN()));
  });
}

}  // namespace moe
