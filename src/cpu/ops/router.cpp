#include "cpu/ops/router.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/dispatch.h"
#include "core/expert_set.h"

namespace moe::cpu {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

/// NaN ranks below every number, so that top-k stays defined.
float rankable(float score) {
  return std::isnan(score) ? kNever : score;
}

/// What experts of one row are ranked by: scores, with a bias where there is one.
struct Ranking {
  const float* scores = nullptr;  // [E]
  const float* bias = nullptr;    // [E] or null
  [[nodiscard]] float at(std::int64_t expert) const {
    return rankable(bias == nullptr ? scores[expert] : scores[expert] + bias[expert]);
  }
};

/// Keeps the K largest seen so far in descending order by insertion: an equal score of a higher index
/// never moves ahead of a lower one, which is the tie rule.
class TopK {
 public:
  TopK(std::int64_t top_k, std::int32_t* idx, float* values)
      : top_k_(top_k), idx_(idx), values_(values) {}

  /// Experts first..end of the ranking, after those of lower indices.
  void see(const Ranking& ranking, std::int64_t first, std::int64_t end) {
    for (std::int64_t expert = first; expert < end; ++expert) {
      const float score = ranking.at(expert);
      if (kept_ == top_k_ && !(score > values_[top_k_ - 1])) continue;
      std::int64_t slot = kept_ < top_k_ ? kept_++ : top_k_ - 1;
      for (; slot > 0 && score > values_[slot - 1]; --slot) {
        values_[slot] = values_[slot - 1];
        idx_[slot] = idx_[slot - 1];
      }
      values_[slot] = score;
      idx_[slot] = static_cast<std::int32_t>(expert);
    }
  }

 private:
  std::int64_t top_k_;
  std::int64_t kept_ = 0;
  std::int32_t* idx_;
  float* values_;
};

/// The groups that are kept, one bit each (validate() allows 64). A group's score is its largest, or the
/// sum of its two largest; lowest index first among equals.
std::uint64_t kept_groups(const Router& router, const Ranking& ranking, std::int64_t experts) {
  constexpr std::size_t kMost = 64;
  const std::int64_t size = experts / router.groups;
  float scores[kMost];
  for (std::int64_t group = 0; group < router.groups; ++group) {
    float best = kNever;
    float second = kNever;
    for (std::int64_t expert = group * size; expert < (group + 1) * size; ++expert) {
      const float score = ranking.at(expert);
      second = std::max(second, std::min(best, score));
      best = std::max(best, score);
    }
    const bool alone = router.scoring == Scoring::kSoftmax || size == 1;
    scores[group] = alone ? best : best + second;
  }
  std::uint64_t kept = 0;
  for (std::int64_t i = 0; i < router.top_groups; ++i) {
    std::int64_t best = -1;
    for (std::int64_t group = 0; group < router.groups; ++group) {
      if ((kept >> group & 1U) == 0 && (best < 0 || scores[group] > scores[best])) best = group;
    }
    kept |= std::uint64_t{1} << best;
  }
  return kept;
}

/// Softmax of values[0..n), which descend, in place. Equal ones, infinite ones included, weigh the
/// same; without that inf - inf would be NaN.
void softmax_in_place(float* values, std::int64_t n) {
  const float largest = values[0];
  float sum = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    values[i] = values[i] == largest ? 1.0F : std::exp(values[i] - largest);
    sum += values[i];
  }
  for (std::int64_t i = 0; i < n; ++i) values[i] /= sum;
}

/// Weights of the chosen experts from their scores (of softmax: from their logits; `row` has all).
void weigh(const RouterSetup& setup, const float* row, std::int64_t experts,
           const std::int32_t* idx, float* weights, std::int64_t top_k) {
  const Router& router = setup.problem.router;
  if (router.scoring == Scoring::kSoftmax && router.renormalise) {
    // Softmax over all E and renormalisation over the chosen K cancel the sum over all E: what is
    // left is the softmax of the K chosen logits.
    softmax_in_place(weights, top_k);
  } else if (router.scoring == Scoring::kSoftmax) {
    const float largest = router.groups == 1 ? weights[0] : *std::max_element(row, row + experts);
    const float sum = setup.kernels->sum_of_exponentials(row, experts, largest);
    for (std::int64_t slot = 0; slot < top_k; ++slot) {
      weights[slot] = std::exp(weights[slot] - largest) / sum;
    }
  } else {
    float sum = 0;
    for (std::int64_t slot = 0; slot < top_k; ++slot) {
      weights[slot] = row[idx[slot]];
      sum += weights[slot];
    }
    if (router.renormalise) {
      const float scale = sum > 0 ? 1 / sum : 0;
      for (std::int64_t slot = 0; slot < top_k; ++slot) weights[slot] *= scale;
    }
  }
  if (router.scale != 1) {
    for (std::int64_t slot = 0; slot < top_k; ++slot) weights[slot] *= router.scale;
  }
}

/// Replaces logits by scores; of softmax they stay, which ranks the same.
void score_row(const RouterSetup& setup, float* row, std::int64_t experts) {
  const Router& router = setup.problem.router;
  if (router.bias) {
    const auto* bias = setup.weights.router_bias.as<const float>();
    for (std::int64_t expert = 0; expert < experts; ++expert) row[expert] += bias[expert];
  }
  // The softmax of the chosen alone needs no other row than the ranking reads.
  if (router.scoring == Scoring::kSoftmax && router.renormalise) return;
  for (std::int64_t expert = 0; expert < experts; ++expert) row[expert] = rankable(row[expert]);
  switch (router.scoring) {
    case Scoring::kSigmoid:
      setup.kernels->sigmoid(row, experts);
      break;
    case Scoring::kSqrtSoftplus:
      setup.kernels->sqrt_softplus(row, experts);
      break;
    default:
      break;
  }
}

/// Experts and weights of one token from its logits, for every scoring that ranks scores.
void choose_by_scores(const RouterSetup& setup, float* row, std::int32_t* idx, float* weights) {
  const Router& router = setup.problem.router;
  const std::int64_t experts = setup.problem.shape.experts;
  const std::int64_t top_k = setup.problem.shape.top_k;
  score_row(setup, row, experts);
  Ranking ranking{row};
  if (router.selection_bias) ranking.bias = setup.weights.selection_bias.as<const float>();
  TopK chosen(top_k, idx, weights);
  if (router.groups == 1) {
    chosen.see(ranking, 0, experts);
  } else {
    const std::int64_t size = experts / router.groups;
    const std::uint64_t kept = kept_groups(router, ranking, experts);
    for (std::int64_t group = 0; group < router.groups; ++group) {
      if ((kept >> group & 1U) != 0) chosen.see(ranking, group * size, (group + 1) * size);
    }
  }
  weigh(setup, row, experts, idx, weights, top_k);
}

/// Scoring::kSparseMixer: slot by slot, the best of those left, weighed by a softmax over those left
/// whose logits are close to it.
void mix_experts(const RouterSetup& setup, float* row, std::int32_t* idx, float* weights) {
  // An expert takes part unless its logit is more than this below the best, relative to the larger of
  // its magnitude and the best.
  constexpr float kThreshold = 0.02F;
  // So it is no further than 0.02 / 0.98 of the best's magnitude below it.
  constexpr float kReach = 0.021F;
  const Router& router = setup.problem.router;
  const std::int64_t experts = setup.problem.shape.experts;
  const std::int64_t top_k = setup.problem.shape.top_k;
  score_row(setup, row, experts);
  // The best of those left, slot after slot, is the next of all in descending order.
  TopK(top_k, idx, weights).see(Ranking{row}, 0, experts);
  for (std::int64_t slot = 0; slot < top_k; ++slot) row[idx[slot]] = kNever;
  // Beside the chosen only those matter that are close to the last of them, few: they move to the front.
  const float least = weights[top_k - 1] - kReach * std::abs(weights[top_k - 1]);
  std::int64_t close = 0;
  for (std::int64_t expert = 0; expert < experts; ++expert) {
    const float logit = row[expert];
    row[close] = logit;
    close += logit < least ? 0 : 1;
  }
  for (std::int64_t slot = 0; slot < top_k; ++slot) {
    const float most = weights[slot];
    float sum = 0;
    const auto add = [&](const float* logits, std::int64_t count) {
      for (std::int64_t i = 0; i < count; ++i) {
        const float logit = logits[i];
        if (most - logit > kThreshold * std::max(std::abs(logit), most)) continue;
        sum += logit == most ? 1.0F : std::exp(logit - most);
      }
    };
    add(weights + slot, top_k - slot);  // the chosen that are left
    add(row, close);
    weights[slot] = most == kNever ? 0.0F : router.scale / sum;
  }
}

/// sigmoid(x·switch) of one token.
float switch_of(const RouterSetup& setup, const TensorView& x, std::int64_t token) {
  float logit = 0;
  router_logits(*setup.kernels, x, setup.weights.shared_switch, token, 1, &logit);
  return 1.0F / (1.0F + std::exp(-logit));
}

}  // namespace

void choose_experts(const RouterSetup& setup, const TensorView& x, std::int64_t first_token,
                    std::int64_t tokens, float* logits, const Routes& given,
                    const RoutedSlots& slots) {
  const Problem& problem = setup.problem;
  const Shape& shape = problem.shape;
  const std::int64_t all_slots = with_shared_slots(problem).top_k;
  for (std::int64_t row = 0; row < tokens; ++row) {
    std::int32_t* idx = slots.experts + row * all_slots;
    float* weights = slots.weights + row * all_slots;
    switch (problem.router.scoring) {
      case Scoring::kGiven:
        for (std::int64_t slot = 0; slot < shape.top_k; ++slot) {
          const std::int64_t from = (first_token + row) * shape.top_k + slot;
          idx[slot] = given.experts[from];
          weights[slot] = idx[slot] < 0 ? 0.0F : given.weights[from];
        }
        break;
      case Scoring::kSparseMixer:
        mix_experts(setup, logits + row * shape.experts, idx, weights);
        break;
      default:
        choose_by_scores(setup, logits + row * shape.experts, idx, weights);
    }
    const float shared = problem.shared_switch ? switch_of(setup, x, first_token + row) : 1.0F;
    for (std::int64_t slot = shape.top_k; slot < all_slots; ++slot) {
      idx[slot] = static_cast<std::int32_t>(shape.experts + slot - shape.top_k);
      weights[slot] = shared;
    }
    if (slots.input_weights == nullptr) continue;
    for (std::int64_t slot = 0; slot < all_slots; ++slot) {
      slots.input_weights[row * all_slots + slot] = weights[slot];
      weights[slot] = 1;
    }
  }
}

void router_logits(const Kernels& kernels, const TensorView& x, const TensorView& router,
                   std::int64_t first_token, std::int64_t tokens, float* logits) {
  const std::int64_t hidden = x.dim(1);
  const std::int64_t experts = router.dim(0);
  with_element_type(x.dtype, [&]<class Element>() {
    const auto* rows = x.as<const Element>() + first_token * hidden;
    const auto* weights = router.as<const Element>();
    for (std::int64_t token = 0; token < tokens; ++token) {
      for (std::int64_t expert = 0; expert < experts; ++expert) {
        logits[token * experts + expert] =
            dot<Element>(kernels, rows + token * hidden, weights + expert * hidden, hidden);
      }
    }
  });
}

void route(const RouterSetup& setup, const TensorView& x, std::int64_t first_token,
           std::int64_t tokens, int threads, float* logits, const Routes& given,
           const RoutedSlots& slots) {
  const std::int64_t experts = setup.problem.shape.experts;
  const std::int64_t all_slots = with_shared_slots(setup.problem).top_k;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (std::int64_t token = 0; token < tokens; ++token) {
    float* row = logits + token * experts;
    if (setup.problem.router.scoring != Scoring::kGiven) {
      router_logits(*setup.kernels, x, setup.weights.router, first_token + token, 1, row);
    }
    const std::int64_t at = token * all_slots;
    choose_experts(setup, x, first_token + token, 1, row, given,
                   {slots.experts + at, slots.weights + at,
                    slots.input_weights == nullptr ? nullptr : slots.input_weights + at});
  }
}

}  // namespace moe::cpu
