// Activations of one vector. For the tier whose Vector was included before.
#pragma once

#include "cpu/isa/activation_step.h"

namespace moe::cpu {
namespace {

/// exp(x) for fp32 to a few units in the last place; overflows to infinity, NaN stays NaN.
/// exp(x) = exp(x/2)^2, so that both ends of the range come out of the last multiplication:
/// x/2 = n·ln2 + r with |r| <= ln2/2, exp(x/2) = 2^n·exp(r), exp(r) by its Taylor polynomial. The
/// first term left out, r^8/8!, is below 6e-9.
inline Vector::F exponential(Vector::F x) {
  using V = Vector;
  // max and min return their second argument when it is NaN. Beyond the bounds the square is 0 or
  // infinity anyway.
  x = V::min(V::set1(87.0F), V::max(V::set1(-87.0F), V::mul(x, V::set1(0.5F))));
  const V::F magic = V::set1(12582912.0F);  // 1.5·2^23: adding it rounds to an integer
  const V::F shifted = V::fma(x, V::set1(1.44269504F), magic);
  const V::F n = V::sub(shifted, magic);
  V::F r = V::fma(n, V::set1(-0.693359375F), x);  // ln2 in two parts, the first with 9 bits
  r = V::fma(n, V::set1(2.12194440e-4F), r);
  V::F sum = V::set1(1.0F / 5040.0F);
  sum = V::fma(sum, r, V::set1(1.0F / 720.0F));
  sum = V::fma(sum, r, V::set1(1.0F / 120.0F));
  sum = V::fma(sum, r, V::set1(1.0F / 24.0F));
  sum = V::fma(sum, r, V::set1(1.0F / 6.0F));
  sum = V::fma(sum, r, V::set1(0.5F));
  sum = V::fma(sum, r, V::set1(1.0F));
  sum = V::fma(sum, r, V::set1(1.0F));
  // n sits in the low bits of `shifted`; the rest of them leaves at the top of the shift by 23.
  sum = V::add_exponent(sum, shifted);
  return V::mul(sum, sum);
}

/// silu(gate)*up, silu(v) = v / (1 + exp(-v)).
inline Vector::F swiglu(Vector::F gate, Vector::F up) {
  const Vector::F one = Vector::set1(1.0F);
  const Vector::F minus = Vector::sub(Vector::zero(), gate);
  return Vector::mul(Vector::div(gate, Vector::add(one, exponential(minus))), up);
}

/// ActivationStep::Kind::kGated. min and max return their second argument when it is NaN.
inline Vector::F gated(const ActivationStep& step, Vector::F gate, Vector::F up) {
  using V = Vector;
  const V::F limit = V::set1(step.limit);
  const V::F g = V::min(limit, gate);
  const V::F u = V::add(V::max(V::set1(-step.limit), V::min(limit, up)), V::set1(step.up_offset));
  const V::F slope = V::fma(V::mul(g, g), V::set1(step.cubic), V::set1(step.linear));
  const V::F minus = V::sub(V::zero(), V::mul(g, slope));
  return V::mul(V::div(g, V::add(V::set1(1.0F), exponential(minus))), u);
}

/// ActivationStep::Kind::kReLU2.
inline Vector::F relu2(Vector::F up) {
  const Vector::F positive = Vector::max(Vector::zero(), up);
  return Vector::mul(positive, positive);
}

/// Those with a gate.
inline Vector::F activate(const ActivationStep& step, Vector::F gate, Vector::F up) {
  return step.kind == ActivationStep::Kind::kSwiGlu ? swiglu(gate, up) : gated(step, gate, up);
}

}  // namespace
}  // namespace moe::cpu
