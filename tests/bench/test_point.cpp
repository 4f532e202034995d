#include "bench/point.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

LevelState measured(int number, const std::string& name, bool variant, double microseconds,
                    Launch launch = Launch::kAuto, Cache cache = Cache::kCold) {
  LevelState state;
  state.options.launch = launch;
  RowState row;
  row.row.level.number = number;
  row.row.level.name = name;
  row.row.level.variant = variant;
  row.row.problem.shape = {.tokens = 4, .hidden = 8, .intermediate = 8, .experts = 2, .top_k = 1};
  row.row.cache = cache;
  row.row.launch = launch;
  row.row.status = RowStatus::kOk;
  row.decided = true;
  row.microseconds.assign(5, microseconds);
  state.rows.push_back(row);
  return state;
}

std::vector<BenchRow> rows_of(std::vector<LevelState> levels) {
  Point point;
  point.levels = std::move(levels);
  point.twin_us[static_cast<std::size_t>(Cache::kCold)] = {50, 60, 40};
  BenchResult result;
  append_rows(point, {}, result);
  return result.rows;
}

TEST(Rows, AVariantIsComparedWithItsLevelAndNothingWithAVariant) {
  const auto rows =
      rows_of({measured(0, "naive", false, 1000), measured(0, "masked", true, 2000),
               measured(4, "grouped", false, 200), measured(4, "grouped_fp8", true, 250),
               measured(5, "graphs", false, 100)});
  ASSERT_EQ(rows.size(), 5U);
  EXPECT_EQ(rows[1].previous, "naive");
  EXPECT_DOUBLE_EQ(*rows[1].speedup_vs_first, 0.5);
  EXPECT_EQ(rows[2].previous, "naive");
  EXPECT_DOUBLE_EQ(*rows[2].speedup_vs_first, 5);
  EXPECT_EQ(rows[3].previous, "grouped");
  EXPECT_DOUBLE_EQ(*rows[3].gain_vs_previous, 0.8);
  EXPECT_EQ(rows[4].previous, "grouped");
  EXPECT_DOUBLE_EQ(*rows[4].gain_vs_previous, 2);
}

TEST(Rows, ComparesEqualLaunchesAndCachesAndSharesOfTheTwin) {
  const auto rows = rows_of({measured(4, "grouped", false, 200, Launch::kEager),
                             measured(4, "grouped", false, 100, Launch::kGraph),
                             measured(4, "grouped", false, 10, Launch::kGraph, Cache::kHot),
                             measured(5, "graphs", false, 100, Launch::kEager),
                             measured(5, "graphs", false, 80, Launch::kGraph)});
  EXPECT_DOUBLE_EQ(*rows[3].gain_vs_previous, 2) << "eager with eager";
  EXPECT_DOUBLE_EQ(*rows[4].gain_vs_previous, 1.25) << "graph with graph";
  EXPECT_FALSE(rows[4].speedup_vs_first.has_value()) << "naive was not measured";
  ASSERT_TRUE(rows[0].twin_fraction.has_value());
  EXPECT_DOUBLE_EQ(*rows[0].twin_fraction, 0.25);
  EXPECT_FALSE(rows[0].floor_fraction.has_value()) << "no read rate was measured";
  EXPECT_FALSE(rows[2].twin_fraction.has_value()) << "the twin was timed cold only";
}

TEST(Rows, ShareOfTheStreamFloorIsOfTheExpertsThatAreActive) {
  Point point;
  point.levels = {measured(9, "streaming", false, 50)};
  point.levels.front().rows.front().row.problem = {
      .shape = {.tokens = 4, .hidden = 1000, .intermediate = 500, .experts = 8, .top_k = 2},
      .dtype = DType::kBF16};
  Ceilings ceilings;
  ceilings.samples = 5;
  ceilings.fp32_gflops = 1;
  ceilings.read_gbs = 1000;
  ceilings.empty_us = 4;
  BenchResult unrouted;
  append_rows(point, ceilings, unrouted);
  EXPECT_FALSE(unrouted.rows[0].stream_fraction.has_value()) << "no input was routed";
  point.active_experts = 7;
  BenchResult result;
  append_rows(point, ceilings, result);
  EXPECT_DOUBLE_EQ(*result.rows[0].weight_gbs, 420);      // 7 x 3 MB in 50 us
  EXPECT_DOUBLE_EQ(*result.rows[0].stream_floor_us, 25);  // 21 us and the empty kernel
  EXPECT_DOUBLE_EQ(*result.rows[0].stream_fraction, 0.5);
  BenchResult unprobed;
  append_rows(point, {}, unprobed);
  EXPECT_FALSE(unprobed.rows[0].stream_fraction.has_value()) << "no read rate was measured";
}

}  // namespace
}  // namespace moe
