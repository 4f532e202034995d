// Experts of the reference: activation and the weighted combine in fp64, expert by expert.
#include <algorithm>
#include <array>
#include <cmath>

#include "reference/dot.h"
#include "reference/reference.h"
#include "reference/rounding.h"

namespace moe::reference {
namespace {

/// One (token, expert) pair that some choice of the token needs; with the weight on the input, that of
/// one choice.
struct RoutedRow {
  std::int64_t token = 0;      // row of x
  std::size_t answer = 0;      // index into answers
  std::ptrdiff_t only = -1;    // choice that the row is of; -1: all that have the expert
  double weight = 1;           // multiplies x
  double weight_variance = 0;  // relative: of the weight over the weight
};

/// Rows that go through one set of three matrices.
struct ExpertRows {
  TensorView gate, up, down;  // of which matrix `index` is meant
  std::int64_t index = 0;
  std::int64_t width = 0;
  const float* gate_bias = nullptr;
  const float* up_bias = nullptr;
  const float* down_bias = nullptr;
};

std::ptrdiff_t slot_of(const Choice& choice, std::int64_t expert) {
  const auto at = std::find(choice.experts.begin(), choice.experts.end(), expert);
  return at == choice.experts.end() ? -1 : at - choice.experts.begin();
}

double bias_at(const float* bias, std::int64_t index) {
  return bias == nullptr ? 0 : static_cast<double>(bias[index]);
}

/// act[i] = f(gate_i, up_i) for a block of rows, with its error variance in the coefficients of
/// the returned block, ready for the down projection.
Block activate(const Problem& problem, Operands operands, const ExpertRows& expert,
               const RoutedRow* rows, const Block& x) {
  const Shape& shape = problem.shape;
  const bool gated = problem.activation.gated();
  const double operand = operand_variance(operands);  // of each product
  SumVariance rounding = sum_variance(shape.hidden);
  SumVariance down_rounding = sum_variance(expert.width);
  const double storage = storage_variance(problem.dtype);
  rounding.of_squares += operand;
  down_rounding.of_squares += operand;
  Block act(x.rows, expert.width);
#pragma omp parallel for schedule(static) if (expert.width * shape.hidden > kParallelWork)
  for (std::int64_t i = 0; i < expert.width; ++i) {
    std::array<double, kBlockRows> gate{};
    std::array<double, kBlockRows> up{};
    std::array<double, kBlockRows> gate_squares{};
    std::array<double, kBlockRows> up_squares{};
    const std::int64_t row = expert.index * expert.width + i;
    if (gated) dot_block(expert.gate, row, x, gate.data(), gate_squares.data());
    dot_block(expert.up, row, x, up.data(), up_squares.data());
    for (int r = 0; r < x.rows; ++r) {
      const auto at = static_cast<std::size_t>(r);
      const double g = gate[at] + bias_at(expert.gate_bias, i);
      const double u = up[at] + bias_at(expert.up_bias, i);
      const ActivationValue f = activation_value(problem.activation, g, u);
      // Errors of the two dot products, and of storing gate and up. A weight on the input may be
      // multiplied in before x is stored again.
      const double input = rows[r].only >= 0 ? storage : 0;
      const auto variance_of = [&](double dot, double squares, double value) {
        return (rounding.of_squares + input) * squares + rounding.of_value * dot * dot +
               storage * value * value;
      };
      const double gate_variance = gated ? variance_of(gate[at], gate_squares[at], g) : 0;
      const double up_variance = variance_of(up[at], up_squares[at], u);
      // What an error of up and one of gate do together is of second order, and what the slope of a
      // gated unit by its gate is proportional to is up itself.
      const double mixed = f.mixed * f.mixed * up_variance * gate_variance;
      const double both = f.by_gate * gate[at] + f.by_up * up[at];
      const double variance =
          f.by_gate * f.by_gate * gate_variance + mixed + f.by_up * f.by_up * up_variance +
          f.by_up_twice * up_variance * up_variance + both * both * rows[r].weight_variance +
          (kElementwiseVariance + storage) * f.value * f.value;
      const auto index = static_cast<std::size_t>(i * act.width() + r);
      act.values[index] = f.value;
      act.coefficients[index] = variance + down_rounding.of_squares * f.value * f.value;
    }
  }
  return act;
}

/// Outputs of the expert for `count` rows, variances in the coefficients.
Block expert_outputs(const Problem& problem, Operands operands, const ExpertRows& expert,
                     const TensorView& x, const RoutedRow* rows, int count) {
  const std::int64_t hidden = problem.shape.hidden;
  const double storage = storage_variance(problem.dtype);
  const double of_value = sum_variance(expert.width).of_value;
  std::array<std::int64_t, kBlockRows> token_of{};
  for (int r = 0; r < count; ++r) token_of[static_cast<std::size_t>(r)] = rows[r].token;
  Block input = load_rows(x, token_of.data(), count);
  for (std::int64_t h = 0; h < hidden; ++h) {
    for (int r = 0; r < count; ++r) {
      const auto at = static_cast<std::size_t>(h * input.width() + r);
      input.values[at] *= rows[r].weight;
      input.coefficients[at] *= rows[r].weight * rows[r].weight;
    }
  }
  const Block act = activate(problem, operands, expert, rows, input);
  Block out(count, hidden);
#pragma omp parallel for schedule(static) if (expert.width * hidden > kParallelWork)
  for (std::int64_t h = 0; h < hidden; ++h) {
    const auto at = static_cast<std::size_t>(h * out.width());
    dot_block(expert.down, expert.index * hidden + h, act, &out.values[at], &out.coefficients[at]);
    for (int r = 0; r < count; ++r) {
      double& value = out.values[at + static_cast<std::size_t>(r)];
      double& variance = out.coefficients[at + static_cast<std::size_t>(r)];
      variance += of_value * value * value;
      value += bias_at(expert.down_bias, h);
      variance += storage * value * value;
    }
  }
  return out;
}

/// Adds weight · row r of `out`.
void add_output(const Block& out, int r, double weight, double weight_variance,
                const SumVariance& combine, Answer& answer) {
  for (std::size_t h = 0; h < answer.y.size(); ++h) {
    const std::size_t at = h * static_cast<std::size_t>(out.width()) + static_cast<std::size_t>(r);
    const double value = out.values[at];
    const double variance = out.coefficients[at];
    answer.y[h] += weight * value;
    answer.variance += weight * weight * variance + weight_variance * (value * value + variance) +
                       combine.of_squares * weight * weight * value * value;
  }
}

/// The shared expert of the rows in `tokens`, into every choice of theirs.
void add_shared(const Problem& problem, Operands operands, const Weights& weights,
                const TensorView& x, const std::vector<std::int64_t>& tokens,
                const SumVariance& combine, std::vector<std::vector<Answer>>& answers) {
  const ExpertRows expert{weights.shared_gate, weights.shared_up, weights.shared_down, 0,
                          problem.shared_intermediate};
  const SumVariance rounding = sum_variance(problem.shape.hidden);
  for (std::size_t first = 0; first < tokens.size(); first += kBlockRows) {
    const int count = static_cast<int>(std::min<std::size_t>(kBlockRows, tokens.size() - first));
    std::array<RoutedRow, kBlockRows> rows{};
    for (int r = 0; r < count; ++r) {
      const std::size_t answer = first + static_cast<std::size_t>(r);
      rows[static_cast<std::size_t>(r)] = {tokens[answer], answer};
    }
    const Block out = expert_outputs(problem, operands, expert, x, rows.data(), count);
    std::array<double, kBlockRows> logit{};
    std::array<double, kBlockRows> squares{};
    if (problem.shared_switch) {
      const Block input = load_rows(x, &tokens[first], count);
      dot_block(weights.shared_switch, 0, input, logit.data(), squares.data());
    }
    for (int r = 0; r < count; ++r) {
      double weight = 1;
      double variance = 0;
      if (problem.shared_switch) {
        const auto at = static_cast<std::size_t>(r);
        weight = 1 / (1 + std::exp(-logit[at]));
        const double slope = weight * (1 - weight);
        variance =
            slope * slope *
                (rounding.of_squares * squares[at] + rounding.of_value * logit[at] * logit[at]) +
            kElementwiseVariance * weight * weight;
      }
      for (Answer& answer : answers[first + static_cast<std::size_t>(r)]) {
        add_output(out, r, weight, variance, combine, answer);
      }
    }
  }
}

}  // namespace

ActivationValue activation_value(const Activation& activation, double gate, double up) {
  ActivationValue f;
  if (activation.kind == Activation::Kind::kReLU2) {
    if (up > 0) f = {.value = up * up, .by_up = 2 * up, .by_up_twice = 1};
    return f;
  }
  double silu = 0;
  double slope = 0;
  double u = up;
  if (activation.kind == Activation::Kind::kSwiGLU) {
    const double limit = activation.limit;
    const double alpha = activation.alpha;
    const double g = std::min(gate, limit);
    u = std::clamp(up, -limit, limit) + activation.up_offset;
    const double sigmoid = 1 / (1 + std::exp(-alpha * g));
    silu = g * sigmoid;
    slope = sigmoid * (1 + alpha * g * (1 - sigmoid));
  } else {
    constexpr double kRootOf2OverPi = 0.79788456080286535588;
    constexpr double kCubic = 0.044715;
    const double tanh = std::tanh(kRootOf2OverPi * (gate + kCubic * gate * gate * gate));
    silu = 0.5 * gate * (1 + tanh);
    slope = 0.5 * (1 + tanh) +
            0.5 * gate * (1 - tanh * tanh) * kRootOf2OverPi * (1 + 3 * kCubic * gate * gate);
  }
  // At a clamp the slope is that of the inside: rounding may have put gate or up there.
  return {.value = silu * u, .by_gate = slope * u, .by_up = silu, .mixed = slope};
}

std::vector<std::vector<Answer>> evaluate(const Problem& problem, Operands operands,
                                          const Weights& weights, const TensorView& x,
                                          const std::vector<Route>& routes,
                                          const std::vector<std::int64_t>& tokens) {
  const Shape& shape = problem.shape;
  const double storage = storage_variance(problem.dtype);
  const bool on_input = problem.router.weight_on_input;
  const SumVariance combine = sum_variance(shape.top_k + (problem.shared_intermediate > 0 ? 1 : 0));

  std::vector<std::vector<Answer>> answers(tokens.size());
  std::vector<std::vector<RoutedRow>> rows_of_expert(static_cast<std::size_t>(shape.experts));
  for (std::size_t answer = 0; answer < tokens.size(); ++answer) {
    const Route& route = routes[static_cast<std::size_t>(tokens[answer])];
    answers[answer].resize(route.choices.size());
    for (Answer& choice : answers[answer]) choice.y.resize(static_cast<std::size_t>(shape.hidden));
    for (std::size_t c = 0; c < route.choices.size(); ++c) {
      const Choice& choice = route.choices[c];
      for (std::size_t slot = 0; slot < choice.experts.size(); ++slot) {
        auto& rows = rows_of_expert[static_cast<std::size_t>(choice.experts[slot])];
        if (on_input) {
          const double weight = choice.weights[slot];
          const double variance =
              weight == 0 ? 0 : choice.weight_variances[slot] / (weight * weight);
          rows.push_back(
              {tokens[answer], answer, static_cast<std::ptrdiff_t>(c), weight, variance});
        } else if (rows.empty() || rows.back().answer != answer) {
          rows.push_back({tokens[answer], answer});
        }
      }
    }
  }

  for (std::int64_t expert = 0; expert < shape.experts; ++expert) {
    ExpertRows matrices{weights.gate, weights.up, weights.down, expert, shape.intermediate};
    if (problem.expert_bias) {
      if (problem.activation.gated()) {
        matrices.gate_bias = weights.gate_bias.as<const float>() + expert * shape.intermediate;
      }
      matrices.up_bias = weights.up_bias.as<const float>() + expert * shape.intermediate;
      matrices.down_bias = weights.down_bias.as<const float>() + expert * shape.hidden;
    }
    const auto& rows = rows_of_expert[static_cast<std::size_t>(expert)];
    for (std::size_t first = 0; first < rows.size(); first += kBlockRows) {
      const int count = static_cast<int>(std::min<std::size_t>(kBlockRows, rows.size() - first));
      const Block out = expert_outputs(problem, operands, matrices, x, &rows[first], count);
      for (int r = 0; r < count; ++r) {
        const RoutedRow& row = rows[first + static_cast<std::size_t>(r)];
        const Route& route = routes[static_cast<std::size_t>(row.token)];
        for (std::size_t c = 0; c < route.choices.size(); ++c) {
          const Choice& choice = route.choices[c];
          const std::ptrdiff_t slot = slot_of(choice, expert);
          if (slot < 0 || (row.only >= 0 && row.only != static_cast<std::ptrdiff_t>(c))) continue;
          const auto at = static_cast<std::size_t>(slot);
          add_output(out, r, on_input ? 1 : choice.weights[at],
                     on_input ? 0 : choice.weight_variances[at], combine, answers[row.answer][c]);
        }
      }
    }
  }
  if (problem.shared_intermediate > 0) {
    add_shared(problem, operands, weights, x, tokens, combine, answers);
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
