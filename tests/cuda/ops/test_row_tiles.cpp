// The list of row tiles of our grouped GEMM, and the inverse of the permutation.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "cuda/device_test.h"
#include "cuda/ops/row_tile_list.h"
#include "cuda/ops/tile_order.h"

namespace moe::cuda {
namespace {

class CudaRowTiles : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (!IsSkipped() && device().facts().major != 9) GTEST_SKIP() << "of kernels for sm_90a only";
  }
};

TEST_F(CudaRowTiles, ListsTheTilesOfEveryExpert) {
  for (const std::vector<int>& counts : {std::vector<int>{5},
                                         {0},
                                         {0, 1, 0, 16, 17, 0},
                                         {192, 193, 400, 0, 30},
                                         {500, 20, 3, 0, 900, 20, 20, 1, 17},
                                         {100000, 3, 0, 77}}) {
    SCOPED_TRACE(testing::PrintToString(counts));
    constexpr int kLargest = 192;
    const RowTileList list(device(), counts, kLargest);
    const std::vector<std::int32_t> counters = list.counters.download();
    const std::vector<RowTile> tiles = list.tiles.download();
    const std::vector<std::int32_t> finished = list.finished.download();
    const std::vector<std::int32_t> offsets = offsets_of(counts);
    const auto experts = static_cast<int>(counts.size());
    int expected = 0;
    int several = 0;  // tiles of experts that have more than one
    for (const int count : counts) {
      const RowSplit split(count, kLargest);
      expected += split.tiles;
      several += split.tiles > 1 ? split.tiles : 0;
    }
    ASSERT_EQ(counters[0], expected);
    ASSERT_EQ(counters[1], several);
    for (int i = 0; i < RowTiles::kTickets; ++i) EXPECT_EQ(counters[RowTiles::kCounts + i], 0);
    std::vector<int> seen(counts.size(), 0);  // tiles of each expert so far
    // Largest tile of the expert before: of those with several tiles, of the light ones, of the others with one.
    int before[3] = {1 << 30, 1 << 30, 1 << 30};
    for (int i = 0; i < expected; ++i) {
      const RowTile& tile = tiles[static_cast<std::size_t>(i)];
      const auto expert = static_cast<std::size_t>(tile.expert);
      ASSERT_LT(expert, counts.size());
      const RowSplit split(counts[expert], kLargest);
      const int nth = seen[expert]++;
      ASSERT_LT(nth, split.tiles);
      EXPECT_EQ(tile.first_row, offsets[expert] + split.first_row(nth));
      EXPECT_EQ(tile.rows, split.tile_rows(nth));
      EXPECT_EQ(tile.valid, std::min(split.tile_rows(nth), counts[expert] - split.first_row(nth)));
      EXPECT_EQ(tile.tiles, split.tiles);
      EXPECT_EQ(finished[static_cast<std::size_t>(i)], 0);
      const bool single = split.tiles == 1;
      const bool light = is_light(counts[expert], kLargest, offsets.back(), experts);
      int& largest_before = before[!single ? 0 : light ? 1 : 2];
      EXPECT_LE(split.largest(), largest_before) << "experts with large tiles come first";
      largest_before = split.largest();
      EXPECT_FALSE(light && before[2] < 1 << 30) << "light ones before others with one tile";
      EXPECT_EQ(single, i >= several) << "those of experts with several tiles come first";
      EXPECT_EQ(tile.index, nth);
      if (nth > 0) {
        EXPECT_EQ(tiles[static_cast<std::size_t>(i) - 1].expert, tile.expert);
      }
    }
    EXPECT_TRUE(list.tiles.intact());
  }
}

TEST_F(CudaRowTiles, InvertsThePermutation) {
  constexpr std::int64_t kTopK = 3;
  std::vector<std::int32_t> to(3 * 3333);
  for (std::size_t i = 0; i < to.size(); ++i) {
    to[i] = static_cast<std::int32_t>(i * 7 % to.size());  // 7 divides no 9999
    if (to[i] >= 9000) to[i] = -1;                         // slots without a row
  }
  const RowTileList list(device(), {9000, 0}, 192, to, kTopK);
  const std::vector<std::int32_t> got = list.row_to_token.download();
  EXPECT_TRUE(list.row_to_token.intact());
  for (std::size_t i = 0; i < to.size(); ++i) {
    if (to[i] < 0) continue;
    ASSERT_EQ(got[static_cast<std::size_t>(to[i])], static_cast<std::int32_t>(i) / kTopK);
  }
}

}  // namespace
}  // namespace moe::cuda
