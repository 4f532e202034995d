// moe tune, as far as a CPU can show it.
#include <gtest/gtest.h>

#include <filesystem>

#include "cli/run_command.h"
#include "report/schema_check.h"

namespace moe {
namespace {

using test::run_moe;
using test::Said;

const std::string kSmall = " --backend cpu --thiek 16,64,32,4,2 --threads 1 --budget 0.2 ";

TEST(Tune, JsonFollowsTheSchemaAndComparesWholeForwards) {
  const std::string path = testing::TempDir() + "moe_tune.json";
  const Said said =
      run_moe("tune --repeat-check --format json --axis tokens=1,16 --output " + path + kSmall);
  ASSERT_EQ(said.code, 0) << said.err;
  const std::string text = test::read_all(path);
  std::filesystem::remove(path);
  ASSERT_EQ(test::schema_errors(text, "tune"), "") << text;
  const test::Json json = test::Json::parse(text);
  EXPECT_EQ(json["level"], "compiled");
  EXPECT_EQ(json["budget_s"], 0.2);
  EXPECT_EQ(json["tokens"], 16);
  ASSERT_EQ(json["forwards"].size(), 2U);
  for (const test::Json& forwards : json["forwards"]) {
    EXPECT_GT(forwards["untuned_us"], 0);
    EXPECT_NEAR(forwards["gain"].get<double>(),
                forwards["untuned_us"].get<double>() / forwards["tuned_us"].get<double>(), 1e-9);
    EXPECT_TRUE(forwards["again_us"].is_number());
    EXPECT_GT(forwards["tolerance_used"], 0);
  }
  EXPECT_TRUE(json["worst_repeat"].is_number());
  EXPECT_TRUE(json["crossover"].is_null());
  EXPECT_NE(said.out.find("whole forwards"), std::string::npos) << said.out;
}

TEST(Tune, KeepsItsChoicesInTheCache) {
  const std::string folder = testing::TempDir() + "moe_tune_cache";
  std::filesystem::remove_all(folder);
  ASSERT_EQ(run_moe("tune compiled --tune-cache " + folder + kSmall).code, 0);
  EXPECT_FALSE(std::filesystem::is_empty(folder));
  const Said explained = run_moe("explain compiled --tune-seconds 0 --backend cpu --threads 1 " +
                                 ("--thiek 16,64,32,4,2 --tune-cache " + folder));
  EXPECT_NE(explained.out.find(folder), std::string::npos) << explained.out;
  EXPECT_NE(explained.out.find(" (read)"), std::string::npos) << explained.out;
  std::filesystem::remove_all(folder);
}

TEST(Tune, InterruptSaysWhatWasCancelledAndWritesNothing) {
  const test::TemporaryFolder folder;
  const std::string output = folder.path("tune.json");
  const test::Interrupted tune = test::interrupt_moe(
      {"tune", "compiled", "--backend", "cpu", "--thiek", "2048,512,1024,8,2", "--threads", "1",
       "--budget", "60", "--format", "json", "--output", output},
      "tuning compiled");
  EXPECT_EQ(tune.said.code, 130);
  EXPECT_LT(tune.seconds, 10.0) << "a measurement in progress ends first";
  EXPECT_EQ(tune.said.out, "");
  EXPECT_NE(tune.said.err.find("moe: creating level compiled was cancelled\n"), std::string::npos)
      << tune.said.err;
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Tune, WhatCannotBeTunedIsSaid) {
  const Said grouped = run_moe("tune grouped" + kSmall);
  EXPECT_EQ(grouped.code, 6);
  EXPECT_EQ(grouped.out, "");
  EXPECT_EQ(grouped.err, "moe: level grouped chooses nothing by timing on cpu\n");
  const Said skewed = run_moe("tune --skew zipf:1" + kSmall);
  EXPECT_EQ(skewed.code, 6);
  EXPECT_NE(skewed.err.find("level compiled is tuned under uniform routing only, not under zipf:1"),
            std::string::npos)
      << skewed.err;
  EXPECT_EQ(run_moe("tune --budget 0" + std::string(" --backend cpu")).code, 2);
  EXPECT_EQ(run_moe("tune --budget soon --backend cpu").code, 2);
  EXPECT_EQ(run_moe("tune --format csv --backend cpu").code, 2);
  EXPECT_EQ(run_moe("tune nosuch --backend cpu").code, 2);
}

}  // namespace
}  // namespace moe
