// The fp64 reference: the layer written down as loops over doubles, with the variance of the
// rounding error that an fp32 (or bf16) implementation of the same formula is entitled to.
//
// It shares no code with the levels except the conversion of stored values (core/scalar.h), and it
// is not a level: nothing times it.
#pragma once

#include <cstdint>
#include <vector>

#include "moe/layer.h"

namespace moe::reference {

/// K experts of one token and their weights.
struct Choice {
  std::vector<std::int64_t> experts;     // [K], descending logit, lowest index first among equals
  std::vector<double> weights;           // [K], sums to 1
  std::vector<double> weight_variances;  // [K], of the weights' rounding errors
};

/// Routing of one token. More than one choice only when the logits around rank K lie closer
/// together than fp32 can tell apart; the first choice is that of the fp64 logits.
struct Route {
  std::vector<Choice> choices;
};

/// At most this many choices of a tied token are kept, nearest to the fp64 order first.
inline constexpr std::size_t kMaxChoices = 32;

/// Routes of all rows of x[T',H].
[[nodiscard]] std::vector<Route> route(const Problem& problem, const TensorView& router,
                                       const TensorView& x);

/// What y must be for one token and one choice.
struct Answer {
  std::vector<double> y;  // [H]
  double variance = 0;    // of the rounding error of y, summed over the H elements
};

/// answers[i][c] belongs to row tokens[i] of x and choices[c] of routes[tokens[i]]. `operands` does
/// not change y, only what may be lost: the router always multiplies what is stored.
[[nodiscard]] std::vector<std::vector<Answer>> evaluate(const Problem& problem, Operands operands,
                                                        const Weights& weights, const TensorView& x,
                                                        const std::vector<Route>& routes,
                                                        const std::vector<std::int64_t>& tokens);

}  // namespace moe::reference
