// Counter-based random numbers: value i of stream s depends on (seed, s, i) only, so that data is
// the same for any thread count and any subset can be made alone.
#pragma once

#include <cstdint>

namespace moe {

/// 64 well-mixed bits (the finaliser of SplitMix64, Steele et al. 2014, applied to the counter).
constexpr std::uint64_t random_bits(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  std::uint64_t z = seed * 0x9e3779b97f4a7c15ULL + stream * 0xd1342543de82ef95ULL + index;
  z = (z ^ (z >> 32)) * 0xd6e8feb86659fd93ULL;
  z = (z + 0x9e3779b97f4a7c15ULL);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

/// Uniform in (0, 1).
constexpr double random_uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  return (static_cast<double>(random_bits(seed, stream, index) >> 11) + 0.5) * 0x1.0p-53;
}

/// Standard normal, by Box-Muller on two uniforms.
[[nodiscard]] double random_normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t index);

}  // namespace moe
