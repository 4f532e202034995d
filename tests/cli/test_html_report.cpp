// moe report: the file it writes, and what it says when it cannot.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "cli/run_command.h"

namespace moe {
namespace {

using test::run_moe;
using test::Said;

TEST(ReportCommand, OfTheCommittedResultsIsOneFile) {
  const std::string path = testing::TempDir() + "moe_report.html";
  const std::string results = MOE_SOURCE_DIR "/results/";
  const Said said = run_moe("report --html " + results + "h200/sweep_lab_bf16.json " + results +
                            "cpu-zen4-2c/journey_lab_T256_fp32.json -o " + path);
  EXPECT_EQ(said.code, 0) << said.err;
  EXPECT_EQ(said.out, "");
  const std::string html = test::read_all(path);
  EXPECT_TRUE(html.starts_with("<!DOCTYPE html>"));
  EXPECT_NE(html.find("NVIDIA H200"), std::string::npos);
  EXPECT_NE(html.find("AMD EPYC"), std::string::npos);
  EXPECT_NE(html.find("./moe bench run -t moe_journey:naive --preset lab"), std::string::npos);
  EXPECT_LT(html.size(), 300000U);
  std::filesystem::remove(path);
}

TEST(ReportCommand, EveryErrorIsOneSentence) {
  const std::string path = testing::TempDir() + "moe_report.json";
  std::ofstream(path) << "{}";
  const std::pair<std::string, std::string> cases[] = {
      {"report --html -o x.html", "report: FILES is required"},
      {"report -o x.html " + path, "--html is the one form that there is; give it"},
      {"report --html -o /no/such/x.html " + path,
       "cannot write /no/such/x.html: no folder /no/such"},
      {"report --html -o " + testing::TempDir() + "x.html " + path,
       path + " is no result of moe bench run --format json: it has no \"schema\": "
              "\"moe-result-1\""}};
  for (const auto& [arguments, message] : cases) {
    const Said said = run_moe(arguments);
    EXPECT_EQ(said.code, 2) << arguments;
    EXPECT_EQ(said.out, "") << arguments;
    EXPECT_EQ(said.err, "moe: " + message + "\n") << arguments;
  }
  EXPECT_FALSE(std::filesystem::exists(testing::TempDir() + "x.html"));
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace moe
