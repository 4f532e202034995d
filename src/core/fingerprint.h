// The 64-bit fingerprint of a tensor's bytes: one definition for the host and for device kernels, so
// that both see the same number for the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define MOE_ON_BOTH_SIDES __host__ __device__
#else
#define MOE_ON_BOTH_SIDES
#endif

namespace moe {

/// What word number `index` adds to the fingerprint. For a fixed index every step is a bijection of
/// the word (Steele et al. 2014, "Fast splittable pseudorandom number generators": the finaliser of
/// SplitMix64), so that changing one word always changes the sum; the index makes places differ.
MOE_ON_BOTH_SIDES constexpr std::uint64_t fingerprint_term(std::uint64_t word,
                                                           std::uint64_t index) {
  std::uint64_t mixed = word + (index + 1) * 0x9e3779b97f4a7c15ULL;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9ULL;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebULL;
  return mixed ^ (mixed >> 31);
}

/// The fingerprint of `bytes` bytes is the sum of the terms of their 64-bit words, modulo 2^64, the
/// last word filled up with zeros, and of fingerprint_term(bytes, 2^63). A sum can be taken in any
/// order, and so in parallel.
MOE_ON_BOTH_SIDES constexpr std::uint64_t fingerprint_of_length(std::uint64_t bytes) {
  return fingerprint_term(bytes, std::uint64_t{1} << 63);
}

}  // namespace moe
