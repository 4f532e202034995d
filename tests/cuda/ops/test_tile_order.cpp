// How rows are cut into tiles and in which order work is handed out: host arithmetic, no GPU needed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include "cuda/ops/grouped_gemm_sm90.h"
#include "cuda/ops/pack_blocked.h"
#include "cuda/ops/tile_order.h"

namespace moe::cuda {
namespace {

TEST(RowSplit, CoversEveryRowOnceWithTilesOfNearlyEqualSize) {
  for (const int largest : {16, 128, 192, 256}) {
    for (int rows = 0; rows <= 1200; ++rows) {
      const RowSplit split(rows, largest);
      SCOPED_TRACE(testing::Message() << rows << " rows, tiles of " << largest);
      ASSERT_EQ(split.tiles, (rows + largest - 1) / largest);
      int next = 0;
      for (int i = 0; i < split.tiles; ++i) {
        ASSERT_EQ(split.first_row(i), next);
        ASSERT_EQ(split.tile_rows(i) % kRowUnit, 0);
        ASSERT_LE(split.tile_rows(i), largest);
        ASSERT_GE(split.tile_rows(i), split.largest() - kRowUnit);
        ASSERT_GT(split.tile_rows(i), 0);
        next += split.tile_rows(i);
      }
      ASSERT_EQ(next, (rows + kRowUnit - 1) / kRowUnit * kRowUnit);
    }
  }
}

TEST(RowSplit, TheListIsNeverLongerThanItsBound) {
  constexpr int kLargest = 192;
  for (const std::vector<int>& counts :
       {std::vector<int>{1, 1, 1}, {0, 0, 700}, {192, 192, 192}, {193, 193, 1}, {0, 0, 1}}) {
    std::int64_t tiles = 0;
    std::int64_t rows = 0;
    for (const int count : counts) {
      tiles += RowSplit(count, kLargest).tiles;
      rows += count;
    }
    EXPECT_LE(tiles, most_row_tiles(rows, static_cast<std::int64_t>(counts.size()), kLargest));
  }
}

TEST(Spread, TakesTwoListsEvenlyInTurns) {
  for (const int first : {0, 1, 2, 7, 64, 101}) {
    for (const int second : {0, 1, 3, 64, 250}) {
      SCOPED_TRACE(testing::Message() << first << " and " << second);
      const int all = first + second;
      int next_of_first = 0;
      int next_of_second = first;
      for (int place = 0; place < all; ++place) {
        const double even = static_cast<double>(place) * first / all;
        ASSERT_LE(std::abs(next_of_first - even), 1.0) << "of the first in front of " << place;
        const int index = spread(place, first, all);
        ASSERT_EQ(index, index < first ? next_of_first++ : next_of_second++);
      }
      ASSERT_EQ(next_of_first, first);
      ASSERT_EQ(next_of_second, all);
    }
  }
  // What rounds in fp32, either way, and is beyond 32 bits in between.
  std::int64_t state = 1;
  for (int i = 0; i < 10000; ++i) {
    const auto draw = [&](std::int64_t below) {
      state = state * 48271 % 2147483647;
      return state % below;
    };
    const std::int64_t all = 1 + draw(2'000'000'000);
    const std::int64_t first = draw(all);
    const std::int64_t place = draw(all);
    const std::int64_t before = place * first / all;
    const bool of_first = (place + 1) * first / all > before;
    ASSERT_EQ(spread(static_cast<int>(place), static_cast<int>(first), static_cast<int>(all)),
              of_first ? before : first + place - before)
        << place << " of " << first << " and " << all;
  }
  EXPECT_EQ(spread(1'999'999'999, 1'000'000'000, 2'000'000'000), 999'999'999);
  EXPECT_EQ(spread(1'999'999'998, 1'000'000'000, 2'000'000'000), 1'999'999'999);
}

TEST(TileOrder, LightExpertsHaveLessThanHalfOfTheMean) {
  EXPECT_TRUE(is_light(127, 192, 128 * 256, 128));
  EXPECT_FALSE(is_light(128, 192, 128 * 256, 128));
  EXPECT_FALSE(is_light(200, 192, 8 * 4096, 8)) << "two tiles share its weights";
  EXPECT_FALSE(is_light(5, 192, 5, 1));
}

/// Items in the order of their tickets, as a scheduler works them out, of experts with these numbers of tiles.
std::vector<std::pair<int, int>> items_of(const std::vector<int>& tiles_of_experts, int pairs,
                                          int together) {
  struct Tile {
    int index;
    int tiles;
  };
  std::vector<Tile> list;
  int several = 0;
  for (const bool single : {false, true}) {
    for (const int tiles : tiles_of_experts) {
      for (int i = 0; i < tiles && (tiles == 1) == single; ++i) list.push_back({i, tiles});
    }
    if (!single) several = static_cast<int>(list.size());
  }
  const TileOrder order{static_cast<int>(list.size()), several, pairs, together};
  std::vector<std::pair<int, int>> items;
  for (int ticket = 0; ticket < order.items(); ++ticket) {
    TileOrder::Item item = order.at(ticket);
    const Tile& tile = list.at(static_cast<std::size_t>(item.row_tile));
    if (tile.tiles > 1) item = order.of_expert(item, tile.index, tile.tiles);
    items.emplace_back(item.row_tile, item.feature_pair);
  }
  return items;
}

TEST(TileOrder, HandsOutEveryItemOnce) {
  for (const std::vector<int>& tiles : {std::vector<int>{1},
                                        {2},
                                        {1, 1, 1},
                                        {3, 3, 3},
                                        {16, 1, 5, 2, 1, 1, 1, 1, 9},
                                        {0, 1, 0, 100},
                                        {64, 65}}) {
    const int row_tiles = std::accumulate(tiles.begin(), tiles.end(), 0);
    for (const int pairs : {1, 2, 7, 8, 9, 23}) {
      for (const int together : {1, 2, 4, 8, 64, 1000}) {
        const auto items = items_of(tiles, pairs, together);
        std::set<std::pair<int, int>> seen;
        for (const auto& [row_tile, pair] : items) {
          ASSERT_TRUE(row_tile >= 0 && row_tile < row_tiles && pair >= 0 && pair < pairs)
              << row_tile << ", " << pair;
          seen.emplace(row_tile, pair);
        }
        ASSERT_EQ(static_cast<int>(seen.size()), row_tiles * pairs)
            << testing::PrintToString(tiles) << " x " << pairs << ", " << together << " together";
      }
    }
  }
}

TEST(TileOrder, TilesOfAnExpertTakeTurnsOnItsWeights) {
  using Items = std::vector<std::pair<int, int>>;
  EXPECT_EQ(
      items_of({3, 2}, 2, 8),
      (Items{{0, 0}, {1, 0}, {2, 0}, {0, 1}, {1, 1}, {2, 1}, {3, 0}, {4, 0}, {3, 1}, {4, 1}}));
  // As many as are allowed together, in parts that differ by one at most.
  EXPECT_EQ(
      items_of({5}, 2, 4),
      (Items{{0, 0}, {1, 0}, {2, 0}, {0, 1}, {1, 1}, {2, 1}, {3, 0}, {4, 0}, {3, 1}, {4, 1}}));
  // Those that are alone have one feature pair after the other, between the others'.
  EXPECT_EQ(items_of({2, 1, 1}, 2, 4),
            (Items{{2, 0}, {0, 0}, {2, 1}, {1, 0}, {3, 0}, {0, 1}, {3, 1}, {1, 1}}));
}

TEST(TileOrder, LargeNumbersOfTilesDoNotOverflow) {
  const TileOrder order{2'000'000, 2'000'000, 1000, 64};
  const TileOrder::Item last = order.of_expert({1'999'999, 999}, 1'999'999, 2'000'000);
  EXPECT_EQ(last.row_tile, 1'999'999);
  EXPECT_EQ(last.feature_pair, 999);
}

TEST(ChooseGroupedGemm, FitsTheDeviceAndTheShape) {
  DeviceFacts facts;
  facts.l2_bytes = std::size_t{60} << 20;
  const auto choose = [&](std::int64_t feature_blocks, std::int64_t k_blocks, int tile = 192,
                          std::int64_t rows = 8192) {
    return choose_grouped_gemm(
        {.experts = 8, .feature_blocks = feature_blocks, .k_blocks = k_blocks, .out_columns = 64},
        rows, tile, facts);
  };
  facts.multiprocessors = 132;
  // 28 tiles of 1.5 MiB, 112 pairs of 2 MiB: 15² · 1.5 / 66 + 2 MiB are read until rows are again, an eighth of L2.
  const GroupedGemmConfig mixtral = choose(224, 64, 192, 8 * 4096);
  EXPECT_EQ(mixtral.largest_tile, 192);
  EXPECT_EQ(mixtral.tiles_together, 15);
  EXPECT_LT(choose(224, 64, kCooperativeTile, 8 * 4096).tiles_together, mixtral.tiles_together);
  EXPECT_EQ(choose(32, 224, 192, 8 * 4096).tiles_together, 4) << "few, whatever L2 holds";
  EXPECT_EQ(choose(16, 100000).tiles_together, 4);
  // Few pairs: weights come from L2 again when the next tile has them.
  EXPECT_EQ(choose(8, 24, 192, 8 * 4096).tiles_together, 1);
  EXPECT_EQ(choose(1, 1).tiles_together, 1);
  EXPECT_TRUE(mixtral.by_partition);
  EXPECT_FALSE(choose(16, 16).by_partition) << "L2 holds 32 MiB of weights";
  EXPECT_TRUE(choose(16, 32, kCooperativeTile).by_partition);
  EXPECT_TRUE(choose(16, 32, kGatheringTile, 8 * 128).weights_read_once);
  EXPECT_FALSE(choose(16, 32, kGatheringTile, 8 * 256).weights_read_once);
  EXPECT_TRUE(choose(16, 32, kCooperativeTile, 8 * 256).weights_read_once);
}

TEST(BeginsEarly, WithManyRoundsOfItems) {
  EXPECT_FALSE(begins_early(0, 66));
  EXPECT_FALSE(begins_early(192, 66));
  EXPECT_TRUE(begins_early(528, 66));
  EXPECT_TRUE(begins_early(1024, 66));
}

TEST(BlockedShape, PadsToWholeBlocks) {
  EXPECT_EQ(BlockedShape::gate_up(2880, 2880).feature_blocks, 45);
  EXPECT_EQ(BlockedShape::gate_up(2880, 2880).k_blocks, 45);
  EXPECT_EQ(BlockedShape::down(2880, 2880).feature_blocks, 23);
  EXPECT_EQ(BlockedShape::gate_up(1, 1).bytes(3), 3U * 16384);
  EXPECT_EQ(BlockedShape::gate_up(7168, 2048).bytes(256), 256ULL * 32 * 112 * 16384);
}

}  // namespace
}  // namespace moe::cuda
