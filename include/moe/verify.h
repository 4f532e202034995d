// Verification: a Layer's output against an fp64 oracle.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "moe/layer.h"

namespace moe {

/// How far an output is from the oracle's. Relative errors are Euclidean: |y - r| / |r| over one
/// row.
struct Comparison {
  bool passed = false;          ///< tolerance_used <= 1 and non_finite == 0; NaN anywhere fails
  std::int64_t worst_row = -1;  ///< token that uses most of its tolerance; -1: nothing compared
  double max_row_error = 0;     ///< relative error of that row; infinite where r = 0 and y is not
  double tolerance = 0;         ///< relative error which that row may have
  double tolerance_used = 0;    ///< their quotient, the largest of all rows; 1 is the limit
  double global_error = 0;      ///< relative error over all compared rows together
  std::int64_t non_finite = 0;  ///< NaN or infinite elements in all of y, not part of the errors
  std::int64_t rows_compared = 0;
  std::int64_t ambiguous_rows =
      0;  ///< compared rows whose top-k is a numerical tie: any valid choice passes
  /// "row error 3.1e-07 at token 17, 22 % of tolerance; 256 rows", with what failed first if it
  /// did.
  [[nodiscard]] std::string describe() const;
};

/// The relative row error that Oracle allows for unit-scale normal data, from the dtype's unit
/// roundoff and the reduction lengths H and I. The tolerance of a real row comes from its own
/// values (a row with cancellation gets more, a zero row none). docs/verification.md derives both.
[[nodiscard]] double row_tolerance(const Problem& problem, Operands operands = Operands::kAsStored);

struct OracleOptions {
  std::uint64_t sample_seed = 0;
  /// Multiply-adds of experts to spend on more tokens than the smallest sample. The default is about
  /// a second on two cores at H in the thousands.
  double affordable_work = 8e9;
  /// Of the level whose outputs will be compared (Layer::operands).
  Operands operands = Operands::kAsStored;
  Routes routes = {};  ///< of Scoring::kGiven, in host memory; read during construction only
};

/// The answers of the fp64 oracle for one problem, one set of weights and one input. Computed once,
/// compared with many outputs. All rows when that is affordable, else a seeded sample of at least
/// 64 tokens, first and last among them, that touches every active expert; all columns always.
class Oracle {
 public:
  /// x[T',H], T' <= shape.tokens. weights and x are read during construction only. Throws
  /// kInvalidArgument when they do not match the problem or lead to NaN or infinity.
  Oracle(const Problem& problem, const Weights& weights, const TensorView& x,
         const OracleOptions& options = {});
  Oracle(Oracle&&) noexcept;
  Oracle& operator=(Oracle&&) noexcept;
  ~Oracle();

  /// Compares host tensor y (the problem's dtype, or fp32) with the answers. y holds all rows of x, or only
  /// the first ones, from a forward of as many. It must not hold the right answer of an earlier
  /// run: poison it before each forward.
  [[nodiscard]] Comparison compare(const TensorView& y) const;

  /// Compares y with `expected`, fp32 of the same shape, which another implementation computed from the
  /// same x and weights, in place of the answers. Both may be off by the rounding errors of the
  /// problem's dtype, so that a row has twice the tolerance. Where a row's top-k is a tie and the two
  /// took different experts, each must be one of the right answers instead.
  [[nodiscard]] Comparison compare(const TensorView& y, const TensorView& expected) const;

  [[nodiscard]] const std::vector<std::int64_t>& tokens() const;  ///< compared rows, ascending
  [[nodiscard]] const std::vector<std::int64_t>& tokens_per_expert()
      const;  ///< [E], over all rows of x
  [[nodiscard]] std::int64_t active_experts() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Fills y with NaN (every element), so that what forward does not write is seen.
void poison(const TensorView& y);

struct VerifyOptions {
  std::uint64_t seed = 0;
  std::string skew = "uniform";  ///< as BenchOptions::skew; must be that of the weights
};

/// One forward that verify() checked.
struct VerifyStep {
  std::string what;  ///< "input 0", "input 1", "input 0 again", "first 3 tokens", "no tokens"
  Comparison comparison;
};

struct VerifyResult {
  bool passed = false;
  std::string failure;            ///< "" or one sentence: which step, how far off
  std::vector<VerifyStep> steps;  ///< in order; stops at the first failure
  Comparison worst;               ///< the step that used most of its tolerance, or the failed one
};

/// Runs `layer` on two seeded inputs in turn, on the first again (bitwise the same y is required),
/// on its first rows and on none, each time into a poisoned y, and compares each y with the oracle.
/// A cached output, an unwritten row, a write before or after y, a change of x and state left over
/// from the forward before are seen. `weights` are those the layer was created with, in host memory.
[[nodiscard]] VerifyResult verify(Layer& layer, const Weights& weights,
                                  const VerifyOptions& options = {});

/// The same for a layer created here, from seeded weights. Throws what Layer::create throws.
[[nodiscard]] VerifyResult verify(const LayerOptions& layer, const VerifyOptions& options = {});

}  // namespace moe
