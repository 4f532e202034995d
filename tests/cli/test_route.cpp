// moe route: generate, describe, convert, and the trace in a run.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "cli/run_command.h"
#include "report/schema_check.h"
#include "temporary_folder.h"

namespace moe {
namespace {

using test::Json;
using test::run_moe;
using test::Said;

class RouteCommand : public ::testing::Test {
 protected:
  [[nodiscard]] std::string path(const std::string& name) const { return folder_.path(name); }

  const test::TemporaryFolder folder_;
};

TEST_F(RouteCommand, GeneratesDescribesAndConverts) {
  const std::string gen = "route gen --tokens 500 --experts 16 --top-k 2 --seed 4 --output ";
  ASSERT_EQ(run_moe(gen + path("hot.jsonl") + " --skew hot:2,0.5").code, 0);
  const Said stats = run_moe("route stats --json " + path("hot.jsonl"));
  ASSERT_EQ(stats.code, 0) << stats.err;
  const Json object = Json::parse(stats.out);
  EXPECT_EQ(object["tokens"], 500);
  EXPECT_EQ(object["experts"], 16);
  std::vector<int> rows = object["rows_per_expert"];
  std::sort(rows.rbegin(), rows.rend());
  EXPECT_NEAR((rows[0] + rows[1]) / 1000.0, 0.5, 0.05);
  EXPECT_NEAR(object["max_over_mean"].get<double>(), rows[0] / (1000.0 / 16), 1e-9);
  const Said text = run_moe("route stats " + path("hot.jsonl"));
  EXPECT_NE(text.out.find("500 tokens, 2 of 16 experts each"), std::string::npos) << text.out;

  // The same seed draws the same routes, another one others.
  ASSERT_EQ(run_moe(gen + path("again.jsonl") + " --skew hot:2,0.5").code, 0);
  EXPECT_EQ(test::read_all(path("again.jsonl")), test::read_all(path("hot.jsonl")));
  ASSERT_EQ(run_moe(gen + path("again.jsonl") + " --skew hot:2,0.5 --seed 5").code, 2)
      << "--seed twice";
  ASSERT_EQ(run_moe("route gen --tokens 500 --experts 16 --top-k 2 --skew hot:2,0.5 --output " +
                    path("other.jsonl"))
                .code,
            0);
  EXPECT_NE(test::read_all(path("other.jsonl")), test::read_all(path("hot.jsonl")));

  ASSERT_EQ(run_moe("route convert " + path("hot.jsonl") + " " + path("hot.npy")).code, 0);
  EXPECT_TRUE(std::filesystem::exists(path("hot.weights.npy")));
  ASSERT_EQ(run_moe("route convert " + path("hot.npy") + " " + path("back.jsonl")).code, 0);
  EXPECT_EQ(test::read_all(path("back.jsonl")), test::read_all(path("hot.jsonl")));
}

TEST_F(RouteCommand, ATraceIsMeasuredAsRecorded) {
  std::ofstream(path("t.jsonl"))
      << "{\"format\": \"moe-trace-1\", \"tokens\": 4, \"experts\": 4, \"top_k\": 2}\n"
         "{\"indices\": [3, 1], \"weights\": [0.75, 0.25]}\n"
         "{\"indices\": [3, 1], \"weights\": [0.5, 0.5]}\n"
         "{\"indices\": [1, 3], \"weights\": [1, 0]}\n"
         "{\"indices\": [3, 0], \"weights\": [0.9, 0.1]}\n";
  const std::string options = " --thiek 4,64,32,4,2 --threads 1 --skew trace:" + path("t.jsonl");
  const Said run = run_moe("bench run -t moe_journey:memefficient -q --format json" + options);
  ASSERT_EQ(run.code, 0) << run.out << run.err;
  EXPECT_EQ(test::schema_errors(run.out), "");
  const Json row = Json::parse(run.out)["rows"][0];
  EXPECT_EQ(row["expert_load"], (Json::array({3, 9, 0, 12}))) << "three inputs";
  EXPECT_EQ(row["active_experts"], 3);
  EXPECT_EQ(row["max_over_mean"], 2.0);
  EXPECT_EQ(row["skew"], "trace:" + path("t.jsonl"));
  EXPECT_EQ(run_moe("verify -t moe_journey:3" + options).code, 0);
  EXPECT_EQ(run_moe("verify -t moe_journey:3 --dtype bf16" + options).code, 0);
}

TEST_F(RouteCommand, EveryErrorIsOneSentence) {
  std::ofstream(path("t.jsonl"))
      << "{\"format\": \"moe-trace-1\", \"tokens\": 1, \"experts\": 9, \"top_k\": 2}\n"
         "{\"indices\": [8, 1], \"weights\": [0.75, 0.25]}\n";
  const std::string trace = path("t.jsonl");
  const std::pair<std::string, std::string> cases[] = {
      {"route", "moe route needs a command: gen, stats, convert"},
      {"route gen", "route gen: --output is required"},
      {"route gen --skew warm --output x.jsonl",
       "unknown skew 'warm'; use uniform, zipf:S, hot:N,P, dirichlet:A, one-expert or trace:FILE"},
      {"route gen --tokens 0 --output x.jsonl", "--tokens: 0 is not between 1 and 2147483647"},
      {"route gen --experts 4 --top-k 5 --output " + path("x.jsonl"),
       "top_k=5 exceeds experts=4 (T=256 H=1024 I=2048 E=4 K=5)"},
      {"route gen --output " + path("x.csv"),
       path("x.csv") + " ends neither in .jsonl nor in .npy"},
      {"route gen --skew trace:" + trace + " --experts 9 --output " + path("x.jsonl"),
       "trace:" + trace + " is a trace already"},
      {"route stats /no/x.npy", "cannot read /no/x.npy"},
      {"route convert " + trace + " /no/such/x.jsonl",
       "cannot write /no/such/x.jsonl: no folder /no/such"},
      {"bench run -t moe_journey --backend cpu --skew trace:" + trace,
       trace + " is of 9 experts, experts=8"},
      {"verify --backend cpu --skew hot:3,0.9 --thiek 4,64,64,8,6",
       "skew hot:3,0.9: with top_k=6 and experts=8, 3 experts get a share of 0.166667 to 0.5"}};
  for (const auto& [arguments, message] : cases) {
    const Said said = run_moe(arguments);
    EXPECT_EQ(said.code, 2) << arguments;
    EXPECT_EQ(said.out, "") << arguments;
    EXPECT_EQ(said.err, "moe: " + message + "\n") << arguments;
  }
  EXPECT_FALSE(std::filesystem::exists(path("x.jsonl")));
}

}  // namespace
}  // namespace moe
