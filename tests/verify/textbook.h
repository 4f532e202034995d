// A textbook forward in fp32, written for the tests of the oracle: one accumulator per sum, in
// order, every tensor that a level may store rounded to the problem's type. Its switches make it
// wrong in one known way.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/dispatch.h"
#include "moe/layer.h"

namespace moe::textbook {

struct Mutation {
  bool renormalise = true;
  std::int64_t first_rank = 0;              // rank of the first expert taken: 1 skips the best
  bool last_rank_off_by_one = false;        // takes rank k+1 instead of rank k
  Operands operands = Operands::kAsStored;  // of the experts' products: a format, not a mistake
};

/// To the nearest of 4 significant bits, ties to even. No exponent limits: as under a perfect scale.
inline float rounded_to_fp8(float value) {
  int exponent = 0;
  const float fraction = std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(fraction * 16), exponent - 4);
}

template <class Element>
float sum_of_products(const Element* a, const Element* b, std::int64_t n,
                      Operands operands = Operands::kAsStored) {
  float sum = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    sum += operands == Operands::kFp8
               ? rounded_to_fp8(to_float(a[i])) * rounded_to_fp8(to_float(b[i]))
               : to_float(a[i]) * to_float(b[i]);
  }
  return sum;
}

template <class Element>
float stored(float value) {
  return to_float(from_float<Element>(value));
}

template <class Element>
void forward_as(const Shape& shape, const Weights& weights, const TensorView& x,
                const TensorView& y, const Mutation& mutation) {
  const std::int64_t hidden = shape.hidden;
  const std::int64_t intermediate = shape.intermediate;
  const auto experts = static_cast<std::size_t>(shape.experts);
  const auto top_k = static_cast<std::size_t>(shape.top_k);
#pragma omp parallel for schedule(static)
  for (std::int64_t token = 0; token < x.dim(0); ++token) {
    const Element* row = x.as<const Element>() + token * hidden;
    std::vector<float> probability(experts);
    for (std::size_t e = 0; e < experts; ++e) {
      probability[e] = sum_of_products(
          row, weights.router.as<const Element>() + static_cast<std::int64_t>(e) * hidden, hidden);
    }
    const float largest = *std::max_element(probability.begin(), probability.end());
    float all = 0;
    for (float& p : probability) all += p = std::exp(p - largest);
    std::vector<std::size_t> order(experts);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return probability[a] > probability[b]; });
    order.erase(order.begin(), order.begin() + mutation.first_rank);
    if (mutation.last_rank_off_by_one) order[top_k - 1] = order[top_k];
    float chosen = 0;
    for (std::size_t k = 0; k < top_k; ++k) chosen += probability[order[k]] / all;

    std::vector<float> sum(static_cast<std::size_t>(hidden));
    std::vector<Element> act(static_cast<std::size_t>(intermediate));
    for (std::size_t k = 0; k < top_k; ++k) {
      const float weight = probability[order[k]] / all / (mutation.renormalise ? chosen : 1.0F);
      const auto matrix = static_cast<std::int64_t>(order[k]) * intermediate * hidden;
      for (std::int64_t i = 0; i < intermediate; ++i) {
        const float gate = stored<Element>(
            sum_of_products(row, weights.gate.as<const Element>() + matrix + i * hidden, hidden,
                            mutation.operands));
        const float up = stored<Element>(sum_of_products(
            row, weights.up.as<const Element>() + matrix + i * hidden, hidden, mutation.operands));
        act[static_cast<std::size_t>(i)] =
            from_float<Element>(gate / (1.0F + std::exp(-gate)) * up);
      }
      for (std::int64_t h = 0; h < hidden; ++h) {
        const float out = stored<Element>(sum_of_products(
            act.data(), weights.down.as<const Element>() + matrix + h * intermediate, intermediate,
            mutation.operands));
        sum[static_cast<std::size_t>(h)] += weight * out;
      }
    }
    for (std::int64_t h = 0; h < hidden; ++h) {
      y.as<Element>()[token * hidden + h] = from_float<Element>(sum[static_cast<std::size_t>(h)]);
    }
  }
}

inline void forward(const Problem& problem, const Weights& weights, const TensorView& x,
                    const TensorView& y, const Mutation& mutation = {}) {
  with_element_type(problem.dtype, [&]<class Element>() {
    forward_as<Element>(problem.shape, weights, x, y, mutation);
  });
}

}  // namespace moe::textbook
