// Seeded weights and inputs for benches and tests, and the skew of their routing.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "moe/layer.h"

namespace moe {

/// How evenly tokens spread over experts. The skew lives in the data: for all but kUniform, feature
/// 0 of every token is 1 and the router's column 0 carries a bias per expert; the layer itself is
/// unchanged.
struct Skew {
  enum class Kind { kUniform, kZipf, kOneExpert };
  Kind kind = Kind::kUniform;
  /// kZipf: expert of rank r is drawn with probability ~ r^-exponent (ranks are a seeded
  /// permutation).
  double exponent = 0.0;
  /// "uniform" | "zipf:S" with S > 0 | "one-expert" (one expert is chosen by every token, the other
  /// K-1 choices stay uniform). Throws kInvalidArgument.
  static Skew parse(std::string_view text);
  [[nodiscard]] std::string describe() const;
};

/// Weights in the stored layout of moe::Weights, owned.
struct OwnedWeights {
  Tensor router, gate, up, down;
  [[nodiscard]] Weights view() const {
    return {router.view(), gate.view(), up.view(), down.view()};
  }
};

/// Normal weights scaled so that gate, up and y have unit variance for x ~ N(0,1).
[[nodiscard]] OwnedWeights make_weights(const Problem& problem, std::uint64_t seed,
                                        const Skew& skew = {});
/// x[T,H] ~ N(0,1). `variant` numbers independent inputs of one seed.
[[nodiscard]] Tensor make_input(const Problem& problem, std::uint64_t seed, std::uint64_t variant,
                                const Skew& skew = {});

}  // namespace moe
