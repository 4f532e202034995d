#include "cuda/ops/cutlass_tile.h"

#include <algorithm>
#include <cmath>

namespace moe::cuda {
namespace {

/// Products of bf16 that a multiprocessor's tensor cores add up in a cycle.
constexpr double kProductsPerCycle = 2048;
/// Cycles of a cooperative tile in which the tensor cores wait: its store, the descriptor of the next
/// group, the first loads. Pingpong hides them behind the other warpgroup's products.
/// NOTE: from timings at k = 768 to 2048, see docs/levels/level07_grouped_gemm.md#the-tile.
constexpr double kExposedCycles = 2500;
/// Tiles of rows per group that still count as one. Where a tile holds a group, its weights come from
/// memory once, and with so few rows reading them is what takes the time.
constexpr double kOneTile = 1.05;
/// Share of L2 that the weights side by side may take for pingpong. With more, blocks of neighbouring rows
/// no longer find in L2 what one of them fetched, and tiles of half the features fetch twice as often.
constexpr double kL2Share = 0.25;
/// A tile of fewer rows fetches the weights more often; it has to save this share of the cycles.
constexpr double kWorthMoreFetches = 0.01;

double feature_tiles(const CutlassGemmSpec& spec, CutlassTile tile) {
  const int cluster = features_of(tile) * kCutlassCluster;
  const std::int64_t clusters = (spec.n + cluster - 1) / cluster;
  return static_cast<double>(clusters * kCutlassCluster);
}

}  // namespace

int features_of(CutlassTile tile) {
  return tile == CutlassTile::kPingpong128x192 ? 128 : 256;
}

int rows_of(CutlassTile tile) {
  return tile == CutlassTile::kCooperative256x128 ? 128 : 192;
}

std::string_view name_of(CutlassTile tile) {
  switch (tile) {
    case CutlassTile::kCooperative256x128:
      return "cooperative 256x128";
    case CutlassTile::kCooperative256x192:
      return "cooperative 256x192";
    case CutlassTile::kPingpong128x192:
      return "pingpong 128x192";
  }
  return "unknown";
}

double expected_row_tiles(std::int64_t groups, std::int64_t rows, int tile_rows) {
  // m_e is close to normal, with its mean as variance, and ⌈m_e / tile⌉ counts the multiples of the
  // tile, from 0 on, that it exceeds.
  const double mean = static_cast<double>(rows) / static_cast<double>(groups);
  const double deviation = std::sqrt(mean);
  constexpr double kCertain = 6;  // deviations
  double tiles = std::max(0.0, std::floor((mean - kCertain * deviation) / tile_rows));
  for (double exceeded = tiles * tile_rows; exceeded < mean + kCertain * deviation;
       exceeded += tile_rows) {
    tiles += 0.5 * std::erfc((exceeded + 0.5 - mean) / (deviation * std::sqrt(2.0)));
  }
  return tiles * static_cast<double>(groups);
}

double expected_cycles(const CutlassGemmSpec& spec, std::int64_t rows, CutlassTile tile,
                       const TileMachine& machine) {
  const double tiles =
      feature_tiles(spec, tile) * expected_row_tiles(spec.groups, rows, rows_of(tile));
  const double products = static_cast<double>(features_of(tile)) * rows_of(tile) *
                          static_cast<double>(spec.k) / kProductsPerCycle;
  const double exposed = tile == CutlassTile::kPingpong128x192 ? 0 : kExposedCycles;
  return std::ceil(tiles / machine.multiprocessors) * (products + exposed);
}

double weights_side_by_side(const CutlassGemmSpec& spec, std::int64_t rows, CutlassTile tile,
                            const TileMachine& machine) {
  const double per_group = std::max(
      1.0, expected_row_tiles(spec.groups, rows, rows_of(tile)) / static_cast<double>(spec.groups));
  constexpr double kBytes = 2;
  return machine.multiprocessors / per_group * features_of(tile) * static_cast<double>(spec.k) *
         kBytes;
}

CutlassTile choose_cutlass_tile(const CutlassGemmSpec& spec, std::int64_t rows,
                                const TileMachine& machine) {
  for (const CutlassTile tile : kCutlassTiles) {
    const double tiles = expected_row_tiles(spec.groups, rows, rows_of(tile));
    if (tiles <= kOneTile * static_cast<double>(spec.groups)) return tile;
  }
  const auto cycles = [&](CutlassTile tile) { return expected_cycles(spec, rows, tile, machine); };
  CutlassTile best = CutlassTile::kCooperative256x192;
  if (cycles(CutlassTile::kCooperative256x128) < (1 - kWorthMoreFetches) * cycles(best)) {
    best = CutlassTile::kCooperative256x128;
  }
  constexpr CutlassTile kPingpong = CutlassTile::kPingpong128x192;
  const bool fits = weights_side_by_side(spec, rows, kPingpong, machine) <=
                    kL2Share * static_cast<double>(machine.l2_bytes);
  return fits && cycles(kPingpong) < cycles(best) ? kPingpong : best;
}

}  // namespace moe::cuda
