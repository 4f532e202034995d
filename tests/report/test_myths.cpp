#include <gtest/gtest.h>

#include <sstream>

#include "report/example_report.h"
#include "report/schema_check.h"

namespace moe {
namespace {

report::Report report_of_myths() {
  report::Report report = test::example_gpu_report();
  report.suite = "moe_myths";
  MythResult result;
  result.myth = find_myth("fp8_converted");
  result.tokens = 8192;
  result.verdict = MythVerdict::kHolds;
  result.baseline_us = 1000;
  result.changed_us = 2500;
  result.gain = 0.4;
  result.gain_low = 0.39;
  result.gain_high = 0.41;
  result.noise = 0.004;
  result.distinguishable = true;
  result.cause =
      "on the device +1.50 ms: +1.80 ms in `quantize_e4m3_kernel`, -300.0 us in the GEMMs, and so "
      "on "
      "until the line is full and has to go on below";
  report.myths.push_back(result);
  MythResult missing;
  missing.myth = find_myth("graphs");
  missing.tokens = 8192;
  missing.reason = "graphs: this machine has no GPU";
  report.myths.push_back(missing);
  return report;
}

TEST(MythTable, HasClaimTimesVerdictAndCause) {
  const std::string text = render(report_of_myths(), report::Format::kTable, false);
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    EXPECT_LE(line.size(), 110U) << line;
    EXPECT_FALSE(line.ends_with(' ')) << line;
  }
  EXPECT_NE(text.find("\"FP8 does not help when the weights are converted on the fly\"\n"
                      "  grouped -> grouped_fp8_converted\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("    8192     1.00 ms     2.50 ms     0.40x   0.4 %  holds\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("          on the device +1.50 ms"), std::string::npos) << text;
  EXPECT_NE(text.find("  graphs (eager) -> graphs (graph)\n"), std::string::npos) << text;
  EXPECT_NE(text.find("    8192  not measured\n          graphs: this machine has no GPU"),
            std::string::npos)
      << text;
}

TEST(MythTable, JsonFollowsTheSchema) {
  const std::string text = render(report_of_myths(), report::Format::kJson, false);
  EXPECT_EQ(test::schema_errors(text), "");
  const test::Json object = test::Json::parse(text);
  ASSERT_EQ(object["myths"].size(), 2U);
  EXPECT_EQ(object["myths"][0]["gain"], 0.4);
  EXPECT_EQ(object["myths"][0]["verdict"], "holds");
  EXPECT_EQ(object["myths"][0]["with"]["name"], "grouped_fp8_converted");
  EXPECT_TRUE(object["myths"][1]["gain"].is_null());
  EXPECT_EQ(object["myths"][1]["verdict"], "not measured");
  EXPECT_FALSE(test::Json::parse(render(test::example_report(), report::Format::kJson, false))
                   .contains("myths"));
}

TEST(MythTable, MarkdownHasALinePerVerdict) {
  const std::string text = render(report_of_myths(), report::Format::kMarkdown, false);
  EXPECT_NE(text.find("| 8192 | 1.00 ms | 2.50 ms | 0.40x | 0.4 % | holds | on the device"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("| 8192 | | | | | not measured | graphs: this"), std::string::npos) << text;
}

}  // namespace
}  // namespace moe
