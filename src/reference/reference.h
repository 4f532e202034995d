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

/// The experts of one token and their weights: K, of given routes those that are used.
struct Choice {
  std::vector<std::int64_t> experts;     // descending score, lowest index first among equals
  std::vector<double> weights;           // what each multiplies
  std::vector<double> weight_variances;  // of the weights' rounding errors
};

/// Routing of one token. More than one choice only when scores around rank K (or those of groups
/// around the last kept, or logits at the threshold of sparsemixer) lie closer together than fp32 can
/// tell apart; the first choice is that of the fp64 logits.
struct Route {
  std::vector<Choice> choices;
};

/// At most this many choices of a tied token are kept, nearest to the fp64 order first.
inline constexpr std::size_t kMaxChoices = 32;

/// Routes of all rows of x[T',H]; `given` those of Scoring::kGiven.
[[nodiscard]] std::vector<Route> route(const Problem& problem, const Weights& weights,
                                       const TensorView& x, const Routes& given = {});

/// A logit with the variance of its rounding error.
struct Logit {
  double value = 0;
  double variance = 0;
};

/// Route of one token from its E logits. Split from route() for routers' textbook values.
[[nodiscard]] Route route_logits(const Problem& problem, const Weights& weights,
                                 std::vector<Logit> logits);

/// act = f(gate, up) and what an error of gate or up does to it.
struct ActivationValue {
  double value = 0;
  double by_gate = 0;      // df/dgate
  double by_up = 0;        // df/dup
  double mixed = 0;        // d²f/dgate dup
  double by_up_twice = 0;  // d²f/dup² over 2, squared: of the square of up's error
};
[[nodiscard]] ActivationValue activation_value(const Activation& activation, double gate,
                                               double up);

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
