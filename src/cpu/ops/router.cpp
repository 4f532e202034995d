#include "cpu/ops/router.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/dispatch.h"

namespace moe::cpu {
namespace {

/// NaN ranks below every number, so that top-k stays defined.
float rankable(float logit) {
  return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
}

/// Keeps the K largest of one row in descending order by insertion: an equal logit of a higher
/// index never moves ahead of a lower one, which is the tie rule.
void top_k_of_row(const float* logits, std::int64_t experts, std::int64_t top_k, std::int32_t* idx,
                  float* values) {
  std::int64_t kept = 0;
  for (std::int64_t expert = 0; expert < experts; ++expert) {
    const float logit = rankable(logits[expert]);
    if (kept == top_k && !(logit > values[top_k - 1])) continue;
    std::int64_t slot = kept < top_k ? kept++ : top_k - 1;
    for (; slot > 0 && logit > values[slot - 1]; --slot) {
      values[slot] = values[slot - 1];
      idx[slot] = idx[slot - 1];
    }
    values[slot] = logit;
    idx[slot] = static_cast<std::int32_t>(expert);
  }
}

}  // namespace

void softmax_top_k(const float* logits, std::int64_t tokens, std::int64_t experts,
                   std::int64_t top_k, std::int32_t* topk_idx, float* topk_weights) {
  for (std::int64_t token = 0; token < tokens; ++token) {
    std::int32_t* idx = topk_idx + token * top_k;
    float* weights = topk_weights + token * top_k;
    top_k_of_row(logits + token * experts, experts, top_k, idx, weights);
    // Softmax over all E and renormalisation over the chosen K cancel the sum over all E: what is
    // left is the softmax of the K chosen logits.
    const float largest = weights[0];
    float sum = 0;
    for (std::int64_t slot = 0; slot < top_k; ++slot) {
      // Equal logits, infinite ones included, weigh the same; without this inf - inf would be NaN.
      weights[slot] = weights[slot] == largest ? 1.0F : std::exp(weights[slot] - largest);
      sum += weights[slot];
    }
    for (std::int64_t slot = 0; slot < top_k; ++slot) weights[slot] /= sum;
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

void route(const Kernels& kernels, const TensorView& x, const TensorView& router,
           std::int64_t top_k, std::int64_t first_token, std::int64_t tokens, int threads,
           float* logits, std::int32_t* topk_idx, float* topk_weights) {
  const std::int64_t experts = router.dim(0);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (std::int64_t token = 0; token < tokens; ++token) {
    router_logits(kernels, x, router, first_token + token, 1, logits + token * experts);
    softmax_top_k(logits + token * experts, 1, experts, top_k, topk_idx + token * top_k,
                  topk_weights + token * top_k);
  }
}

}  // namespace moe::cpu
