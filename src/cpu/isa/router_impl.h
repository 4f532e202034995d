// Scores of router logits, for the tier whose Vector was included before.
#pragma once

#include <cstdint>

#include "cpu/isa/activation_impl.h"

namespace moe::cpu {
namespace {

/// values[i] = f(values[i]) for vectors, then for the rest through a padded copy.
template <class Function>
inline void map_in_place(float* values, std::int64_t n, const Function& f) {
  constexpr std::int64_t kLanes = Vector::kLanes;
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Vector::store(values + i, f(Vector::load(values + i)));
  if (i == n) return;
  float edge[kLanes] = {};
  for (std::int64_t lane = 0; lane < n - i; ++lane) edge[lane] = values[i + lane];
  Vector::store(edge, f(Vector::load(edge)));
  for (std::int64_t lane = 0; lane < n - i; ++lane) values[i + lane] = edge[lane];
}

/// 1 / (1 + exp(-v)); 0 for -infinity.
inline void sigmoid_in_place(float* values, std::int64_t n) {
  const Vector::F one = Vector::set1(1.0F);
  map_in_place(values, n, [&](Vector::F v) {
    return Vector::div(one, Vector::add(one, exponential(Vector::sub(Vector::zero(), v))));
  });
}

/// sqrt(log(1 + exp(v))) = sqrt(max(v, 0) + log(1 + z)), z = exp(-|v|), with
/// log(1 + z) = 2·atanh(s) and s = z/(2 + z) <= 1/3: the first term left out, s^17·2/17, is below
/// 1e-9 of the sum.
inline void sqrt_softplus_in_place(float* values, std::int64_t n) {
  using V = Vector;
  map_in_place(values, n, [](V::F v) {
    const V::F positive = V::max(V::zero(), v);
    const V::F minus = V::sub(V::zero(), v);
    const V::F z = exponential(V::min(v, minus));
    const V::F s = V::div(z, V::add(V::set1(2.0F), z));
    const V::F square = V::mul(s, s);
    V::F sum = V::set1(2.0F / 15.0F);
    sum = V::fma(sum, square, V::set1(2.0F / 13.0F));
    sum = V::fma(sum, square, V::set1(2.0F / 11.0F));
    sum = V::fma(sum, square, V::set1(2.0F / 9.0F));
    sum = V::fma(sum, square, V::set1(2.0F / 7.0F));
    sum = V::fma(sum, square, V::set1(2.0F / 5.0F));
    sum = V::fma(sum, square, V::set1(2.0F / 3.0F));
    sum = V::fma(sum, square, V::set1(2.0F));
    return V::sqrt(V::fma(sum, s, positive));
  });
}

/// Sum of exp(values[i] - largest).
inline float sum_of_exponentials(const float* values, std::int64_t n, float largest) {
  constexpr std::int64_t kLanes = Vector::kLanes;
  const Vector::F most = Vector::set1(largest);
  Vector::F sum = Vector::zero();
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    sum = Vector::add(sum, exponential(Vector::sub(Vector::load(values + i), most)));
  }
  float total = Vector::sum(sum);
  if (i == n) return total;
  float edge[kLanes] = {};
  for (std::int64_t lane = 0; lane < n - i; ++lane) edge[lane] = values[i + lane];
  Vector::store(edge, exponential(Vector::sub(Vector::load(edge), most)));
  for (std::int64_t lane = 0; lane < n - i; ++lane) total += edge[lane];
  return total;
}

}  // namespace
}  // namespace moe::cpu
