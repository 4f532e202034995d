#include "cuda/ops/route_front_plan.h"

#include <fmt/format.h>

#include <algorithm>

namespace moe::cuda {
namespace {

constexpr std::int64_t kBlockDepth = 128;  // of the reduction, a stage
constexpr std::int64_t kWarps = 32;        // of a block

std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

/// Cycles, from bytes. Rates of an H200 in bytes a cycle.
double estimate(std::int64_t tokens, std::int64_t hidden, std::int64_t given, std::int64_t tile,
                std::int64_t splits) {
  const std::int64_t experts = (given + 63) / 64 * 64;  // of a box
  constexpr double kIntoBlock = 40;                     // from L2, one multiprocessor alone
  constexpr double kFromMemory = 2300;                  // of the whole device
  constexpr double kFromNeighbour = 16;                 // shared memory of another block
  constexpr double kClusterBarrier = 600;
  constexpr double kToken = 2300;  // each warp of a block chooses for one
  const std::int64_t steps = divide_up(divide_up(hidden, kBlockDepth), splits);  // of a block
  const std::int64_t block_bytes = (tile + experts) * kBlockDepth * 2 * steps;
  const double supply = std::max(static_cast<double>(block_bytes) / kIntoBlock,
                                 static_cast<double>(tokens * hidden * 2) / kFromMemory);
  const std::int64_t own = tile / splits;  // tokens of a block
  const std::int64_t foreign_bytes = (tile - own) * experts * 4;
  const double exchange =
      splits == 1 ? 0 : kClusterBarrier + static_cast<double>(foreign_bytes) / kFromNeighbour;
  const std::int64_t in_turn = divide_up(own, kWarps);  // tokens of a warp
  return supply + exchange + static_cast<double>(in_turn) * kToken;
}

}  // namespace

std::string to_string(const FrontPlan& plan) {
  return plan.clusters == 0 ? std::string("none")
                            : fmt::format("{} x {} tokens, reduction in {}", plan.clusters,
                                          plan.tile_tokens, plan.splits);
}

FrontPlan plan_front(std::int64_t tokens, std::int64_t hidden, std::int64_t experts,
                     const FrontMachine& machine) {
  FrontPlan best;
  double least = 0;
  if (experts > kMostFrontExperts || hidden % 8 != 0) return best;
  for (const std::int64_t tile : {32, 64, 128}) {
    for (std::size_t i = 0; i < machine.clusters.size(); ++i) {
      const std::int64_t splits = FrontMachine::kSplits[i];
      const std::int64_t clusters = (tokens + tile - 1) / tile;
      if (clusters > machine.clusters[i] || splits * kBlockDepth > hidden + kBlockDepth - 1)
        continue;
      const double cycles = estimate(tokens, hidden, experts, tile, splits);
      if (best.clusters > 0 && cycles >= least) continue;
      least = cycles;
      best = {static_cast<int>(tile), static_cast<int>(splits), static_cast<int>(clusters)};
    }
  }
  return best;
}

}  // namespace moe::cuda
