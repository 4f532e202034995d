// How rows are cut into tiles and in which order work is handed out: host arithmetic, no GPU needed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
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

TEST(TileOrder, SpreadsSingleTilesEvenlyAmongThoseOfExpertsWithSeveral) {
  for (const int several : {0, 1, 2, 7, 64, 101}) {
    for (const int single : {0, 1, 3, 64, 250}) {
      SCOPED_TRACE(testing::Message() << several << " several, " << single << " single");
      std::vector<int> of(static_cast<std::size_t>(several + single), -1);  // 1: several
      for (int i = 0; i < several; ++i) {
        ASSERT_EQ(
            std::exchange(of.at(static_cast<std::size_t>(place_of_several(i, several, single))), 1),
            -1);
      }
      for (int i = 0; i < single; ++i) {
        ASSERT_EQ(
            std::exchange(of.at(static_cast<std::size_t>(place_of_single(i, several, single))), 0),
            -1);
      }
      int before = 0;
      for (std::size_t place = 0; place < of.size(); ++place) {
        const double even = static_cast<double>(place) * several / static_cast<double>(of.size());
        ASSERT_LE(std::abs(before - even), 1.0) << "of several in front of place " << place;
        before += of[place];
      }
    }
  }
}

TEST(TileOrder, LightExpertsHaveLessThanHalfOfTheMean) {
  EXPECT_TRUE(is_light(127, 192, 128 * 256, 128));
  EXPECT_FALSE(is_light(128, 192, 128 * 256, 128));
  EXPECT_FALSE(is_light(200, 192, 8 * 4096, 8)) << "two tiles share its weights";
  EXPECT_FALSE(is_light(5, 192, 5, 1));
}

TEST(TileOrder, HandsOutEveryItemOnce) {
  for (const int row_tiles : {1, 2, 7, 8, 9, 40}) {
    for (const int pairs : {1, 2, 7, 8, 9, 23}) {
      for (const auto& [group, band] :
           {std::pair{1, 1}, std::pair{8, 8}, std::pair{3, 4}, std::pair{64, 1}}) {
        const TileOrder order{row_tiles, pairs, group, band};
        std::set<std::pair<int, int>> seen;
        for (int ticket = 0; ticket < row_tiles * pairs; ++ticket) {
          const TileOrder::Item item = order.at(ticket);
          ASSERT_TRUE(item.row_tile >= 0 && item.row_tile < row_tiles && item.feature_pair >= 0 &&
                      item.feature_pair < pairs)
              << ticket << ": " << item.row_tile << ", " << item.feature_pair;
          seen.insert({item.row_tile, item.feature_pair});
        }
        ASSERT_EQ(static_cast<int>(seen.size()), row_tiles * pairs)
            << row_tiles << " x " << pairs << ", groups of " << group << " x " << band;
      }
    }
  }
}

TEST(TileOrder, FinishesAGroupOfRowsBeforeTheNext) {
  const TileOrder order{10, 6, 4, 2};
  int last_group = 0;
  for (int ticket = 0; ticket < 60; ++ticket) {
    const int group = order.at(ticket).row_tile / 4;
    ASSERT_GE(group, last_group);
    last_group = group;
  }
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
  const GroupedGemmConfig mixtral = choose(224, 64);
  EXPECT_EQ(mixtral.largest_tile, 192);
  EXPECT_EQ(mixtral.band_features, 8);
  EXPECT_LE(mixtral.group_rows * 192LL * 64 * 128, 15LL << 20);
  EXPECT_EQ(choose(1, 1).band_features, 1);
  EXPECT_GE(choose(16, 100000).group_rows, 1);
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
