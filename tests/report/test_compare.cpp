#include "report/compare.h"

#include <gtest/gtest.h>

#include <sstream>

#include "moe/error.h"
#include "report/example_report.h"
#include "report/history.h"
#include "report/schema_check.h"

namespace moe {
namespace {

using report::CompareReport;
using report::Format;
using report::parse_result;
using report::ResultFile;
using test::Json;

Json example(bool gpu = false) {
  return Json::parse(
      render(gpu ? test::example_gpu_report() : test::example_report(), Format::kJson, false));
}

/// Multiplies all times of a row.
void scale(Json& row, double factor) {
  for (const char* name : {"median_us", "min_us", "p95_us", "iqr_us"}) {
    row[name] = row[name].get<double>() * factor;
  }
  for (Json& sample : row["sample_us"]) sample = sample.get<double>() * factor;
}

CompareReport compared(const Json& a, const Json& b, const CompareLimits& limits = {}) {
  return report::compare(parse_result(a.dump(), "a.json"), parse_result(b.dump(), "b.json"),
                         limits);
}

/// What compare() or reading says against b; "" when it says nothing.
std::string refusal(const Json& a, const Json& b) {
  try {
    static_cast<void>(compared(a, b));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return {};
}

TEST(ResultFile, ReadsWhatTheJsonFormSays) {
  const ResultFile file = parse_result(example(true).dump(), "x.json");
  ASSERT_EQ(file.rows.size(), 7U);
  EXPECT_EQ(file.preset, "lab");
  EXPECT_EQ(file.device.describe(), "An Accelerator");
  EXPECT_EQ(file.describe(), "x.json (no commit, 2026-01-01)");
  const report::ResultRow& row = file.rows[4];
  EXPECT_EQ(row.key.level, "grouped");
  EXPECT_EQ(row.key.launch, "graph");
  EXPECT_EQ(row.key.cache, "cold");
  EXPECT_EQ(row.key.problem.shape.intermediate, 2048);
  EXPECT_EQ(row.key.threads, 2);
  EXPECT_TRUE(row.verified);
  EXPECT_EQ(row.times.median_us, 298e3);
  // Ranks 6 and 15 of 20.
  EXPECT_NEAR(row.times.interval.low, 298e3 * 0.991, 1e-6);
  EXPECT_NEAR(row.times.interval.high, 298e3 * 1.009, 1e-6);
  EXPECT_EQ(row.times.disturbance, 0) << "a GPU";
  EXPECT_NEAR(parse_result(example().dump(), "y.json").rows[4].times.disturbance, 1 / 0.981 - 1,
              1e-9);
  EXPECT_EQ(row.times.machine_rate, 230) << "fp32, bound by arithmetic";
  EXPECT_TRUE(row.times.probe_rates.empty()) << "a GPU";
  EXPECT_EQ(parse_result(example().dump(), "y.json").rows[4].times.probe_rates.size(), 3U);
  EXPECT_EQ(file.rows[1].status, "out_of_memory");
  EXPECT_EQ(file.rows[1].samples, 0);
}

TEST(ResultFile, ReadsFilesOfBeforeSamplesAndLaunchesWereKept) {
  Json old = example();
  for (Json& row : old["rows"]) {
    for (const char* name : {"sample_us", "launch", "cache"}) row.erase(name);
  }
  old.erase("device");
  const ResultFile file = parse_result(old.dump(), "old.json");
  EXPECT_EQ(file.rows[3].key.launch, "eager");
  EXPECT_EQ(file.rows[3].key.cache, "hot");
  // 1.96 * sqrt(pi/2) / 1.349 / sqrt(20) interquartile ranges of a fiftieth of 300 ms.
  EXPECT_NEAR(file.rows[3].times.interval.high, 300e3 + 0.40720 * 6000, 1);
  EXPECT_NEAR(file.rows[3].times.interval.low, 300e3 - 0.40720 * 6000, 1);
  EXPECT_EQ(compared(old, example()).rows.size(), 3U);
}

TEST(ResultFile, RefusesWhatIsNone) {
  const auto said = [](const std::string& text) {
    try {
      static_cast<void>(parse_result(text, "x.json"));
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(said("{\"a\": "), "x.json is no JSON: byte 7 of 6 cannot be read");
  for (const char* other : {"[]", "{}", "{\"schema\": \"moe-result-2\"}", "3"}) {
    EXPECT_EQ(said(other),
              "x.json is no result of moe bench run --format json: it has no \"schema\": "
              "\"moe-result-1\"")
        << other;
  }
  Json broken = example();
  broken["rows"][0].erase("tokens");
  EXPECT_EQ(said(broken.dump()), "x.json is a damaged result: key 'tokens' not found");
  broken = example();
  broken["rows"][3]["median_us"] = -3;
  EXPECT_EQ(said(broken.dump()), "x.json: row 4: median_us=-3 must be above 0");
  broken = example();
  broken["rows"][3]["sample_us"].erase(0);
  EXPECT_EQ(said(broken.dump()), "x.json: row 4: sample_us has 19 values, samples is 20");
  broken = example();
  broken["rows"][3]["sample_us"][2] = 0;
  EXPECT_EQ(said(broken.dump()), "x.json: row 4: a sample of 0 us");
  broken = example();
  broken["rows"][3]["top_k"] = 99;
  EXPECT_NE(said(broken.dump()).find("damaged result: top_k=99 exceeds"), std::string::npos);
  EXPECT_THROW((void)report::read_result("/no/such/file.json"), Error);
}

TEST(Compare, TheSameResultIsTheSame) {
  const CompareReport report = compared(example(), example());
  ASSERT_EQ(report.rows.size(), 3U);
  for (const report::ComparedRow& row : report.rows) {
    EXPECT_EQ(row.judgement.verdict, Verdict::kSame) << row.judgement.reason;
  }
  EXPECT_TRUE(report.only_first.empty());
  EXPECT_TRUE(report.only_second.empty());
  EXPECT_FALSE(any_beyond_limit(report));
}

TEST(Compare, FindsWhatChangedInEachDirection) {
  Json later = example();
  scale(later["rows"][0], 0.8);
  scale(later["rows"][4], 1.08);
  const CompareReport report = compared(example(), later);
  EXPECT_EQ(report.rows[0].judgement.verdict, Verdict::kFaster);
  EXPECT_EQ(report.rows[1].judgement.verdict, Verdict::kSame);
  EXPECT_EQ(report.rows[2].judgement.verdict, Verdict::kSlower);
  EXPECT_NEAR(report.rows[2].judgement.ratio, 1.08, 1e-12);
  EXPECT_TRUE(any_beyond_limit(report));
  EXPECT_FALSE(any_beyond_limit(compared(example(), later, {.limit = 0.10})));
}

TEST(Compare, RowsInOneFileOnlyAreNamed) {
  Json later = example();
  later["rows"][0]["seed"] = 1;
  Json& grouped = later["rows"][4];
  grouped["status"] = "timeout";
  grouped["reason"] = "about 9 s a forward";
  grouped["samples"] = 0;
  grouped["verified"] = false;
  grouped["threads"] = nullptr;
  const CompareReport report = compared(example(), later);
  ASSERT_EQ(report.rows.size(), 1U);
  EXPECT_EQ(report.rows[0].first.key.level, "memefficient");
  ASSERT_EQ(report.only_first.size(), 2U);
  EXPECT_EQ(report.only_first[0].reason, "not in b.json");
  EXPECT_EQ(report.only_first[1].reason, "timeout in b.json: about 9 s a forward");
  ASSERT_EQ(report.only_second.size(), 1U);
  const std::string table = render(report, Format::kTable, false);
  EXPECT_NE(table.find("only A  0 naive T=256 seed 0: not in b.json\n"), std::string::npos)
      << table;
  EXPECT_NE(table.find("only B  0 naive T=256 seed 1: not in a.json\n"), std::string::npos)
      << table;
  EXPECT_FALSE(any_beyond_limit(report));
}

TEST(Compare, RefusesWhatCannotBeCompared) {
  Json other = example();
  other["machine"]["cpu"] = "Another Processor";
  EXPECT_EQ(refusal(example(), other),
            "a.json was measured on A Processor With A Rather Long Name That Goes On For A While @ "
            "2.60GHz, 2 cores, up to avx512bf16, b.json on Another Processor, 2 cores, up to "
            "avx512bf16: results of different devices are not compared");
  other = example();
  other["ceilings"]["isa"] = "avx2";
  EXPECT_NE(refusal(example(), other).find("different devices"), std::string::npos);
  EXPECT_NE(refusal(example(), example(true)).find("different devices"), std::string::npos);
  other = example();
  for (Json& row : other["rows"]) row["dtype"] = "bf16";
  EXPECT_EQ(
      refusal(example(), other),
      "a.json has rows in fp32, b.json in bf16: results of different dtypes are not compared");
  other = example();
  other["rows"][3]["verified"] = false;
  EXPECT_EQ(refusal(example(), other),
            "b.json: memefficient at T=256 H=1024 I=2048 E=8 K=2 was not verified; only verified "
            "rows are compared");
  EXPECT_TRUE(refusal(other, example()).starts_with("a.json: memefficient"));
  other = example();
  other["rows"][3]["status"] = "failed";
  other["rows"][3]["reason"] = "row error 0.5";
  EXPECT_EQ(refusal(example(), other),
            "b.json: memefficient at T=256 H=1024 I=2048 E=8 K=2 failed (row error 0.5); only "
            "verified rows are compared");
  other = example();
  other["rows"].push_back(other["rows"][0]);
  EXPECT_EQ(refusal(example(), other),
            "b.json: rows 1 and 8 are both naive at T=256 H=1024 I=2048 E=8 K=2 under the same "
            "conditions");
  other = example();
  other["rows"][3]["expert_load"][0] = 231;
  EXPECT_EQ(
      refusal(example(), other),
      "a.json and b.json: memefficient at T=256 H=1024 I=2048 E=8 K=2 was routed differently, "
      "although skew uniform and seed 0 agree; results of different data are not compared");
  other["rows"][3].erase("expert_load");
  EXPECT_EQ(refusal(example(), other), "");
  other = example();
  for (Json& row : other["rows"]) row["tokens"] = 512;
  EXPECT_EQ(
      refusal(example(), other),
      "no measured row of a.json is in b.json: naive at T=256 H=1024 I=2048 E=8 K=2 is not in "
      "b.json");
}

TEST(Compare, AnotherGpuOfTheKindIsANote) {
  Json other = example(true);
  other["device"]["uuid"] = "GPU-1";
  const CompareReport report = compared(example(true), other);
  ASSERT_EQ(report.notes.size(), 1U);
  EXPECT_NE(report.notes[0].find("GPU-1"), std::string::npos);
}

TEST(Compare, FormsSayTheSame) {
  Json later = example();
  scale(later["rows"][4], 1.08);
  for (Json& sample : later["rows"][3]["sample_us"]) {
    sample = sample.get<double>() < 300e3 ? 250e3 : 400e3;
  }
  const CompareReport report = compared(example(), later);
  const std::string table = render(report, Format::kTable, false);
  std::istringstream lines(table);
  for (std::string line; std::getline(lines, line);) {
    EXPECT_LE(line.size(), 110U) << line;
    EXPECT_FALSE(line.ends_with(' ')) << '"' << line << '"';
    EXPECT_EQ(line.find('\x1b'), std::string::npos);
  }
  EXPECT_NE(table.find("298.00 ms   321.84 ms     +8.0 %"), std::string::npos) << table;
  EXPECT_NE(table.find("SLOWER\n"), std::string::npos) << table;
  EXPECT_NE(table.find("NOISY\n    anything from "), std::string::npos) << table;
  EXPECT_NE(table.find("1 SAME, 0 FASTER, 1 SLOWER, 1 NOISY; 1 slower by more than 5 %"),
            std::string::npos)
      << table;
  EXPECT_NE(render(report, Format::kTable, true).find("\x1b[31mSLOWER"), std::string::npos);
  const std::string text = render(report, Format::kJson, false);
  EXPECT_EQ(test::schema_errors(text, "compare"), "");
  const Json object = Json::parse(text);
  EXPECT_EQ(object["passed"], false);
  EXPECT_EQ(object["rows"][2]["verdict"], "SLOWER");
  EXPECT_EQ(object["rows"][2]["beyond_limit"], true);
  EXPECT_NE(object["rows"][1]["note"].get<std::string>().find("is possible"), std::string::npos);
  EXPECT_NE(render(report, Format::kMarkdown, false)
                .find("| 4 grouped T=256 | 298.00 ms | 321.84 ms | +8.0 % |"),
            std::string::npos);
  EXPECT_THROW((void)render(report, Format::kCsv, false), Error);
}

TEST(Compare, AnIntervalWithoutAnEndIsNullInJson) {
  Json later = example();
  later["rows"][3]["samples"] = 1;
  later["rows"][3]["sample_us"] = {400e3};
  const std::string text = render(compared(example(), later), Format::kJson, false);
  EXPECT_EQ(test::schema_errors(text, "compare"), "");
  EXPECT_TRUE(Json::parse(text)["rows"][1]["ratio_high"].is_null());
}

TEST(History, OneLinePerFileOfEachRowOldestFirst) {
  Json later = example();
  later["run"]["started"] = "2026-02-01T00:00:00Z";
  later["machine"]["commit"] = "0123456789abcdef";
  scale(later["rows"][4], 0.5);
  Json elsewhere = example();
  elsewhere["machine"]["cpu"] = "Another Processor";
  const std::vector<ResultFile> files = {parse_result(later.dump(), "later.json"),
                                         parse_result(example().dump(), "first.json"),
                                         parse_result(elsewhere.dump(), "elsewhere.json")};
  const std::vector<report::History> histories = report::history_of(files, {});
  ASSERT_EQ(histories.size(), 6U) << "three rows on two devices";
  const report::History& grouped = histories[2];
  ASSERT_EQ(grouped.points.size(), 2U);
  EXPECT_EQ(grouped.points[0].file->path, "first.json");
  EXPECT_FALSE(grouped.points[0].change.has_value());
  EXPECT_EQ(grouped.points[1].change->verdict, Verdict::kFaster);
  EXPECT_EQ(histories[5].points.size(), 1U);
  const std::string table = render(histories, Format::kTable, false);
  EXPECT_NE(table.find("  2026-02-01T00:00  0123456789    149.00 ms"), std::string::npos) << table;
  EXPECT_NE(table.find("-50.0 %  FASTER  later.json\n"), std::string::npos) << table;
  const std::string text = render(histories, Format::kJson, false);
  EXPECT_EQ(test::schema_errors(text, "history"), "");
  EXPECT_EQ(Json::parse(text)["series"][2]["points"][1]["ratio"], 0.5);
  EXPECT_NE(render(histories, Format::kMarkdown, false).find("| -50.0 % | FASTER | later.json |"),
            std::string::npos);
  Json unverified = example();
  for (Json& row : unverified["rows"]) row["verified"] = false;
  const std::vector<ResultFile> none = {parse_result(unverified.dump(), "x.json")};
  EXPECT_THROW((void)report::history_of(none, {}), Error);
}

}  // namespace
}  // namespace moe
