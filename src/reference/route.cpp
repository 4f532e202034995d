// Router of the reference: fp64 logits, softmax over all experts, top-k, renormalise; and which
// other choices an fp32 router may make.
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

/// Two logits are a numerical tie when they differ by less than this many standard deviations of
/// the difference of their rounding errors. Rejecting a right answer once in 10^9 tied tokens.
constexpr double kTieDeviations = 6;

struct Logit {
  double value = 0;
  double variance = 0;
};

bool tied(const Logit& a, const Logit& b) {
  // Logits without rounding error (a zero token, a zero router) are equal in every implementation,
  // and then the lowest index wins.
  const double variance = a.variance + b.variance;
  return std::abs(a.value - b.value) < kTieDeviations * std::sqrt(variance);
}

Choice weigh(const std::vector<Logit>& logits, std::vector<std::int64_t> experts) {
  double largest = logits[0].value;
  for (const Logit& logit : logits) largest = std::max(largest, logit.value);
  double all = 0;
  for (const Logit& logit : logits) all += std::exp(logit.value - largest);
  Choice choice;
  choice.experts = std::move(experts);
  double chosen = 0;
  for (const std::int64_t expert : choice.experts) {
    const double probability =
        std::exp(logits[static_cast<std::size_t>(expert)].value - largest) / all;
    choice.weights.push_back(probability);
    chosen += probability;
  }
  for (double& weight : choice.weights) weight /= chosen;

  // dw_k = w_k·(dl_k - Σ_j w_j·dl_j) to first order, dl independent; and the roundings of exp, sums
  // and divisions.
  double shared = 0;
  for (std::size_t slot = 0; slot < choice.experts.size(); ++slot) {
    const Logit& logit = logits[static_cast<std::size_t>(choice.experts[slot])];
    shared += choice.weights[slot] * choice.weights[slot] * logit.variance;
  }
  for (std::size_t slot = 0; slot < choice.experts.size(); ++slot) {
    const Logit& logit = logits[static_cast<std::size_t>(choice.experts[slot])];
    const double weight = choice.weights[slot];
    choice.weight_variances.push_back(
        weight * weight *
        (std::max(0.0, (1 - 2 * weight) * logit.variance + shared) + kElementwiseVariance));
  }
  return choice;
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

Route route_token(const std::vector<Logit>& logits, std::int64_t top_k) {
  std::vector<std::int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return logits[static_cast<std::size_t>(a)].value > logits[static_cast<std::size_t>(b)].value;
  });
  const auto chosen_end = order.begin() + top_k;

  // A chosen expert that ties with one left out could have been left out itself, and the reverse.
  std::vector<std::int64_t> certain;
  std::vector<std::int64_t> candidates;
  const auto ties_with_any = [&](std::int64_t expert, auto first, auto last) {
    return std::any_of(first, last, [&](std::int64_t other) {
      return tied(logits[static_cast<std::size_t>(expert)],
                  logits[static_cast<std::size_t>(other)]);
    });
  };
  for (auto expert = order.begin(); expert != chosen_end; ++expert) {
    (ties_with_any(*expert, chosen_end, order.end()) ? candidates : certain).push_back(*expert);
  }
  const std::size_t open = candidates.size();
  for (auto expert = chosen_end; expert != order.end() && open > 0; ++expert) {
    if (ties_with_any(*expert, order.begin(), chosen_end)) candidates.push_back(*expert);
  }
  Route route;
  for (const auto& set : subsets(candidates, open)) {
    std::vector<std::int64_t> experts = certain;
    experts.insert(experts.end(), set.begin(), set.end());
    route.choices.push_back(weigh(logits, std::move(experts)));
  }
  return route;
}

}  // namespace

std::vector<Route> route(const Problem& problem, const TensorView& router, const TensorView& x) {
  const Shape& shape = problem.shape;
  const std::int64_t tokens = x.dim(0);
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
      dot_block(router, expert, block, sums.data(), squares.data());
      for (int r = 0; r < count; ++r) {
        const auto at = static_cast<std::size_t>(r);
        const double value = sums[at];
        logits[at][static_cast<std::size_t>(expert)] = {
            value, rounding.of_squares * squares[at] + rounding.of_value * value * value};
      }
    }
    for (int r = 0; r < count; ++r) {
      std::vector<Logit>& row = logits[static_cast<std::size_t>(r)];
      if (!std::all_of(row.begin(), row.end(),
                       [](const Logit& l) { return std::isfinite(l.value); })) {
        not_finite = std::max(not_finite, first + r);
        continue;
      }
      // exp(l - max) rounds its argument and its result, relative to 1 in units of l.
      double largest = row[0].value;
      for (const Logit& logit : row) largest = std::max(largest, logit.value);
      for (Logit& logit : row) {
        const double distance = logit.value - largest;
        if (logit.variance > 0)
          logit.variance += kElementwiseVariance + kFp32Variance * distance * distance;
      }
      routes[static_cast<std::size_t>(first + r)] = route_token(row, shape.top_k);
    }
  }
  MOE_CHECK(not_finite < 0,
            "the router logits of token {} are not finite: x or the router holds NaN or infinity",
            not_finite);
  return routes;
}

}  // namespace moe::reference
