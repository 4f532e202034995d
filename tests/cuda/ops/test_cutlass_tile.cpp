// The choice of the tile, on the host.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "core/rng.h"
#include "cuda/ops/cutlass_tile.h"

namespace moe::cuda {
namespace {

/// Σ ⌈m_e / tile⌉ of one drawn routing.
double drawn_row_tiles(std::int64_t groups, std::int64_t rows, int tile_rows, std::uint64_t seed) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(groups), 0);
  for (std::int64_t row = 0; row < rows; ++row) {
    ++counts[random_bits(51, seed, static_cast<std::uint64_t>(row)) % counts.size()];
  }
  double tiles = 0;
  for (const std::int64_t count : counts) {
    tiles += static_cast<double>((count + tile_rows - 1) / tile_rows);
  }
  return tiles;
}

TEST(CutlassTileChoice, ExpectsTheRowTilesThatRoutingsBring) {
  for (const auto& [groups, rows] :
       {std::pair{8, 8192}, std::pair{128, 32768}, std::pair{128, 16384}, std::pair{256, 32768},
        std::pair{64, 131072}, std::pair{128, 131072}}) {
    for (const CutlassTile tile : kCutlassTiles) {
      double drawn = 0;
      constexpr int kDraws = 20;
      for (int seed = 0; seed < kDraws; ++seed) {
        drawn +=
            drawn_row_tiles(groups, rows, rows_of(tile), static_cast<std::uint64_t>(seed)) / kDraws;
      }
      const double expected = expected_row_tiles(groups, rows, rows_of(tile));
      EXPECT_LE(std::abs(expected - drawn), 0.03 * drawn)
          << groups << " groups, " << rows << " rows, tile " << name_of(tile) << ": " << expected
          << " expected, " << drawn << " drawn";
    }
  }
}

TEST(CutlassTileChoice, HalfATileIsPaddedWhereGroupsVaryByTiles) {
  EXPECT_NEAR(expected_row_tiles(1, 40000, 128), 40000 / 128.0 + 0.5, 0.1);
  EXPECT_NEAR(expected_row_tiles(4, 4 * 64, 192), 4, 1e-6);
}

constexpr TileMachine kMachine{132, std::size_t{50} << 20};

TEST(CutlassTileChoice, PrefersTheTileThatHoldsAGroup) {
  // 128 rows and a few more or less: one tile of 192, but as often as not two of 128.
  EXPECT_EQ(choose_cutlass_tile({256, 4096, 7168}, 256 * 128, kMachine),
            CutlassTile::kCooperative256x192);
  EXPECT_EQ(choose_cutlass_tile({128, 1536, 2048}, 128 * 16, kMachine),
            CutlassTile::kCooperative256x128);
  EXPECT_EQ(choose_cutlass_tile({8, 28672, 4096}, 2, kMachine), CutlassTile::kCooperative256x128);
}

TEST(CutlassTileChoice, PrefersTheTileThatPadsLess) {
  EXPECT_EQ(choose_cutlass_tile({128, 1536, 2048}, 128 * 256, kMachine),
            CutlassTile::kCooperative256x128);
  EXPECT_EQ(choose_cutlass_tile({128, 5760, 2880}, 128 * 512, kMachine),
            CutlassTile::kCooperative256x192);
}

TEST(CutlassTileChoice, PingpongWhereTheWeightsSideBySideStayInL2) {
  const CutlassGemmSpec spec{128, 2048, 768};
  EXPECT_EQ(choose_cutlass_tile(spec, 128 * 1024, kMachine), CutlassTile::kPingpong128x192);
  EXPECT_NE(choose_cutlass_tile(spec, 128 * 1024, {132, std::size_t{8} << 20}),
            CutlassTile::kPingpong128x192);
  // 132 tiles of 128 features; 1024 rows are six tiles of 192 with the same weights.
  EXPECT_NEAR(weights_side_by_side(spec, 128 * 1024, CutlassTile::kPingpong128x192, kMachine),
              132.0 / 6 * 128 * 768 * 2, 1e5);
}

TEST(CutlassTileChoice, NeverExpectsFewerCyclesThanProductsNeed) {
  for (const std::int64_t rows : {1, 100, 5000, 200000}) {
    for (const CutlassTile tile : kCutlassTiles) {
      const CutlassGemmSpec spec{16, 1024, 512};
      const double products = static_cast<double>(rows * spec.n * spec.k);
      EXPECT_GE(expected_cycles(spec, rows, tile, kMachine) * 132 * 2048, products)
          << rows << " rows, " << name_of(tile);
    }
  }
}

}  // namespace
}  // namespace moe::cuda
