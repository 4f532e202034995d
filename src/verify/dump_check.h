// Layers against what another implementation computed: x and y from a file.
#pragma once

#include <optional>

#include "moe/verify.h"
#include "verify/guarded.h"

namespace moe {

/// One input, the output that others computed for it, and the oracle's answers, which say how far two
/// right outputs can be apart. Weights, x and expected are host memory that outlives it.
class DumpCheck {
 public:
  /// x[T,H] of the problem's dtype, T = problem.shape.tokens; expected[T,H] fp32.
  DumpCheck(const Problem& problem, const Weights& weights, const TensorView& x,
            const TensorView& expected);

  /// The output of the others against the oracle's answers.
  [[nodiscard]] Comparison of_expected() const;
  /// One forward into a poisoned y, which is then compared with the output of the others
  /// (Oracle::compare with `expected`). Throws what forward throws.
  [[nodiscard]] Comparison of(Layer& layer);

 private:
  [[nodiscard]] const Oracle& oracle(Operands operands);

  Problem problem_;
  Weights weights_;
  GuardedTensor x_;
  TensorView expected_;
  GuardedTensor y_;
  Oracle oracle_;
  std::optional<Oracle> fp8_oracle_;  // made when the first layer of such operands comes
};

}  // namespace moe
