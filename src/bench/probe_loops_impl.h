// The probe loops, for the tier whose Lanes was defined before: kFloats per register, F, I, set1,
// multiply_add, sum, load, add, sum_integers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bench/probe_kernels.h"

namespace moe {
namespace {

// An FMA takes 4 cycles and two start per cycle: 8 chains keep the units busy; more does not hurt
// while they all stay in registers, for which every loop over them must be unrolled.
constexpr int kChains = Lanes::kRegisters - 2;
constexpr double kMultiplyAddFlops = 2.0 * kChains * Lanes::kFloats;

float probe_multiply_add(std::int64_t iterations) {
  // Converges to 1: never denormal, never large. Volatile, so that nothing is computed in advance.
  volatile float factor = 0.5F;
  volatile float term = 0.5F;
  const Lanes::F a = Lanes::set1(factor);
  const Lanes::F b = Lanes::set1(term);
  Lanes::F chains[kChains];
#pragma GCC unroll 32
  for (int chain = 0; chain < kChains; ++chain) {
    chains[chain] = Lanes::set1(static_cast<float>(chain));
  }
  for (std::int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 32
    for (Lanes::F& chain : chains) chain = Lanes::multiply_add(chain, a, b);
  }
  float sum = 0;
#pragma GCC unroll 32
  for (const Lanes::F chain : chains) sum += Lanes::sum(chain);
  return sum;
}

std::uint64_t probe_read(const std::byte* from, std::size_t bytes) {
  constexpr std::size_t kWidth = Lanes::kFloats * sizeof(float);
  constexpr int kSums = static_cast<int>(kReadStep / kWidth) < 8 ? kReadStep / kWidth : 8;
  static_assert(kReadStep % (kSums * kWidth) == 0, "one step is a whole number of rounds");
  Lanes::I sums[kSums];
#pragma GCC unroll 8
  for (int i = 0; i < kSums; ++i) sums[i] = Lanes::load(from + i * kWidth);
  for (std::size_t at = kSums * kWidth; at < bytes; at += kSums * kWidth) {
#pragma GCC unroll 8
    for (int i = 0; i < kSums; ++i)
      sums[i] = Lanes::add(sums[i], Lanes::load(from + at + i * kWidth));
  }
  std::uint64_t sum = 0;
#pragma GCC unroll 8
  for (const Lanes::I part : sums) sum += Lanes::sum_integers(part);
  return sum;
}

}  // namespace
}  // namespace moe
