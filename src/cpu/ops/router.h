// Routers of the CPU levels: logits -> K experts and K weights per token, and the shared expert's slots
// after them (core/expert_set.h).
#pragma once

#include <cstdint>

#include "cpu/isa/kernels.h"
#include "moe/layer.h"

namespace moe::cpu {

/// What routing needs beside logits.
struct RouterSetup {
  const Kernels* kernels = nullptr;
  Problem problem;
  Weights weights;
};

/// Where routing writes; rows are of K' = K + P slots, P those of the shared expert.
struct RoutedSlots {
  std::int32_t* experts = nullptr;  ///< [rows,K'] in descending order of score; -1: not used
  float* weights = nullptr;         ///< [rows,K'] what each expert's output is multiplied by
  /// [rows,K'] what its input is multiplied by; null where nothing is (Router::weight_on_input).
  float* input_weights = nullptr;
};

/// Experts and weights of rows first_token.. of x from their logits[tokens,E], which are overwritten;
/// `given` are all rows' of Scoring::kGiven. Lowest index first among equal scores; NaN logits count as
/// -infinity; scores that are all zero give weights of zero. Serial; callers split rows over threads.
void choose_experts(const RouterSetup& setup, const TensorView& x, std::int64_t first_token,
                    std::int64_t tokens, float* logits, const Routes& given,
                    const RoutedSlots& slots);

/// router_logits and choose_experts, rows split over `threads`.
void route(const RouterSetup& setup, const TensorView& x, std::int64_t first_token,
           std::int64_t tokens, int threads, float* logits, const Routes& given,
           const RoutedSlots& slots);

/// logits[tokens,E] = x[tokens,H] · router[E,H]^T, one dot product per element. Serial.
void router_logits(const Kernels& kernels, const TensorView& x, const TensorView& router,
                   std::int64_t first_token, std::int64_t tokens, float* logits);

}  // namespace moe::cpu
