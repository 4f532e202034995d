// Experts of the reference: SwiGLU and the weighted combine in fp64, expert by expert.
#include <algorithm>
#include <array>
#include <cmath>

#include "reference/dot.h"
#include "reference/reference.h"
#include "reference/rounding.h"

namespace moe::reference {
namespace {

/// One (token, expert) pair that some choice of the token needs.
struct RoutedRow {
  std::int64_t token = 0;  // row of x
  std::size_t answer = 0;  // index into answers
};

bool contains(const Choice& choice, std::int64_t expert) {
  return std::find(choice.experts.begin(), choice.experts.end(), expert) != choice.experts.end();
}

/// act[i] = silu(gate_i)·up_i for a block of rows, with its error variance in the coefficients of
/// the returned block, ready for the down projection.
Block activate(const Problem& problem, Operands operands, const Weights& weights,
               std::int64_t expert, const Block& x) {
  const Shape& shape = problem.shape;
  const double operand = operand_variance(operands);  // of each product
  SumVariance rounding = sum_variance(shape.hidden);
  SumVariance down_rounding = sum_variance(shape.intermediate);
  rounding.of_squares += operand;
  down_rounding.of_squares += operand;
  const double storage = storage_variance(problem.dtype);
  Block act(x.rows, shape.intermediate);
#pragma omp parallel for schedule(static) if (shape.intermediate * shape.hidden > kParallelWork)
  for (std::int64_t i = 0; i < shape.intermediate; ++i) {
    std::array<double, kBlockRows> gate{};
    std::array<double, kBlockRows> up{};
    std::array<double, kBlockRows> gate_squares{};
    std::array<double, kBlockRows> up_squares{};
    const std::int64_t row = expert * shape.intermediate + i;
    dot_block(weights.gate, row, x, gate.data(), gate_squares.data());
    dot_block(weights.up, row, x, up.data(), up_squares.data());
    for (int r = 0; r < x.rows; ++r) {
      const auto at = static_cast<std::size_t>(r);
      const double g = gate[at];
      const double u = up[at];
      const double sigmoid = 1 / (1 + std::exp(-g));
      const double silu = g * sigmoid;
      const double slope = sigmoid * (1 + g * (1 - sigmoid));
      const double value = silu * u;
      // Errors of the two dot products, and of storing gate and up.
      const double gate_variance =
          rounding.of_squares * gate_squares[at] + (rounding.of_value + storage) * g * g;
      const double up_variance =
          rounding.of_squares * up_squares[at] + (rounding.of_value + storage) * u * u;
      const double variance = slope * slope * (u * u + up_variance) * gate_variance +
                              silu * silu * up_variance +
                              (kElementwiseVariance + storage) * value * value;
      const auto index = static_cast<std::size_t>(i * act.width() + r);
      act.values[index] = value;
      act.coefficients[index] = variance + down_rounding.of_squares * value * value;
    }
  }
  return act;
}

}  // namespace

std::vector<std::vector<Answer>> evaluate(const Problem& problem, Operands operands,
                                          const Weights& weights, const TensorView& x,
                                          const std::vector<Route>& routes,
                                          const std::vector<std::int64_t>& tokens) {
  const Shape& shape = problem.shape;
  const double storage = storage_variance(problem.dtype);
  const double down_of_value = sum_variance(shape.intermediate).of_value;
  const SumVariance combine = sum_variance(shape.top_k);

  std::vector<std::vector<Answer>> answers(tokens.size());
  std::vector<std::vector<RoutedRow>> rows_of_expert(static_cast<std::size_t>(shape.experts));
  for (std::size_t answer = 0; answer < tokens.size(); ++answer) {
    const Route& route = routes[static_cast<std::size_t>(tokens[answer])];
    answers[answer].resize(route.choices.size());
    for (Answer& choice : answers[answer]) choice.y.resize(static_cast<std::size_t>(shape.hidden));
    for (const Choice& choice : route.choices) {
      for (const std::int64_t expert : choice.experts) {
        auto& rows = rows_of_expert[static_cast<std::size_t>(expert)];
        if (rows.empty() || rows.back().answer != answer) rows.push_back({tokens[answer], answer});
      }
    }
  }

  for (std::int64_t expert = 0; expert < shape.experts; ++expert) {
    const auto& rows = rows_of_expert[static_cast<std::size_t>(expert)];
    for (std::size_t first = 0; first < rows.size(); first += kBlockRows) {
      const int count = static_cast<int>(std::min<std::size_t>(kBlockRows, rows.size() - first));
      std::array<std::int64_t, kBlockRows> token_of{};
      for (int r = 0; r < count; ++r) {
        token_of[static_cast<std::size_t>(r)] = rows[first + static_cast<std::size_t>(r)].token;
      }
      const Block act =
          activate(problem, operands, weights, expert, load_rows(x, token_of.data(), count));
      Block out(count, shape.hidden);  // the expert's output, variances in the coefficients
#pragma omp parallel for schedule(static) if (shape.intermediate * shape.hidden > kParallelWork)
      for (std::int64_t h = 0; h < shape.hidden; ++h) {
        const auto at = static_cast<std::size_t>(h * out.width());
        dot_block(weights.down, expert * shape.hidden + h, act, &out.values[at],
                  &out.coefficients[at]);
      }
      for (int r = 0; r < count; ++r) {
        const RoutedRow& row = rows[first + static_cast<std::size_t>(r)];
        const Route& route = routes[static_cast<std::size_t>(row.token)];
        for (std::size_t c = 0; c < route.choices.size(); ++c) {
          const Choice& choice = route.choices[c];
          if (!contains(choice, expert)) continue;
          const auto slot = static_cast<std::size_t>(
              std::find(choice.experts.begin(), choice.experts.end(), expert) -
              choice.experts.begin());
          const double weight = choice.weights[slot];
          const double weight_variance = choice.weight_variances[slot];
          Answer& answer = answers[row.answer][c];
          for (std::int64_t h = 0; h < shape.hidden; ++h) {
            const auto at = static_cast<std::size_t>(h * out.width() + r);
            const double value = out.values[at];
            const double variance =
                out.coefficients[at] + (down_of_value + storage) * value * value;
            answer.y[static_cast<std::size_t>(h)] += weight * value;
            answer.variance += weight * weight * variance +
                               weight_variance * (value * value + variance) +
                               combine.of_squares * weight * weight * value * value;
          }
        }
      }
    }
  }
  for (auto& row : answers) {
    for (Answer& answer : row) {
      double norm = 0;
      for (const double value : answer.y) norm += value * value;
      answer.variance += (combine.of_value + storage) * norm;
    }
  }
  return answers;
}

}  // namespace moe::reference
