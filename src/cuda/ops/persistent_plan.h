// How level 8 runs its two products for a number of tokens: tiles, how rows reach the first product, the
// order of tiles. One heuristic choice, and the candidates that the tuner measures against it. Host
// arithmetic.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/ops/grouped_gemm_sm90.h"
#include "cuda/ops/pack_blocked.h"
#include "moe/config.h"

namespace moe::cuda {

/// Sizes of a problem in whole blocks. Where H or I is no multiple of 64, the rest is zeros.
struct PaddedShape {
  std::int64_t hidden;
  std::int64_t intermediate;
  bool gated;

  explicit PaddedShape(const Problem& problem)
      : hidden(blocks_of(problem.shape.hidden, kBlockDepth) * kBlockDepth),
        intermediate(blocks_of(problem.shape.intermediate, kBlockDepth) * kBlockDepth),
        gated(problem.activation.gated()) {}
  /// Without a gate of up alone.
  [[nodiscard]] BlockedShape gate_up() const {
    return gated ? BlockedShape::gate_up(hidden, intermediate)
                 : BlockedShape::up(hidden, intermediate);
  }
  [[nodiscard]] BlockedShape down() const { return BlockedShape::down(hidden, intermediate); }
};

/// Both products, of the routed experts and the parts of a shared one.
struct PersistentSpecs {
  GroupedGemmSpec gate_up;
  GroupedGemmSpec down;

  explicit PersistentSpecs(const Problem& problem);
};

/// The rule for the tile of both products, whose routed experts have `mean_rows` rows on average.
[[nodiscard]] int choose_row_tile(const PersistentSpecs& specs, std::int64_t mean_rows,
                                  std::int64_t experts, const DeviceFacts& facts);

/// What is chosen for a number of tokens. Results do not depend on it: every output is one sum in the
/// order of the reduction, whatever tile it is part of.
struct PersistentPlan {
  GroupedGemmConfig gate_up;  ///< gathers, or a kernel permutes before
  GroupedGemmConfig down;     ///< of the same largest_tile: both products share a list of row tiles
  bool down_begins_early = false;  ///< the second product begins on finished row tiles of the first
  bool operator==(const PersistentPlan&) const = default;
};
/// "gate|up: tiles of 128x192, up to 11 of an expert together, rows gathered beside the products; down: ..."
[[nodiscard]] std::string to_string(const PersistentPlan& plan);

/// What is used where nothing was timed. Goes by the rows of a routed expert: where the router's weight
/// is on the input, rows differ from expert to expert, and a kernel makes them before.
[[nodiscard]] PersistentPlan heuristic_plan(const Problem& problem, std::int64_t tokens,
                                            const DeviceFacts& facts);

struct PersistentCandidates {
  std::vector<PersistentPlan> plans;  ///< the heuristic first; no two that do the same
  std::vector<std::string> pruned;    ///< what was left out and why, a sentence each
};
/// Everything worth timing for forwards of `tokens` tokens: kinds of tiles x orders x whether L2 keeps
/// weights, less what the device or the rows an expert rule out.
[[nodiscard]] PersistentCandidates candidate_plans(const Problem& problem, std::int64_t tokens,
                                                   const DeviceFacts& facts);

/// Numbers of tokens that have a plan of their own, largest first: shape.tokens and the powers of two
/// below. A forward of fewer tokens takes the plan of the next larger one.
[[nodiscard]] std::vector<std::int64_t> token_buckets(std::int64_t tokens);
/// Index of the bucket of a forward of `tokens`, at most buckets.front().
[[nodiscard]] std::size_t bucket_of(const std::vector<std::int64_t>& buckets, std::int64_t tokens);

}  // namespace moe::cuda
