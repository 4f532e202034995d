// Routers of the reference: fp64 logits, scores, groups, top-k, weights; and which other choices an
// fp32 router may make.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "core/check.h"
#include "reference/dot.h"
#include "reference/reference.h"
#include "reference/rounding.h"

namespace moe::reference {
namespace {

/// Two scores are a numerical tie when they differ by less than this many standard deviations of
/// the difference of their rounding errors. Rejecting a right answer once in 10^9 tied tokens.
constexpr double kTieDeviations = 6;

/// A number with the variance of its rounding error: what experts and groups are ranked by.
using Ranked = Logit;

bool tied(const Ranked& a, const Ranked& b) {
  // Logits without rounding error (a zero token, a zero router) are equal in every implementation,
  // and then the lowest index wins.
  const double variance = a.variance + b.variance;
  return std::abs(a.value - b.value) < kTieDeviations * std::sqrt(variance);
}

/// All sets of `size` out of `candidates`, the first ones first; at most kMaxChoices.
std::vector<std::vector<std::int64_t>> subsets(const std::vector<std::int64_t>& candidates,
                                               std::size_t size) {
  std::vector<char> taken(candidates.size(), 0);
  std::fill(taken.begin(), taken.begin() + static_cast<std::ptrdiff_t>(size), 1);
  std::vector<std::vector<std::int64_t>> sets;
  do {
    std::vector<std::int64_t> set;
    for (std::size_t i = 0; i < taken.size(); ++i) {
      if (taken[i] != 0) set.push_back(candidates[i]);
    }
    sets.push_back(std::move(set));
  } while (sets.size() < kMaxChoices && std::prev_permutation(taken.begin(), taken.end()));
  return sets;
}

/// Sets of the `count` largest of `candidates`, which index `ranked`: more than one where ties are. The
/// first is that of the values themselves.
std::vector<std::vector<std::int64_t>> largest_sets(const std::vector<Ranked>& ranked,
                                                    std::vector<std::int64_t> order,
                                                    std::int64_t count) {
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return ranked[static_cast<std::size_t>(a)].value > ranked[static_cast<std::size_t>(b)].value;
  });
  const auto chosen_end = order.begin() + count;

  // A chosen one that ties with one left out could have been left out itself, and the reverse.
  std::vector<std::int64_t> certain;
  std::vector<std::int64_t> candidates;
  const auto ties_with_any = [&](std::int64_t one, auto first, auto last) {
    return std::any_of(first, last, [&](std::int64_t other) {
      return tied(ranked[static_cast<std::size_t>(one)], ranked[static_cast<std::size_t>(other)]);
    });
  };
  for (auto one = order.begin(); one != chosen_end; ++one) {
    (ties_with_any(*one, chosen_end, order.end()) ? candidates : certain).push_back(*one);
  }
  const std::size_t open = candidates.size();
  for (auto one = chosen_end; one != order.end() && open > 0; ++one) {
    if (ties_with_any(*one, order.begin(), chosen_end)) candidates.push_back(*one);
  }
  std::vector<std::vector<std::int64_t>> sets;
  for (const auto& rest : subsets(candidates, open)) {
    sets.push_back(certain);
    sets.back().insert(sets.back().end(), rest.begin(), rest.end());
  }
  return sets;
}

/// What softmax over all E logits gives, and what its rounding errors are made of.
struct Softmax {
  std::vector<double> probabilities;  // [E]
  double shared = 0;                  // sum of p²·variance of the logits
};

Softmax softmax(const std::vector<Logit>& logits) {
  double largest = logits[0].value;
  for (const Logit& logit : logits) largest = std::max(largest, logit.value);
  double all = 0;
  Softmax result;
  for (const Logit& logit : logits) {
    result.probabilities.push_back(std::exp(logit.value - largest));
    all += result.probabilities.back();
  }
  for (std::size_t expert = 0; expert < logits.size(); ++expert) {
    double& probability = result.probabilities[expert];
    probability /= all;
    result.shared += probability * probability * logits[expert].variance;
  }
  return result;
}

/// Probabilities of `chosen` within the softmax over `among`, as weights.
Choice weigh_by_softmax(const std::vector<Logit>& logits, const std::vector<std::int64_t>& among,
                        std::vector<std::int64_t> chosen) {
  std::vector<Logit> part;
  part.reserve(among.size());
  for (const std::int64_t expert : among) part.push_back(logits[static_cast<std::size_t>(expert)]);
  const Softmax all = softmax(part);
  const double sum_rounding = sum_variance(static_cast<std::int64_t>(among.size())).of_value +
                              sum_variance(static_cast<std::int64_t>(among.size())).of_squares;
  Choice choice;
  choice.experts = std::move(chosen);
  for (const std::int64_t expert : choice.experts) {
    const auto at =
        static_cast<std::size_t>(std::find(among.begin(), among.end(), expert) - among.begin());
    const double weight = all.probabilities[at];
    choice.weights.push_back(weight);
    // dw_k = w_k·(dl_k - Σ_j w_j·dl_j) to first order, dl independent; and the roundings of exp, sums
    // and divisions. A sum of few terms is among the elementwise roundings.
    const double sums = among.size() > choice.experts.size() ? sum_rounding : 0;
    choice.weight_variances.push_back(
        weight * weight *
        (std::max(0.0, (1 - 2 * weight) * part[at].variance + all.shared) + kElementwiseVariance +
         sums));
  }
  return choice;
}

/// A score and its rounding error from its logit.
Ranked score(Scoring scoring, const Logit& logit) {
  const double l = logit.value;
  double value = 0;
  double slope = 0;
  if (scoring == Scoring::kSigmoid) {
    value = 1 / (1 + std::exp(-l));
    slope = value * (1 - value);
  } else {
    const double softplus = l > 0 ? l + std::log1p(std::exp(-l)) : std::log1p(std::exp(l));
    value = std::sqrt(softplus);
    slope = value > 0 ? 1 / (1 + std::exp(-l)) / (2 * value) : 0;
  }
  return {value, slope * slope * logit.variance + kElementwiseVariance * value * value};
}

/// Weights of `chosen` from scores that are weights themselves.
Choice weigh_by_scores(const std::vector<Ranked>& scores, std::vector<std::int64_t> chosen,
                       bool renormalise) {
  Choice choice;
  choice.experts = std::move(chosen);
  double sum = 0;
  double variance = 0;
  for (const std::int64_t expert : choice.experts) {
    sum += scores[static_cast<std::size_t>(expert)].value;
    variance += scores[static_cast<std::size_t>(expert)].variance;
  }
  for (const std::int64_t expert : choice.experts) {
    const Ranked& one = scores[static_cast<std::size_t>(expert)];
    if (!renormalise) {
      choice.weights.push_back(one.value);
      choice.weight_variances.push_back(one.variance);
      continue;
    }
    // Scores that are all zero give no weights at all.
    const double weight = sum > 0 ? one.value / sum : 0;
    choice.weights.push_back(weight);
    // dw = (ds - w·Σ ds)/Σ s
    const double spread = (1 - 2 * weight) * one.variance + weight * weight * variance;
    choice.weight_variances.push_back((sum > 0 ? std::max(0.0, spread) / (sum * sum) : 0) +
                                      kElementwiseVariance * weight * weight);
  }
  return choice;
}

/// Sets of groups that may be kept, each as the experts in them, ascending.
std::vector<std::vector<std::int64_t>> kept_experts(const Problem& problem,
                                                    const std::vector<Ranked>& ranked) {
  const Router& router = problem.router;
  const std::int64_t experts = problem.shape.experts;
  const std::int64_t size = experts / router.groups;
  std::vector<Ranked> groups;
  for (std::int64_t group = 0; group < router.groups; ++group) {
    std::vector<Ranked> members(ranked.begin() + group * size, ranked.begin() + (group + 1) * size);
    std::sort(members.begin(), members.end(),
              [](const Ranked& a, const Ranked& b) { return a.value > b.value; });
    Ranked best = members[0];
    if (router.scoring != Scoring::kSoftmax && size > 1) {
      best.value += members[1].value;
      best.variance += members[1].variance + kFp32Variance * best.value * best.value;
    }
    groups.push_back(best);
  }
  std::vector<std::int64_t> all(groups.size());
  std::iota(all.begin(), all.end(), std::int64_t{0});
  std::vector<std::vector<std::int64_t>> sets;
  for (auto& kept : largest_sets(groups, all, router.top_groups)) {
    std::sort(kept.begin(), kept.end());
    std::vector<std::int64_t> members;
    for (const std::int64_t group : kept) {
      for (std::int64_t expert = group * size; expert < (group + 1) * size; ++expert) {
        members.push_back(expert);
      }
    }
    sets.push_back(std::move(members));
  }
  return sets;
}

void add_choice(Route& route, Choice choice) {
  if (route.choices.size() < kMaxChoices) route.choices.push_back(std::move(choice));
}

/// Sparsemixer's next slots, after those of `begun`.
void mix(const Problem& problem, const std::vector<Logit>& logits, const Choice& begun,
         Route& route) {
  // Of the models that use it: an expert takes part in the softmax of a slot unless its logit is more
  // than this below the best, relative to the larger of its magnitude and the best.
  constexpr double kThreshold = 0.02;
  if (static_cast<std::int64_t>(begun.experts.size()) == problem.shape.top_k) {
    add_choice(route, begun);
    return;
  }
  std::vector<std::int64_t> left;
  for (std::int64_t expert = 0; expert < problem.shape.experts; ++expert) {
    if (std::find(begun.experts.begin(), begun.experts.end(), expert) == begun.experts.end()) {
      left.push_back(expert);
    }
  }
  for (const auto& set : largest_sets(logits, left, 1)) {
    const Logit& best = logits[static_cast<std::size_t>(set[0])];
    std::vector<std::int64_t> near;
    std::vector<std::int64_t> open;  // may lie on either side of the threshold
    for (const std::int64_t expert : left) {
      const Logit& one = logits[static_cast<std::size_t>(expert)];
      const double factor = std::max(std::abs(one.value), best.value);
      const double beyond = (best.value - one.value) - kThreshold * factor;
      const double deviation =
          std::sqrt(best.variance + one.variance + 2 * kElementwiseVariance * factor * factor);
      const bool exact = expert == set[0] || (best.variance == 0 && one.variance == 0);
      if (!exact && std::abs(beyond) < kTieDeviations * deviation) {
        open.push_back(expert);
      } else if (expert == set[0] || !(beyond > 0)) {
        near.push_back(expert);
      }
    }
    // All ways to take the open ones in; of many, all and none.
    const std::size_t ways = open.size() <= 4 ? std::size_t{1} << open.size() : 2;
    for (std::size_t way = 0; way < ways; ++way) {
      std::vector<std::int64_t> among = near;
      for (std::size_t i = 0; i < open.size(); ++i) {
        if (open.size() <= 4 ? (way >> i & 1U) != 0 : way == 1) among.push_back(open[i]);
      }
      const Choice slot = weigh_by_softmax(logits, among, {set[0]});
      Choice longer = begun;
      longer.experts.push_back(set[0]);
      longer.weights.push_back(slot.weights[0]);
      longer.weight_variances.push_back(slot.weight_variances[0]);
      mix(problem, logits, longer, route);
    }
  }
}

/// The routes that the caller gave.
std::vector<Route> given_routes(const Problem& problem, const Routes& given, std::int64_t tokens) {
  std::vector<Route> routes(static_cast<std::size_t>(tokens));
  for (std::int64_t token = 0; token < tokens; ++token) {
    Choice choice;
    for (std::int64_t slot = 0; slot < problem.shape.top_k; ++slot) {
      const std::int64_t at = token * problem.shape.top_k + slot;
      const std::int64_t expert = given.experts[at];
      if (expert < 0) continue;
      const auto same = std::find(choice.experts.begin(), choice.experts.end(), expert);
      if (same != choice.experts.end()) {
        choice.weights[static_cast<std::size_t>(same - choice.experts.begin())] +=
            given.weights[at];
        continue;
      }
      choice.experts.push_back(expert);
      choice.weights.push_back(given.weights[at]);
      choice.weight_variances.push_back(0);
    }
    routes[static_cast<std::size_t>(token)].choices.push_back(std::move(choice));
  }
  return routes;
}

}  // namespace

Route route_logits(const Problem& problem, const Weights& weights, std::vector<Logit> logits) {
  const Router& router = problem.router;
  const std::int64_t top_k = problem.shape.top_k;
  // exp(l - max) rounds its argument and its result, relative to 1 in units of l.
  const auto largest =
      std::max_element(logits.begin(), logits.end(), [](const Logit& a, const Logit& b) {
        return a.value < b.value;
      })->value;
  if (router.scoring == Scoring::kSoftmax || router.scoring == Scoring::kSparseMixer) {
    for (Logit& logit : logits) {
      const double distance = logit.value - largest;
      if (logit.variance > 0)
        logit.variance += kElementwiseVariance + kFp32Variance * distance * distance;
    }
  }
  Route route;
  if (router.scoring == Scoring::kSparseMixer) {
    mix(problem, logits, {}, route);
  } else {
    // Softmax keeps the order of the logits: they are ranked instead of it.
    std::vector<Ranked> scores = logits;
    if (router.scoring != Scoring::kSoftmax) {
      for (Ranked& one : scores) one = score(router.scoring, one);
    }
    std::vector<Ranked> ranked = scores;
    if (router.selection_bias) {
      for (std::size_t i = 0; i < ranked.size(); ++i) {
        ranked[i].value += static_cast<double>(weights.selection_bias.as<const float>()[i]);
        ranked[i].variance += kFp32Variance * ranked[i].value * ranked[i].value;
      }
    }
    std::vector<std::int64_t> all(logits.size());
    std::iota(all.begin(), all.end(), std::int64_t{0});
    const std::vector<std::vector<std::int64_t>> kept =
        router.groups == 1 ? std::vector<std::vector<std::int64_t>>{all}
                           : kept_experts(problem, ranked);
    for (const auto& candidates : kept) {
      for (auto& experts : largest_sets(ranked, candidates, top_k)) {
        if (router.scoring != Scoring::kSoftmax) {
          add_choice(route, weigh_by_scores(scores, std::move(experts), router.renormalise));
        } else {
          // Softmax over all, renormalised over the chosen, is the softmax of the chosen.
          const std::vector<std::int64_t> among = router.renormalise ? experts : all;
          add_choice(route, weigh_by_softmax(logits, among, std::move(experts)));
        }
      }
    }
  }
  for (Choice& choice : route.choices) {
    for (double& weight : choice.weights) weight *= router.scale;
    for (double& variance : choice.weight_variances) {
      variance *= static_cast<double>(router.scale) * static_cast<double>(router.scale);
    }
  }
  return route;
}

std::vector<Route> route(const Problem& problem, const Weights& weights, const TensorView& x,
                         const Routes& given) {
  const Shape& shape = problem.shape;
  const std::int64_t tokens = x.dim(0);
  if (problem.router.scoring == Scoring::kGiven) return given_routes(problem, given, tokens);
  const SumVariance rounding = sum_variance(shape.hidden);
  std::vector<Route> routes(static_cast<std::size_t>(tokens));
  const std::int64_t blocks = (tokens + kBlockRows - 1) / kBlockRows;
  std::int64_t not_finite = -1;  // a token with a logit that is not a number
#pragma omp parallel for schedule(static) \
    reduction(max                         \
              : not_finite) if (tokens * shape.experts * shape.hidden > kParallelWork)
  for (std::int64_t block_index = 0; block_index < blocks; ++block_index) {
    const std::int64_t first = block_index * kBlockRows;
    const int count = static_cast<int>(std::min<std::int64_t>(kBlockRows, tokens - first));
    std::array<std::int64_t, kBlockRows> rows{};
    std::iota(rows.begin(), rows.end(), first);
    const Block block = load_rows(x, rows.data(), count);
    std::vector<std::vector<Logit>> logits(
        static_cast<std::size_t>(count),
        std::vector<Logit>(static_cast<std::size_t>(shape.experts)));
    for (std::int64_t expert = 0; expert < shape.experts; ++expert) {
      std::array<double, kBlockRows> sums{};
      std::array<double, kBlockRows> squares{};
      dot_block(weights.router, expert, block, sums.data(), squares.data());
      for (int r = 0; r < count; ++r) {
        const auto at = static_cast<std::size_t>(r);
        const double value = sums[at];
        Logit& logit = logits[at][static_cast<std::size_t>(expert)];
        logit = {value, rounding.of_squares * squares[at] + rounding.of_value * value * value};
        if (problem.router.bias) {
          logit.value += static_cast<double>(weights.router_bias.as<const float>()[expert]);
          logit.variance += kFp32Variance * logit.value * logit.value;
        }
      }
    }
    for (int r = 0; r < count; ++r) {
      std::vector<Logit>& row = logits[static_cast<std::size_t>(r)];
      if (!std::all_of(row.begin(), row.end(),
                       [](const Logit& l) { return std::isfinite(l.value); })) {
        not_finite = std::max(not_finite, first + r);
        continue;
      }
      routes[static_cast<std::size_t>(first + r)] = route_logits(problem, weights, std::move(row));
    }
  }
  MOE_CHECK(not_finite < 0,
            "the router logits of token {} are not finite: x or the router holds NaN or infinity",
            not_finite);
  return routes;
}

}  // namespace moe::reference
