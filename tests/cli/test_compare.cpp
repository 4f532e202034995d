// The real program compared with itself, and with a slower one: verdicts and exit codes.
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

// One thread: a test must not depend on how busy the other processors are.
const std::string kRun =
    "bench run -t moe_journey:memefficient -q --format json --thiek 16,64,64,4,2 --threads 1 ";

class CompareCommand : public ::testing::Test {
 protected:
  [[nodiscard]] std::string path(const std::string& name) const { return folder_.path(name); }
  void measure(const std::string& name) const {
    const Said said = run_moe(kRun + "--output " + path(name));
    ASSERT_EQ(said.code, 0) << said.err;
  }
  /// The file with every time of every row multiplied.
  void write_scaled(const std::string& from, const std::string& to, double factor) const {
    Json object = Json::parse(test::read_all(path(from)));
    for (Json& row : object["rows"]) {
      for (const char* name : {"median_us", "min_us", "p95_us", "iqr_us"}) {
        row[name] = row[name].get<double>() * factor;
      }
      for (Json& sample : row["sample_us"]) sample = sample.get<double>() * factor;
    }
    std::ofstream(path(to)) << object;
  }

  const test::TemporaryFolder folder_;
};

TEST_F(CompareCommand, TheSameBinaryIsNeverSlowerThanItself) {
  // Every two of five runs, in both directions: twenty comparisons.
  constexpr int kRuns = 5;
  for (int run = 0; run < kRuns; ++run) measure(std::to_string(run) + ".json");
  int comparisons = 0;
  for (int a = 0; a < kRuns; ++a) {
    for (int b = 0; b < kRuns; ++b) {
      if (a == b) continue;
      const Said said =
          run_moe("bench compare " + path(std::to_string(a) + ".json") + " " +
                  path(std::to_string(b) + ".json") + " --fail-on slower:5% --format json");
      EXPECT_EQ(said.code, 0) << said.out << said.err;
      EXPECT_EQ(test::schema_errors(said.out, "compare"), "");
      const Json object = Json::parse(said.out);
      EXPECT_EQ(object["passed"], true);
      ASSERT_EQ(object["rows"].size(), 1U);
      EXPECT_NE(object["rows"][0]["verdict"], "SLOWER") << object["rows"][0];
      ++comparisons;
    }
  }
  EXPECT_EQ(comparisons, 20);
}

TEST_F(CompareCommand, ASlowedResultFailsTheGateOnlyBeyondTheLimit) {
  measure("a.json");
  write_scaled("a.json", "b.json", 4);
  const std::string files = "bench compare " + path("a.json") + " " + path("b.json");
  const Said gate = run_moe(files + " --fail-on slower:5%");
  EXPECT_EQ(gate.code, 4) << gate.out << gate.err;
  EXPECT_NE(gate.out.find("+300.0 %"), std::string::npos) << gate.out;
  EXPECT_NE(gate.out.find("SLOWER"), std::string::npos) << gate.out;
  EXPECT_EQ(run_moe(files + " --fail-on slower:310%").code, 0);
  EXPECT_EQ(run_moe(files).code, 0) << "no gate was asked for";
  const Said back =
      run_moe("bench compare " + path("b.json") + " " + path("a.json") + " --fail-on slower:5%");
  EXPECT_EQ(back.code, 0) << back.out;
  EXPECT_NE(back.out.find("FASTER"), std::string::npos) << back.out;
  const Said written =
      run_moe(files + " -q --fail-on slower:5% --format md --output " + path("c.md"));
  EXPECT_EQ(written.code, 4);
  EXPECT_EQ(written.out, "");
  EXPECT_TRUE(test::read_all(path("c.md")).starts_with("| level | A | B |"));
}

TEST_F(CompareCommand, AShortForwardsMicrosecondsAreNoChangeUnlessAskedFor) {
  measure("a.json");
  const std::string files = "bench compare --format json " + path("a.json") + " " + path("a.json");
  const auto limits = [&](const std::string& option) {
    const Json said = Json::parse(run_moe(files + option).out);
    return std::pair(said["min_effect"].get<double>(), said["min_effect_us"].get<double>());
  };
  EXPECT_EQ(limits(""), std::pair(0.05, 25.0));
  EXPECT_EQ(limits(" --min-effect 5%"), std::pair(0.05, 0.0));
  EXPECT_EQ(limits(" --min-effect 3us"), std::pair(0.05, 3.0));
}

TEST_F(CompareCommand, LiveMeasuresSuspectsAgainInTurns) {
  measure("a.json");
  write_scaled("a.json", "fast.json", 0.25);
  const std::string limits = " --live -q --fail-on slower:50% --format json";
  // A claims to be four times as fast as this program: every repeat says so.
  const Said slower = run_moe("bench compare " + path("fast.json") + limits);
  EXPECT_EQ(slower.code, 4) << slower.out << slower.err;
  EXPECT_EQ(test::schema_errors(slower.out, "compare"), "");
  EXPECT_EQ(Json::parse(slower.out)["rows"][0]["note"], "measured 3 more times, slower each time");
  // The program that is said to have been so fast is this one: the repeats clear the suspect.
  const Said cleared =
      run_moe("bench compare " + path("fast.json") + limits + " --old " MOE_BINARY);
  EXPECT_EQ(cleared.code, 0) << cleared.out << cleared.err;
  const Json row = Json::parse(cleared.out)["rows"][0];
  EXPECT_NE(row["verdict"], "SLOWER");
  EXPECT_TRUE(row["note"].get<std::string>().find("was slower at first; measured again in turns "
                                                  "with ") != std::string::npos)
      << row["note"];
}

TEST_F(CompareCommand, LiveMeasuresWhatAutoTakes) {
  const Said first = run_moe(
      "bench run -t moe_decode:auto --backend cpu --thiek 8,64,32,4,2 --axis tokens=8 --threads 1 "
      "--tune-seconds 0 -q --format json --output " +
      path("auto.json"));
  ASSERT_EQ(first.code, 0) << first.err;
  const Said said = run_moe("bench compare " + path("auto.json") + " --live -q --format json");
  ASSERT_EQ(said.code, 0) << said.out << said.err;
  EXPECT_EQ(test::schema_errors(said.out, "compare"), "");
  const Json rows = Json::parse(said.out)["rows"];
  ASSERT_EQ(rows.size(), 1U);
  EXPECT_EQ(rows[0]["name"], "auto");
}

TEST_F(CompareCommand, BaselineIsLookedUpByWhatFilesSay) {
  std::filesystem::create_directories(path("results/some-machine"));
  measure("b.json");
  Json object = Json::parse(test::read_all(path("b.json")));
  const auto put = [&](const std::string& name, const std::string& started) {
    object["run"]["started"] = started;
    std::ofstream(path("results/some-machine/" + name)) << object;
  };
  put("old.json", "2026-01-01T00:00:00Z");
  put("new.json", "2026-02-01T00:00:00Z");
  object["rows"][0]["tokens"] = 17;
  put("other_shape.json", "2026-03-01T00:00:00Z");
  object["rows"][0]["tokens"] = 16;
  object["machine"]["cpu"] = "Another";
  put("other_device.json", "2026-03-01T00:00:00Z");
  std::ofstream(path("results/some-machine/damaged.json")) << "{";
  const std::string command = "bench compare --baseline " + path("b.json") + " --results ";
  const Said said = run_moe(command + path("results") + " --format json");
  ASSERT_EQ(said.code, 0) << said.err;
  EXPECT_NE(Json::parse(said.out)["a"].get<std::string>().find("/new.json ("), std::string::npos)
      << said.out;
  std::filesystem::remove(path("results/some-machine/new.json"));
  std::filesystem::remove(path("results/some-machine/old.json"));
  const Said none = run_moe(command + path("results"));
  EXPECT_EQ(none.code, 2);
  EXPECT_EQ(none.err, "moe: no file under " + path("results") + " has a row to compare with " +
                          path("b.json") + " (3 files do not)\n");
}

TEST_F(CompareCommand, HistoryHasALinePerFile) {
  measure("a.json");
  write_scaled("a.json", "b.json", 4);
  const Said said = run_moe("bench history " + path("a.json") + " " + path("b.json"));
  EXPECT_EQ(said.code, 0) << said.err;
  EXPECT_NE(said.out.find("3 memefficient T=16, fp32, "), std::string::npos) << said.out;
  EXPECT_NE(said.out.find("+300.0 %  SLOWER  " + path("b.json")), std::string::npos) << said.out;
  const Said json = run_moe("bench history --format json " + path("a.json"));
  EXPECT_EQ(test::schema_errors(json.out, "history"), "");
}

TEST_F(CompareCommand, EveryErrorIsOneSentence) {
  std::ofstream(path("x.json")) << "{}";
  const std::string x = path("x.json");
  const std::pair<std::string, std::string> cases[] = {
      {"bench compare", "bench compare: FILES is required"},
      {"bench compare " + x, "1 file is given, 2 needed: A and B"},
      {"bench compare --live a b", "2 files are given, 1 needed: A, because B is measured now"},
      {"bench compare --baseline a b", "2 files are given, 1 needed: B, because A is looked up"},
      {"bench compare --baseline --live a", "--live needs A, which --baseline looks up for B"},
      {"bench compare --old p a b", "--old is for --live"},
      {"bench compare a b --fail-on 5%",
       "--fail-on: '5%' is not slower:PERCENT%, such as slower:5%"},
      {"bench compare a b --fail-on slower:5",
       "--fail-on: 'slower:5' does not end in a percentage from 0% to 1000%"},
      {"bench compare a b --fail-on slower:-1%",
       "--fail-on: 'slower:-1%' does not end in a percentage from 0% to 1000%"},
      {"bench compare a b --fail-on slower:nan%",
       "--fail-on: 'slower:nan%' does not end in a percentage from 0% to 1000%"},
      {"bench compare a b --fail-on slower:",
       "--fail-on: 'slower:' does not end in a percentage "
       "from 0% to 1000%"},
      {"bench compare a b --min-effect 2ms",
       "--min-effect: '2ms' does not end in a percentage from 0% to 1000%"},
      {"bench compare a b --min-effect xus",
       "--min-effect: 'xus' is not a number of microseconds such as 2us"},
      {"bench compare a b --format csv", "a comparison has no csv form; use table, json or md"},
      {"bench compare /no/a.json /no/b.json", "cannot read /no/b.json"},
      {"bench compare " + x + " " + x,
       x + " is no result of moe bench run --format json: it has no "
           "\"schema\": \"moe-result-1\""},
      {"bench history", "bench history: FILES is required"},
      {"bench history /no/a.json", "cannot read /no/a.json"},
      {"bench history " + x + " --format csv", "a history has no csv form; use table, json or md"}};
  for (const auto& [arguments, message] : cases) {
    const Said said = run_moe(arguments);
    EXPECT_EQ(said.code, 2) << arguments;
    EXPECT_EQ(said.out, "") << arguments;
    EXPECT_EQ(said.err, "moe: " + message + "\n") << arguments;
  }
}

}  // namespace
}  // namespace moe
