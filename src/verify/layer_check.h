// The forwards that verify() and the fuzzer put a layer through, and the answers they expect.
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <string>

#include "core/workload.h"
#include "moe/verify.h"
#include "verify/guarded.h"

namespace moe {

/// Two seeded inputs, their oracles and an output, all between canaries. One LayerCheck serves any
/// number of layers made from the same weights, which outlive it.
class LayerCheck {
 public:
  LayerCheck(const Problem& problem, const Weights& weights, std::uint64_t seed, const Skew& skew,
             std::int64_t offset_elements = 0);

  using Forward = std::function<void(const TensorView& x, const TensorView& y)>;

  /// See verify() in moe/verify.h. Any forward, so that the check can be tested on wrong ones.
  /// `operands` as of Layer::operands.
  [[nodiscard]] VerifyResult run(const Forward& forward, Operands operands = Operands::kAsStored);
  /// Of a layer on any backend: where its memory is not the host's, each forward gets copies of x and
  /// of the poisoned y between their canaries, and what it left of them comes back.
  [[nodiscard]] VerifyResult run(Layer& layer);

 private:
  struct Input {
    Tensor original;  // what `given` must still hold after a forward
    GuardedTensor given;
    OwnedRoutes routes;  // of Scoring::kGiven
    Oracle oracle;
    std::optional<Oracle> fp8_oracle;  // made when the first layer of such operands comes
    Input(const Problem& problem, const Weights& weights, const Skew& skew, std::uint64_t seed,
          std::uint64_t variant, std::int64_t offset_elements);
  };

  /// One forward of the first `rows` rows of an input into a poisoned y.
  bool step(VerifyResult& result, const Forward& forward, Operands operands, std::string what,
            Input& input, std::int64_t rows);
  const Oracle& oracle(Input& input, Operands operands);

  Problem problem_;
  Weights weights_;
  std::uint64_t seed_;
  std::array<Input, 2> inputs_;
  GuardedTensor y_;
};

}  // namespace moe
