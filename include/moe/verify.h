// Verification: a Layer's output against an fp64 oracle.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "moe/layer.h"

namespace moe {

/// How far an output is from the oracle's. Relative errors are Euclidean: |y - r| / |r|.
struct Comparison {
  bool passed = false;          ///< tolerance_used <= 1 and non_finite == 0; NaN anywhere fails
  double max_row_error = 0;     ///< largest relative error of one row of y
  std::int64_t worst_row = -1;  ///< token with that error
  double global_error = 0;      ///< relative error over all compared rows together
  std::int64_t non_finite = 0;  ///< NaN or infinite elements of y, not part of the errors
  std::int64_t rows_compared = 0;
  std::int64_t ambiguous_rows =
      0;                      ///< rows whose top-k is a numerical tie: any valid choice accepted
  double tolerance = 0;       ///< largest max_row_error that passes
  double tolerance_used = 0;  ///< max_row_error / tolerance; 1 is the limit
  [[nodiscard]] std::string describe() const;
};

/// Largest relative row error a correct implementation may have, from the dtype's unit roundoff and
/// the reduction lengths H and I. docs/verification.md derives it.
[[nodiscard]] double row_tolerance(const Problem& problem);

/// The answers of the fp64 oracle for one problem, one set of weights and one input. Computed once,
/// compared with many outputs. All rows when T·K·H·I is small, else a sample of at least 64 tokens
/// that touches every active expert; all columns always.
class Oracle {
 public:
  /// weights and x are read during construction only.
  Oracle(const Problem& problem, const Weights& weights, const TensorView& x,
         std::uint64_t sample_seed = 0);
  Oracle(Oracle&&) noexcept;
  Oracle& operator=(Oracle&&) noexcept;
  ~Oracle();

  /// Compares host tensor y[T,H] (the problem's dtype) with the answers. y must not hold the right
  /// answer of an earlier run: poison it with NaN before each forward.
  [[nodiscard]] Comparison compare(const TensorView& y) const;

  [[nodiscard]] const std::vector<std::int64_t>& tokens() const;  ///< compared rows, ascending
  [[nodiscard]] const std::vector<std::int64_t>& tokens_per_expert()
      const;  ///< [E], over all T tokens
  [[nodiscard]] std::int64_t active_experts() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Fills y with NaN (every element), so that what forward does not write is seen.
void poison(const TensorView& y);

}  // namespace moe
