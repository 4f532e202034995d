#include "cuda/ops/persistent_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/check.h"
#include "core/expert_set.h"
#include "cuda/ops/tile_order.h"

namespace moe::cuda {
namespace {

/// A kind of tile and how rows reach it.
struct Kind {
  int largest_tile;
  bool gathers;
};
constexpr Kind kKinds[] = {{kGatheringTile, true},
                           {kGatheringTile, false},
                           {kDeepTile, false},
                           {kDeepTile, true},
                           {kCooperativeTile, true}};

/// An order of tiles beside the heuristic's.
struct OrderVariation {
  double together;  // times as many tiles of an expert
  bool otherwise;   // divided between L2's partitions where the heuristic would not, or the reverse
};
constexpr OrderVariation kOrders[] = {{1, false}, {0.5, false}, {2, false}, {1, true}};

std::string name_of(const Kind& kind) {
  return fmt::format("tiles of {} rows{}", kind.largest_tile,
                     kind.gathers ? " that gather" : ", permuted before");
}

/// NOTE: clusters that begin at different times share less of what they read: 3 to 8 % lost at Mixtral, where
/// several row tiles read the same weights (docs/levels/level08_persistent.md).
bool down_begins_early(const GroupedGemmSpec& down, const GroupedGemmConfig& config,
                       std::int64_t rows, const DeviceFacts& facts) {
  const RowSplit share(static_cast<int>((rows + down.experts - 1) / down.experts),
                       config.largest_tile);
  return config.weights_read_once &&
         begins_early(down.experts * share.tiles * ((down.feature_blocks + 1) / 2),
                      facts.multiprocessors / 2);
}

PersistentPlan plan_of(const PersistentSpecs& specs, std::int64_t rows, const Kind& kind,
                       const DeviceFacts& facts) {
  PersistentPlan plan{.gate_up = choose_grouped_gemm(specs.gate_up, rows, kind.largest_tile, facts),
                      .down = choose_grouped_gemm(specs.down, rows, kind.largest_tile, facts)};
  plan.gate_up.gathers = kind.gathers;
  plan.down_begins_early = down_begins_early(specs.down, plan.down, rows, facts);
  return plan;
}

// The rule's borders, from what was fastest among all candidates at the sizes of all presets
// (docs/levels/level08_persistent.md#the-rule).
/// Whether I is at most H / 2.
bool is_narrow(const PersistentSpecs& specs) {
  return 2 * specs.down.k_blocks <= specs.gate_up.k_blocks;
}
/// H·I, in blocks of 64 x 64, at most 3.2 million and at least 20 million.
bool is_small(const PersistentSpecs& specs) {
  return specs.gate_up.k_blocks * specs.down.k_blocks <= 800;
}
bool is_large(const PersistentSpecs& specs) {
  return specs.gate_up.k_blocks * specs.down.k_blocks >= 5000;
}
/// Whether the first product makes so little of a row, and has so many, that a warp that gathers is waited
/// for, whose pieces have what room tiles of kGatheringTile leave.
bool outruns_gather(const PersistentSpecs& specs, std::int64_t mean_rows) {
  return specs.gate_up.feature_blocks <= 8 && mean_rows > 96;
}
/// Whether its products are so short that a stage more is worth smaller tiles.
bool is_short(const PersistentSpecs& specs, std::int64_t mean_rows) {
  return mean_rows > kGatheringTile && specs.gate_up.k_blocks <= 8;
}
/// Whether more pieces of rows on their way are, so that gathering keeps up.
bool gathers_much(const PersistentSpecs& specs, std::int64_t mean_rows) {
  return mean_rows > kGatheringTile && !is_short(specs, mean_rows) && specs.gate_up.k_blocks < 32 &&
         outruns_gather(specs, mean_rows);
}
/// Whether a mean expert is two tiles, and not narrow.
bool reads_weights_twice(const PersistentSpecs& specs, std::int64_t mean_rows, int tile) {
  return !is_narrow(specs) && (mean_rows + tile - 1) / tile == 2;
}

/// Fewest rows of a mean expert at which two blocks that share its rows have something to do each.
constexpr std::int64_t kFewestCooperativeRows = kCooperativeTile * 3 / 10;
/// Tiles of a mean expert from which on its weights are certain to be read again.
constexpr std::int64_t kWeightsReadAgain = 4;

/// Blocks of the shorter reduction.
std::int64_t fewest_k_blocks(const PersistentSpecs& specs) {
  return std::min(specs.gate_up.k_blocks, specs.down.k_blocks);
}

/// Why a kind of tile is not timed; "" when it is.
std::string pruned(const Kind& kind, const PersistentSpecs& specs, std::int64_t mean_rows,
                   const DeviceFacts& facts) {
  if (const std::size_t bytes = grouped_gemm_shared_bytes(kind.largest_tile, kind.gathers);
      bytes > facts.shared_bytes_per_block) {
    return fmt::format("{} bytes of shared memory, a block has {}", bytes,
                       facts.shared_bytes_per_block);
  }
  if (kind.largest_tile == kCooperativeTile && mean_rows < kFewestCooperativeRows) {
    return fmt::format("{} rows a mean expert, two blocks share its rows from {} on", mean_rows,
                       kFewestCooperativeRows);
  }
  if (kind.largest_tile == kCooperativeTile && fewest_k_blocks(specs) < kFewestCooperativeSteps) {
    return fmt::format("{} blocks of 64 in a reduction, two blocks share a tile from {} on",
                       fewest_k_blocks(specs), kFewestCooperativeSteps);
  }
  return {};
}

GroupedGemmConfig reordered(GroupedGemmConfig config, const OrderVariation& order) {
  config.tiles_together = std::max(1, static_cast<int>(config.tiles_together * order.together));
  if (order.otherwise) config.by_partition = !config.by_partition;
  return config;
}

/// The same with the least number that cuts a mean expert's tiles into as many parts: orders that differ for other
/// experts only count as one, for which stands the one nearest to the heuristic's.
GroupedGemmConfig least(GroupedGemmConfig config, std::int64_t mean_rows) {
  const int tiles = std::max(1, RowSplit(static_cast<int>(mean_rows), config.largest_tile).tiles);
  config.tiles_together = divide_up(tiles, divide_up(tiles, config.tiles_together));
  return config;
}

}  // namespace

int choose_row_tile(const PersistentSpecs& specs, std::int64_t mean_rows, std::int64_t experts,
                    const DeviceFacts& facts) {
  // Cooperating blocks take items that are large: there have to be enough for all clusters.
  const std::int64_t feature_blocks =
      std::min(specs.gate_up.feature_blocks, specs.down.feature_blocks);
  const std::int64_t items = experts * ((feature_blocks + 1) / 2);
  const std::int64_t clusters = facts.multiprocessors / 2;
  // Where pingpong would cut most experts in two, and the larger tile holds nearly all of them whole.
  const bool one_tile_for_two =
      mean_rows >= kGatheringTile && mean_rows <= kCooperativeTile * 9 / 10;
  const bool can_cooperate = fewest_k_blocks(specs) >= kFewestCooperativeSteps;
  if (can_cooperate && one_tile_for_two && is_narrow(specs) && 2 * items >= 3 * clusters) {
    return kCooperativeTile;
  }
  // Or where nearly all fit either block whole.
  const bool fits_a_block = mean_rows >= kFewestCooperativeRows && mean_rows <= kDeepTile;
  if (can_cooperate && fits_a_block && (is_narrow(specs) || is_small(specs)) &&
      items >= 3 * clusters) {
    return kCooperativeTile;
  }
  if (is_short(specs, mean_rows) || gathers_much(specs, mean_rows)) return kDeepTile;
  if (is_large(specs) && reads_weights_twice(specs, mean_rows, kGatheringTile)) {
    return kGatheringTile;
  }
  // The deeper ring, where they are several tiles that fit it, with the same room. A single tile an
  // expert takes the larger one: an expert with a few rows more than the smaller would read its weights
  // twice.
  const std::int64_t tiles = (mean_rows + kGatheringTile - 1) / kGatheringTile;
  const bool fits = (mean_rows + mean_rows / 8) / std::max<std::int64_t>(tiles, 1) <= kDeepTile;
  return tiles > 1 && fits ? kDeepTile : kGatheringTile;
}

PersistentSpecs::PersistentSpecs(const Problem& problem) {
  const PaddedShape padded(problem);
  const std::int64_t experts = with_shared_slots(problem).experts;
  const bool plain = problem.activation == Activation{} && !problem.expert_bias;
  gate_up = {.epilogue = plain                        ? GemmEpilogue::kSwiGLU
                         : problem.activation.gated() ? GemmEpilogue::kGated
                                                      : GemmEpilogue::kReLU2,
             .experts = experts,
             .feature_blocks = padded.gate_up().feature_blocks,
             .k_blocks = padded.gate_up().k_blocks,
             .out_columns = padded.intermediate,
             .activation = ActivationStep::of(problem.activation)};
  down = {.epilogue = problem.expert_bias ? GemmEpilogue::kStoreBias : GemmEpilogue::kStore,
          .experts = experts,
          .feature_blocks = padded.down().feature_blocks,
          .k_blocks = padded.down().k_blocks,
          .out_columns = padded.hidden};
}

std::string to_string(const PersistentPlan& plan) {
  return fmt::format("gate|up: {}, {}; down: {}{}", to_string(plan.gate_up),
                     !plan.gate_up.gathers        ? "rows permuted before"
                     : plan.gate_up.cooperative() ? "rows loaded in the tokens' order"
                                                  : "rows gathered beside the products",
                     to_string(plan.down),
                     plan.down_begins_early ? ", begun on finished row tiles" : "");
}

PersistentPlan heuristic_plan(const Problem& problem, std::int64_t tokens,
                              const DeviceFacts& facts) {
  const Shape& shape = problem.shape;
  const PersistentSpecs specs(problem);
  const std::int64_t rows = tokens * shape.top_k;
  const std::int64_t mean_rows = (rows + shape.experts - 1) / shape.experts;
  const int tile = choose_row_tile(specs, mean_rows, shape.experts, facts);
  // Large ones' rows are made before, so that two tiles with the same weights wait for nothing but these.
  const bool twice = reads_weights_twice(specs, mean_rows, tile);
  const bool gathers = tile == kGatheringTile
                           ? !outruns_gather(specs, mean_rows) && !(twice && is_large(specs))
                           : tile == kCooperativeTile || gathers_much(specs, mean_rows);
  return plan_of(specs, rows, {tile, gathers && !problem.router.weight_on_input}, facts);
}

PersistentCandidates candidate_plans(const Problem& problem, std::int64_t tokens,
                                     const DeviceFacts& facts) {
  const Shape& shape = problem.shape;
  const PersistentSpecs specs(problem);
  const std::int64_t rows = tokens * shape.top_k;
  const std::int64_t mean_rows = (rows + shape.experts - 1) / shape.experts;
  PersistentCandidates candidates;
  std::vector<PersistentPlan> least_plans;
  const auto add = [&](const PersistentPlan& plan) {
    const PersistentPlan same{.gate_up = least(plan.gate_up, mean_rows),
                              .down = least(plan.down, mean_rows),
                              .down_begins_early = plan.down_begins_early};
    if (std::find(least_plans.begin(), least_plans.end(), same) != least_plans.end()) return;
    least_plans.push_back(same);
    candidates.plans.push_back(plan);
  };
  add(heuristic_plan(problem, tokens, facts));
  for (Kind kind : kKinds) {
    if (problem.router.weight_on_input) kind.gathers = false;  // twice the same: added once
    if (const std::string reason = pruned(kind, specs, mean_rows, facts); !reason.empty()) {
      candidates.pruned.push_back(name_of(kind) + ": " + reason);
      continue;
    }
    const PersistentPlan base = plan_of(specs, rows, kind, facts);
    const bool either = mean_rows <= kWeightsReadAgain * kind.largest_tile;
    if (!either) {
      candidates.pruned.push_back(fmt::format("{}, weights read once: a mean expert has {} rows",
                                              name_of(kind), mean_rows));
    }
    for (const OrderVariation& order : kOrders) {
      for (const bool once : {false, true}) {
        if (once && !either) continue;
        PersistentPlan plan = base;
        plan.gate_up = reordered(base.gate_up, order);
        plan.down = reordered(base.down, order);
        plan.gate_up.weights_read_once = plan.down.weights_read_once = once;
        plan.down_begins_early = down_begins_early(specs.down, plan.down, rows, facts);
        add(plan);
      }
    }
  }
  return candidates;
}

std::vector<std::int64_t> token_buckets(std::int64_t tokens) {
  std::vector<std::int64_t> buckets = {tokens};
  std::int64_t power = 1;
  while (power < tokens) power *= 2;
  for (power /= 2; power >= 1; power /= 2) buckets.push_back(power);
  return buckets;
}

std::size_t bucket_of(const std::vector<std::int64_t>& buckets, std::int64_t tokens) {
  MOE_INTERNAL_CHECK(!buckets.empty() && tokens <= buckets.front(), "no bucket for {} tokens",
                     tokens);
  std::size_t smallest = 0;
  while (smallest + 1 < buckets.size() && buckets[smallest + 1] >= tokens) ++smallest;
  return smallest;
}

}  // namespace moe::cuda
