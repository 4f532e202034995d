// Statistical model of rounding errors: what a correct implementation may lose, as variances.
//
// Every rounding is an independent error, uniform in +-u·|value|, so its variance is u²·value²/3.
// docs/verification.md derives what is used here and says where the model ends.
#pragma once

#include <cstdint>

#include "moe/config.h"

namespace moe::reference {

inline constexpr double kFp32Roundoff = 0x1p-24;  // half the spacing of fp32 values in [1, 2)
inline constexpr double kBf16Roundoff = 0x1p-8;   // the same for bf16: 8 significant bits

inline constexpr double kE4m3Roundoff = 0x1p-4;  // e4m3: 4 significant bits

/// Variance of one fp32 rounding of the value 1.
inline constexpr double kFp32Variance = kFp32Roundoff * kFp32Roundoff / 3;

/// Roundings of a scalar chain such as exp, divide, multiply, counted as 64 independent ones: room
/// for an exp of up to 4 units in the last place, as vectorised ones have.
inline constexpr double kElementwiseVariance = 64 * kFp32Variance;

/// Variance of one rounding of the value 1 to the type in which tensors are stored.
constexpr double storage_variance(DType dtype) {
  const double roundoff = dtype == DType::kBF16 ? kBf16Roundoff : kFp32Roundoff;
  return roundoff * roundoff / 3;
}

/// Variance of the product of two values 1 that were both rounded to the operands' format first; zero
/// for operands that are multiplied as they are stored. What a scale pushes below the format's normal
/// range loses more, but by then it is too small beside the largest values of its sum to matter.
constexpr double operand_variance(Operands operands) {
  return operands == Operands::kFp8 ? 2 * kE4m3Roundoff * kE4m3Roundoff / 3 : 0;
}

/// A sum of n products added one after the other in fp32 has an error of variance
///   of_squares(n)·Σ pᵢ² + of_value(n)·(Σ pᵢ)²,
/// the mean over all orders of the terms. Blocked and vector sums stay below it.
struct SumVariance {
  double of_squares = 0;
  double of_value = 0;
};
constexpr SumVariance sum_variance(std::int64_t n) {
  const auto terms = static_cast<double>(n);
  return {kFp32Variance * (1 + (terms + 1) / 6), kFp32Variance * (terms + 1) / 3};
}

}  // namespace moe::reference
