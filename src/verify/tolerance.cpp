#include "verify/tolerance.h"

#include <algorithm>
#include <cmath>

#include "moe/verify.h"
#include "reference/rounding.h"

namespace moe {

double allowed_deviations(const Shape& shape) {
  const auto draws = static_cast<double>(std::min(shape.hidden, shape.intermediate));
  return 3 * (1 + 1 / std::sqrt(draws));
}

double row_tolerance(const Problem& problem, Operands operands) {
  // E[(g·silu'(g))²] / E[silu(g)²] for g ~ N(0,1): how much of a relative error of gate reaches
  // act.
  constexpr double kGateGain = 1.4545;
  // (Σ p)² / Σ p² of the logits of chosen experts: they are the largest, some two deviations out.
  constexpr double kChosenLogit = 4;
  const reference::SumVariance over_hidden = reference::sum_variance(problem.shape.hidden);
  const reference::SumVariance over_intermediate =
      reference::sum_variance(problem.shape.intermediate);
  const reference::SumVariance over_choices = reference::sum_variance(problem.shape.top_k);
  const double storage = reference::storage_variance(problem.dtype);
  const double operand = reference::operand_variance(operands);

  // Variances relative to the square of what they are errors of; means over normal data.
  const double projection =  // gate, up
      over_hidden.of_squares + operand + over_hidden.of_value + storage;
  const double act =
      kGateGain * projection + projection + reference::kElementwiseVariance + storage;
  const double expert_output =
      act + over_intermediate.of_squares + operand + over_intermediate.of_value + storage;
  // A weight's error is that of its logit times 1 - weight; a single choice has weight 1 exactly.
  const double logit = over_hidden.of_squares + kChosenLogit * over_hidden.of_value;
  const double other_choices = 1 - 1 / static_cast<double>(problem.shape.top_k);
  const double weight = other_choices * logit + reference::kElementwiseVariance;
  const double y =
      expert_output + weight + over_choices.of_squares + over_choices.of_value + storage;
  return allowed_deviations(problem.shape) * std::sqrt(y);
}

}  // namespace moe
