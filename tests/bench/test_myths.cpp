#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "bench/myths.h"
#include "moe/error.h"

namespace moe {
namespace {

BenchRow row_of(const LevelLaunch& series, std::int64_t tokens, double median_us) {
  BenchRow row;
  row.level.name = series.level;
  row.problem.shape.tokens = tokens;
  row.launch = series.launch;
  row.status = RowStatus::kOk;
  for (int i = -10; i <= 10; ++i) row.sample_us.push_back(median_us * (1 + 0.0005 * i));
  row.samples = static_cast<int>(row.sample_us.size());
  row.median_us = median_us;
  return row;
}

/// A run in which the second side of a myth is `gain` times as fast as the first.
BenchResult run_of(const Myth& myth, std::int64_t tokens, double gain) {
  BenchResult result;
  result.rows = {row_of(myth.baseline, tokens, 1000), row_of(myth.changed, tokens, 1000 / gain)};
  result.noise = {{myth.changed.level, tokens, Cache::kCold, myth.changed.launch, 0.01}};
  return result;
}

MythVerdict verdict_of(const std::string& name, double gain) {
  const Myth& myth = find_myth(name);
  const std::vector<MythResult> judged = judge_myths({myth}, run_of(myth, 8192, gain));
  EXPECT_EQ(judged.size(), 1U);
  EXPECT_NEAR(judged.front().gain, gain, 1e-12);
  return judged.front().verdict;
}

TEST(Myths, AreJudgedByWhatIsDistinguishable) {
  EXPECT_EQ(verdict_of("streams", 0.5), MythVerdict::kHolds) << "slower does not help";
  EXPECT_EQ(verdict_of("streams", 1.0), MythVerdict::kHolds);
  EXPECT_EQ(verdict_of("streams", 1.009), MythVerdict::kHolds) << "within the noise of 1 %";
  EXPECT_EQ(verdict_of("streams", 1.05), MythVerdict::kDoesNotHold);
  EXPECT_EQ(verdict_of("fp8_stored", 1.05), MythVerdict::kHolds) << "claims a gain";
  EXPECT_EQ(verdict_of("fp8_stored", 1.0), MythVerdict::kDoesNotHold);
  EXPECT_EQ(verdict_of("fp8_stored", 0.9), MythVerdict::kDoesNotHold);
  // Both sides are one level, told apart by their launches.
  EXPECT_EQ(verdict_of("graphs", 1.2), MythVerdict::kDoesNotHold);
}

TEST(Myths, WhatHasNoTimeIsNotMeasured) {
  const Myth& myth = find_myth("streams");
  BenchResult result = run_of(myth, 8192, 2);
  result.rows[1].status = RowStatus::kSkipped;
  result.rows[1].reason = "no such device";
  result.rows[1].samples = 0;
  const MythResult judged = judge_myths({myth}, result).front();
  EXPECT_EQ(judged.verdict, MythVerdict::kNotMeasured);
  EXPECT_EQ(judged.reason, "grouped_streams: no such device");
  result.rows.pop_back();
  EXPECT_EQ(judge_myths({myth}, result).front().reason, "grouped_streams was not run");
}

TEST(Myths, OfANumberOfTokensAreJudgedThereIfItWasRun) {
  const Myth& graphs = find_myth("graphs");
  BenchResult result = run_of(graphs, 256, 3);
  ASSERT_EQ(judge_myths({graphs}, result).size(), 1U);
  EXPECT_EQ(judge_myths({graphs}, result).front().tokens, 256);
  const BenchResult at_its_own = run_of(graphs, 8192, 1);
  result.rows.insert(result.rows.end(), at_its_own.rows.begin(), at_its_own.rows.end());
  ASSERT_EQ(judge_myths({graphs}, result).size(), 1U);
  EXPECT_EQ(judge_myths({graphs}, result).front().tokens, 8192);
  EXPECT_EQ(judge_myths({graphs}, result).front().verdict, MythVerdict::kHolds);
}

TEST(Myths, NameWhatTheyNeed) {
  for (const Myth& myth : list_myths()) {
    EXPECT_EQ(find_myth(myth.name).claim, myth.claim);
    EXPECT_NO_THROW((void)find_level(myth.baseline.level)) << myth.name;
    EXPECT_NO_THROW((void)find_level(myth.changed.level)) << myth.name;
  }
  const std::vector<LevelLaunch> series = series_of(list_myths());
  for (std::size_t i = 0; i < series.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      EXPECT_FALSE(series[i].level == series[j].level && series[i].launch == series[j].launch);
    }
  }
  try {
    (void)find_myth("stream");
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "unknown myth 'stream'; did you mean 'streams'?");
  }
}

TEST(Myths, TheCauseNamesTheLargestDifferences) {
  KernelProfile baseline;
  baseline.kernels = {{"nvjet_128x128", 8, 700, 0.7, {}}, {"swiglu_kernel<bf16>", 1, 100, 0.1, {}}};
  baseline.launches = 9;
  baseline.span_us = 900;
  baseline.gap_us = 100;
  KernelProfile changed = baseline;
  changed.kernels = {{"quantize_kernel<bf16, 8>", 2, 600, 0.5, {}},
                     {"nvjet_64x64", 8, 400, 0.4, {}},
                     {"swiglu_kernel<bf16>", 1, 101, 0.1, {}}};
  changed.launches = 11;
  changed.span_us = 1211;
  changed.gap_us = 130;
  changed.overlap_us = 20;
  EXPECT_EQ(explain_difference(baseline, changed),
            "on the device +311.0 us: +600.0 us in `quantize_kernel`, -300.0 us in the GEMMs, "
            "+30.0 us in gaps; 11 launches instead of 9");
}

}  // namespace
}  // namespace moe
