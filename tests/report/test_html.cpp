#include "report/html.h"

#include <gtest/gtest.h>

#include <chrono>

#include "moe/error.h"
#include "report/example_report.h"
#include "report/report.h"
#include "report/schema_check.h"
#include "report/svg.h"

namespace moe {
namespace {

using report::Axis;
using report::render_html;
using report::ResultFile;
using test::Json;

ResultFile file_of(const report::Report& report, const std::string& name = "x.json") {
  return report::parse_result(render(report, report::Format::kJson, false), name);
}

/// Several token counts, as a scale run has them.
report::Report many_rows(int token_counts, std::size_t experts) {
  report::Report report = test::example_gpu_report();
  const std::vector<report::ReportRow> once = report.rows;
  report.rows.clear();
  for (int i = 0; i < token_counts; ++i) {
    for (report::ReportRow row : once) {
      row.bench.problem.shape.tokens = std::int64_t{1} << (i % 20);
      row.bench.problem.shape.experts = static_cast<std::int64_t>(experts);
      row.bench.expert_load.assign(experts, 7 + i);
      row.repro = report.command;
      report.rows.push_back(row);
    }
  }
  return report;
}

/// Complains about the first tag that closes nothing or stays open.
std::string unbalanced(const std::string& html) {
  std::vector<std::string> open;
  for (std::size_t at = html.find('<'); at != std::string::npos; at = html.find('<', at + 1)) {
    const std::size_t end = html.find('>', at);
    if (end == std::string::npos) return "a tag without an end";
    const std::string tag = html.substr(at + 1, end - at - 1);
    const bool closing = tag.starts_with('/');
    const std::string name =
        tag.substr(closing ? 1 : 0, tag.find_first_of(" /", 1) - (closing ? 1 : 0));
    if (tag.starts_with('!') || tag.ends_with('/') || name == "meta" || name == "link") continue;
    if (!closing) {
      open.push_back(name);
    } else if (open.empty() || open.back() != tag.substr(1)) {
      return "</" + tag.substr(1) + "> closes " + (open.empty() ? "nothing" : open.back());
    } else {
      open.pop_back();
    }
  }
  return open.empty() ? "" : open.back() + " stays open";
}

std::size_t count(const std::string& text, const std::string& what) {
  std::size_t found = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1))
    ++found;
  return found;
}

TEST(Axis, PlacesValuesAndTicks) {
  const Axis log(Axis::Scale::kLog, 3, 900, 0, 300);
  EXPECT_EQ(log.low(), 2);
  EXPECT_EQ(log.high(), 1000);
  EXPECT_NEAR(log.at(2), 0, 1e-9);
  EXPECT_NEAR(log.at(1000), 300, 1e-9);
  EXPECT_NEAR(log.at(20) - log.at(2), log.at(200) - log.at(20), 1e-9);
  EXPECT_EQ(log.ticks(9), (std::vector<double>{2, 5, 10, 20, 50, 100, 200, 500, 1000}));
  EXPECT_EQ(log.ticks(4), (std::vector<double>{10, 100, 1000}));
  const Axis wide(Axis::Scale::kLog, 1e-3, 1e9, 0, 1);
  EXPECT_LE(wide.ticks(5).size(), 5U);
  EXPECT_GE(wide.ticks(5).size(), 4U);
  const Axis one(Axis::Scale::kLog, 100, 100, 0, 10);
  EXPECT_LT(one.low(), one.high()) << "a single value has a place, too";
  const Axis linear(Axis::Scale::kLinear, 0, 2.4, 100, 0);
  EXPECT_NEAR(linear.at(1.2), 50, 1e-9);
  EXPECT_EQ(linear.ticks(5), (std::vector<double>{0, 1, 2}));
}

TEST(Html, NeedsNothingElse) {
  const std::string html = render_html({file_of(test::example_gpu_report())});
  EXPECT_TRUE(html.starts_with("<!DOCTYPE html>"));
  for (const char* outside : {"http:", "https:", "//", "<script", "src=", "url(", "@import", "NaN",
                              "nan'", "inf'", "null"}) {
    EXPECT_EQ(html.find(outside), std::string::npos) << outside;
  }
  EXPECT_EQ(unbalanced(html), "");
  EXPECT_NE(html.find("prefers-color-scheme:dark"), std::string::npos);
  EXPECT_NE(html.find("name='viewport'"), std::string::npos);
}

TEST(Html, HasEveryRowWithItsCommandAndReason) {
  report::Report report = test::example_report();
  report.rows[1].bench.reason = "needs <64 GiB> & \"more\"";
  const std::string html = render_html({file_of(report, "a<b.json")});
  EXPECT_EQ(unbalanced(html), "");
  EXPECT_EQ(count(html, "<dt>repro</dt>"), 8U) << "seven rows and the run";
  EXPECT_NE(html.find("needs &lt;64 GiB&gt; &amp; &quot;more&quot;"), std::string::npos);
  EXPECT_EQ(html.find("a<b.json"), std::string::npos);
  EXPECT_NE(html.find("4 grouped: 298.00 ms, 95 % 295.32 ms to 300.68 ms, 20 samples"),
            std::string::npos);
  EXPECT_NE(html.find(">~1.01x<"), std::string::npos);
  EXPECT_NE(html.find(">7.00x<"), std::string::npos);
  EXPECT_NE(html.find("22 % of tolerance, error 3.1e-07"), std::string::npos);
  EXPECT_NE(html.find("out of memory"), std::string::npos);
  EXPECT_EQ(html.find("aria-label='median time over tokens'"), std::string::npos);
  EXPECT_NE(html.find("aria-label='roofline'"), std::string::npos);
}

TEST(Html, OfATokensSweepMarksWhatDidNotRun) {
  const std::string html = render_html({file_of(many_rows(4, 8))});
  EXPECT_EQ(unbalanced(html), "");
  EXPECT_NE(html.find("aria-label='median time over tokens'"), std::string::npos);
  // Of each count: out of memory, timeout and failed, but not what was skipped.
  EXPECT_EQ(count(html, "class='cross"), 4U * 3);
  EXPECT_NE(html.find("1 batched T=8: out of memory: a reason"), std::string::npos);
  EXPECT_EQ(count(html, "aria-label='rows per expert over the mean'"), 4U);
  // An even load is 1x everywhere: the outline runs along the line of the mean.
  EXPECT_NE(html.find("class='area'"), std::string::npos);
}

TEST(Html, OfADecodeRunHasTheFloorBesideTheLevels) {
  const std::string html = render_html({file_of(test::example_decode_report())});
  EXPECT_EQ(unbalanced(html), "");
  EXPECT_EQ(count(html, "class='floor'"), 1U);
  EXPECT_NE(html.find("dashed: the stream floor"), std::string::npos);
  EXPECT_NE(html.find("8 persistent [dirty] T=64"), std::string::npos);
  EXPECT_NE(html.find("GB/s of weights of 2 active experts, 80 % of the stream floor, 20.0 us"),
            std::string::npos);
  EXPECT_EQ(count(render_html({file_of(many_rows(4, 8))}), "class='floor'"), 0U);
}

TEST(Html, OfOldFilesHasWhatTheyHave) {
  Json old = Json::parse(render(test::example_report(), report::Format::kJson, false));
  for (Json& row : old["rows"]) {
    for (const char* name : {"sample_us", "launch", "cache", "expert_load"}) row.erase(name);
  }
  old.erase("device");
  const std::string html = render_html({report::parse_result(old.dump(), "old.json")});
  EXPECT_EQ(unbalanced(html), "");
  EXPECT_EQ(count(html, "aria-label='rows per expert over the mean'"), 0U);
  EXPECT_NE(html.find("4 grouped"), std::string::npos);
}

TEST(Html, BarsOfOneHeightAreOneStep) {
  report::Svg svg(100, 100, "t");
  svg.stairs(10, 5, 90, {20, 20, 40.25, 90}, "area");
  EXPECT_NE(svg.str().find("<path d='M10 90H10V20H20V40.3H25V90H30V90' class='area'/>"),
            std::string::npos)
      << svg.str();
}

TEST(Html, OfThreeHundredRowsIsSmallAndSoonMade) {
  const ResultFile file = file_of(many_rows(43, 512));
  ASSERT_GE(file.rows.size(), 300U);
  const auto start = std::chrono::steady_clock::now();
  const std::string html = render_html({file});
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  EXPECT_LT(took.count(), 2.0);
  EXPECT_LT(html.size(), 1000000U);
  EXPECT_EQ(unbalanced(html), "");
}

TEST(Html, RefusesFilesWithoutRows) {
  report::Report empty = test::example_report();
  empty.rows.clear();
  empty.noise.clear();
  const ResultFile file = file_of(empty);
  EXPECT_THROW((void)render_html({file}), Error);
  EXPECT_NE(render_html({file, file_of(test::example_report())}).find("No rows."),
            std::string::npos);
}

TEST(Html, NamesNoFolders) {
  report::Report report = test::example_gpu_report();
  ASSERT_FALSE(report.rows.empty());
  for (report::ReportRow& row : report.rows) {
    row.bench.plan = "tiles of 16/32; cache /home/somebody/.cache/moe/choices.json, read";
  }
  const std::string html = render_html({file_of(report)});
  EXPECT_EQ(html.find("somebody"), std::string::npos);
  EXPECT_NE(html.find("tiles of 16/32; cache choices.json, read"), std::string::npos);
}

}  // namespace
}  // namespace moe
