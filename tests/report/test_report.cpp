#include <gtest/gtest.h>

#include <sstream>

#include "moe/error.h"
#include "report/cells.h"
#include "report/example_report.h"
#include "report/schema_check.h"

namespace moe {
namespace {

using report::Format;
using report::render;

std::vector<std::string> lines_of(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

const std::string& line_with(const std::vector<std::string>& lines, const std::string& beginning) {
  static const std::string kNone;
  for (const std::string& line : lines) {
    if (line.starts_with(beginning)) return line;
  }
  ADD_FAILURE() << "no line begins with " << beginning;
  return kNone;
}

TEST(Table, FitsIn110ColumnsAndHasNoTrailingSpaces) {
  for (const char* suite : {"moe_journey", "moe_scale"}) {
    report::Report report = test::example_report();
    report.suite = suite;
    for (const std::string& line : lines_of(render(report, Format::kTable, false))) {
      EXPECT_LE(line.size(), 110U) << line;
      EXPECT_FALSE(line.ends_with(' ')) << '"' << line << '"';
      EXPECT_EQ(line.find('\x1b'), std::string::npos);
    }
  }
}

TEST(Table, OfAGpuShowsTheTwinAndTheConditions) {
  const report::Report report = test::example_gpu_report();
  const std::string text = render(report, Format::kTable, false);
  const auto lines = lines_of(text);
  for (const std::string& line : lines) EXPECT_LE(line.size(), 110U) << line;
  EXPECT_NE(line_with(lines, "level").find(" twin "), std::string::npos) << text;
  EXPECT_NE(line_with(lines, "4 grouped").find("0.3 %"), std::string::npos) << text;
  EXPECT_NE(line_with(lines, "4 grouped").find("[graph] does what"), std::string::npos) << text;
  EXPECT_NE(line_with(lines, "0 naive").find("[eager] does what"), std::string::npos) << text;
  EXPECT_EQ(text.find("[cold]"), std::string::npos) << "all rows are, and the last lines say so";
  EXPECT_NE(line_with(lines, "measured").find("with cold caches"), std::string::npos) << text;
  EXPECT_NE(line_with(lines, "twin").find("1.00 ms cold, floor 1.10 ms"), std::string::npos);
  EXPECT_NE(line_with(lines, "clocks").find("1300 MHz (naive, 650 W, 60 C) to 1304 MHz"),
            std::string::npos)
      << text;
  EXPECT_NE(line_with(lines, "device").find("An Accelerator"), std::string::npos);
  EXPECT_NE(line_with(lines, "ceilings").find("fp8 1300.0 TFLOP/s"), std::string::npos) << text;
}

TEST(Table, OfADecodeRunHasTimesRatesAndShares) {
  const report::Report report = test::example_decode_report();
  const std::string text = render(report, Format::kTable, false);
  const auto lines = lines_of(text);
  for (const std::string& line : lines) {
    EXPECT_LE(line.size(), 110U) << line;
    EXPECT_FALSE(line.ends_with(' ')) << '"' << line << '"';
  }
  const std::size_t dirty = text.find("median time of a forward, dirty caches, graph launches");
  ASSERT_NE(dirty, std::string::npos) << text;
  EXPECT_LT(text.find("median time of a forward, cold caches, graph launches"), dirty);
  const std::string head = " tokens  active     floor    persistent     streaming          auto\n";
  EXPECT_NE(
      text.find(head + "      1       2   20.0 us       40.0 us       25.0 us       25.0 us\n"
                       "     64       8   1.28 ms       2.56 ms       skipped       1.60 ms\n"),
      std::string::npos)
      << text;
  EXPECT_NE(text.find("TB/s of weights of active experts\n" + head +
                      "      1       2   20.0 us          1.62          2.60          2.60\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("share of the stream floor\n" + head +
                      "      1       2   20.0 us          50 %          80 %          80 %\n"
                      "     64       8   1.28 ms          50 %             -          80 %\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("          44 %          67 %          67 %\n", dirty), std::string::npos)
      << text;
  EXPECT_NE(line_with(lines, "floor ").find("4000.0 GB/s over all), and 3.8 us of an empty kernel"),
            std::string::npos);
  EXPECT_EQ(line_with(lines, "auto "),
            "auto      takes streaming from T=1, takes persistent from T=64");
  EXPECT_NE(line_with(lines, "note ").find("streaming from T=64: skipped: a reason"),
            std::string::npos);

  const std::string markdown = render(report, Format::kMarkdown, false);
  EXPECT_NE(markdown.find("| tokens | active experts | floor | persistent | streaming | auto |\n"),
            std::string::npos)
      << markdown;
  EXPECT_NE(
      markdown.find("| 1 | 2 | 20.0 us | 40.0 us, 1.62 TB/s, 50 % | 25.0 us, 2.60 TB/s, 80 % |"),
      std::string::npos)
      << markdown;
  EXPECT_NE(markdown.find("| 64 | 8 | 1.28 ms | 2.56 ms, "), std::string::npos) << markdown;
  EXPECT_NE(markdown.find(" | skipped | 1.60 ms, "), std::string::npos) << markdown;
}

TEST(Json, OfADecodeRunHasTheStreamFloor) {
  const report::Report report = test::example_decode_report();
  const std::string text = render(report, Format::kJson, false);
  EXPECT_EQ(test::schema_errors(text), "");
  const test::Json object = test::Json::parse(text);
  EXPECT_EQ(object["run"]["suite"], "moe_decode");
  EXPECT_EQ(object["ceilings"]["empty_us"], 3.75);
  EXPECT_EQ(object["rows"][1]["cache"], "dirty");
  EXPECT_EQ(object["rows"][1]["stream_floor_us"], 20);
  EXPECT_DOUBLE_EQ(object["rows"][1]["stream_fraction"], 20.0 / 45);
  EXPECT_EQ(object["rows"][2]["weight_gbs"], 2600);
  EXPECT_TRUE(object["rows"][8]["stream_fraction"].is_null());
  const std::string csv = render(report, Format::kCsv, false);
  EXPECT_NE(csv.substr(0, csv.find('\n')).find(",weight_gbs,stream_floor_us,stream_fraction,"),
            std::string::npos);
}

TEST(Table, ShowsTheKernelsOfALevel) {
  const std::string text = render(test::example_gpu_report(), Format::kTable, false);
  const auto lines = lines_of(text);
  EXPECT_EQ(line_with(lines, "kernels of 4 grouped"),
            "kernels of 4 grouped: 17 launches in 260.0 us, 92 % of them busy; largest gap 12.0 us "
            "before gemm")
      << text;
  EXPECT_NE(text.find("\n    200.0 us     80 %        16  2.86 MiB   gemm\n"), std::string::npos)
      << text;
  EXPECT_NE(text.find("    50.0 us     20 %         1  -          a_kernel_with"),
            std::string::npos)
      << text;
  EXPECT_NE(line_with(lines, "kernels of 0 naive").find("libcupti.so.13 is not"),
            std::string::npos);
  EXPECT_EQ(render(test::example_report(), Format::kTable, false).find("kernels of"),
            std::string::npos);
  const test::Json row =
      test::Json::parse(render(test::example_gpu_report(), Format::kJson, false))["rows"][4];
  EXPECT_EQ(row["kernels"]["by_name"][0]["bytes"], 3e6);
  EXPECT_TRUE(row["kernels"]["by_name"][1]["bytes"].is_null());
  EXPECT_NE(render(test::example_gpu_report(), Format::kMarkdown, false).find("kernels of 4"),
            std::string::npos);
}

TEST(Table, ShowsTheLoadOfTheExperts) {  // in lines of at most 110 columns
  report::Report report = test::example_report();
  const auto load_line = [&] {
    return line_with(lines_of(render(report, Format::kTable, false)), "load");
  };
  EXPECT_EQ(
      load_line(),
      "load      15 %, 14 %, 13 %, 12 %, 12 %, 12 %, 11 %, 11 % of the rows, expert by expert "
      "from the busiest");
  std::vector<std::int64_t>& load = report.rows[0].bench.expert_load;
  load.assign(100, 5);
  load[70] = 505;
  EXPECT_EQ(load_line(),
            "load      busiest expert 50 % of the rows, 0.5 % the 2nd, 0.5 % the 11th, 0.5 % the "
            "median one, 0.5 % the");
  for (report::ReportRow& row : report.rows) row.bench.expert_load.clear();
  EXPECT_EQ(render(report, Format::kTable, false).find("\nload "), std::string::npos);
}

TEST(Table, ColumnsAreAligned) {
  const auto lines = lines_of(render(test::example_report(), Format::kTable, false));
  const std::string& head = line_with(lines, "level");
  const std::string& naive = line_with(lines, "0 naive");
  const std::string& grouped = line_with(lines, "4 grouped");
  // Numbers end where their titles end.
  const auto end_of = [](const std::string& line, const std::string& text) {
    const std::size_t at = line.find(text);
    EXPECT_NE(at, std::string::npos) << text << " in " << line;
    return at + text.size();
  };
  EXPECT_EQ(end_of(naive, "2.10 s"), end_of(head, "median"));
  EXPECT_EQ(end_of(grouped, "298.00 ms"), end_of(head, "median"));
  EXPECT_EQ(end_of(grouped, "7.05x"), end_of(head, "speedup"));
  EXPECT_EQ(end_of(grouped, "~1.01x"), end_of(head, "change"));
  EXPECT_EQ(end_of(grouped, "2.00 MiB"), end_of(head, "memory"));
  EXPECT_EQ(end_of(grouped, "22 %"), end_of(head, "tol."));
  EXPECT_EQ(grouped.find("does what"), head.find("what it does"));
}

TEST(Table, SaysWhatCouldNotBeMeasuredAndWhatIsNoise) {
  const std::string text = render(test::example_report(), Format::kTable, false);
  EXPECT_NE(text.find("1 batched       out of memory: a reason"), std::string::npos) << text;
  EXPECT_NE(text.find("2 fused         timeout: "), std::string::npos);
  EXPECT_NE(text.find("5 graphs        skipped: "), std::string::npos);
  EXPECT_NE(text.find("6 compiled      failed: "), std::string::npos);
  EXPECT_NE(text.find("not distinguishable"), std::string::npos);
  EXPECT_NE(text.find("1.2 % between two series of grouped"), std::string::npos);
}

TEST(Table, ReproCommandSurvivesItsLineBreaks) {
  const auto lines = lines_of(render(test::example_report(), Format::kTable, false));
  std::string command;
  bool inside = false;
  for (std::string line : lines) {
    inside = inside || line.starts_with("repro");
    if (!inside) continue;
    const bool more = line.ends_with(" \\");
    line = line.substr(10, line.size() - 10 - (more ? 2 : 0));
    command += (command.empty() ? "" : " ") + line;
    inside = more;
  }
  EXPECT_EQ(command, test::example_report().command);
}

TEST(Table, ColorOnlyWhenAsked) {
  const std::string text = render(test::example_report(), Format::kTable, true);
  EXPECT_NE(text.find("\x1b["), std::string::npos);
}

TEST(ScaleTable, HasALinePerTokenCount) {
  report::Report report = test::example_report();
  report.suite = "moe_scale";
  report::Report other = test::example_report();
  for (report::ReportRow& row : other.rows) {
    row.bench.problem.shape.tokens = 1024;
    report.rows.push_back(row);
  }
  const std::string text = render(report, Format::kTable, false);
  const auto lines = lines_of(text);
  EXPECT_NE(line_with(lines, "     256").find("OOM 64G"), std::string::npos);
  EXPECT_NE(line_with(lines, "    1024").find("300.00 ms"), std::string::npos);
  EXPECT_NE(text.find("batched from T=256: out of memory"), std::string::npos) << text;
}

TEST(ScaleTable, ComparesTheGainsAtFewAndAtManyTokens) {
  report::Report report = test::example_report();
  report.suite = "moe_scale";
  report.scale_reasons["grouped"] = "rows per expert grow";
  for (report::ReportRow& row : report.rows) row.bench.problem.shape.tokens = 2048;
  report::Report more = report;
  for (const std::int64_t tokens : {std::int64_t{4096}, std::int64_t{8192}}) {
    for (report::ReportRow row : more.rows) {
      row.bench.problem.shape.tokens = tokens;
      if (row.bench.level.name == "grouped") {
        row.bench.gain_vs_previous = 3.5;
        row.bench.distinguishable = true;
      }
      report.rows.push_back(row);
    }
  }
  const auto lines = lines_of(render(report, Format::kTable, false));
  EXPECT_EQ(line_with(lines, "level"),
            "level           at T=2048                 at T=8192                 why");
  EXPECT_EQ(
      line_with(lines, "4 grouped"),
      "4 grouped       ~1.01x over memefficient  3.50x over memefficient   rows per expert grow");
  EXPECT_EQ(line_with(lines, "1 batched"),
            "1 batched       out_of_memory             out_of_memory");
  for (const std::string& line : lines) EXPECT_LE(line.size(), 110U) << line;
}

TEST(Json, FollowsItsSchema) {
  EXPECT_EQ(test::schema_errors(render(test::example_report(), Format::kJson, false)), "");
  report::Report empty = test::example_report();
  empty.rows.clear();
  empty.noise.clear();
  EXPECT_EQ(test::schema_errors(render(empty, Format::kJson, false)), "");
}

TEST(Json, OfAGpuFollowsTheSchema) {
  const std::string text = render(test::example_gpu_report(), Format::kJson, false);
  EXPECT_EQ(test::schema_errors(text), "");
  const test::Json object = test::Json::parse(text);
  EXPECT_EQ(object["device"]["multiprocessors"], 100);
  EXPECT_EQ(object["ceilings"]["fp8_gflops"], 1300e3);
  const test::Json& row = object["rows"][4];
  EXPECT_EQ(row["launch"], "graph");
  EXPECT_EQ(row["cache"], "cold");
  EXPECT_EQ(row["twin_ms"], 1.0);
  EXPECT_EQ(row["twin_fraction"], 1000 / 298e3);
  EXPECT_EQ(row["floor_ms"], 1.1);
  EXPECT_EQ(row["floor_fraction"], 1100 / 298e3);
  EXPECT_EQ(row["sm_clock_mhz"], 1304);
  EXPECT_EQ(row["power_w"], 650.0);
  EXPECT_EQ(row["temperature_c"], 60);
  EXPECT_EQ(row["throttle"], "sw power cap");
  EXPECT_TRUE(object["rows"][1]["twin_ms"].is_null());
  EXPECT_TRUE(object["rows"][5]["launch"].is_null()) << "nothing ran and nothing was asked for";
  const test::Json cpu = test::Json::parse(render(test::example_report(), Format::kJson, false));
  EXPECT_TRUE(cpu["device"].is_null());
  EXPECT_EQ(cpu["rows"][0]["cache"], "hot");
}

TEST(Json, SchemaCheckFindsWhatIsWrong) {
  const test::Json good = test::Json::parse(render(test::example_report(), Format::kJson, false));
  const auto broken = [&](const char* pointer, const test::Json& value) {
    test::Json bad = good;
    bad[test::Json::json_pointer(pointer)] = value;
    return test::schema_errors(bad.dump());
  };
  EXPECT_NE(broken("/rows/0/median_us", "fast"), "");
  EXPECT_NE(broken("/rows/0/median_us", -1), "");
  EXPECT_NE(broken("/rows/0/status", "fine"), "");
  EXPECT_NE(broken("/rows/0/level", 0.5), "");
  EXPECT_NE(broken("/rows/0/extra", 1), "");
  EXPECT_NE(broken("/rows/0/cache", "warm"), "");
  EXPECT_NE(broken("/rows/0/launch", "auto"), "");
  EXPECT_NE(broken("/rows/0/sm_clock_mhz", 1300.5), "");
  EXPECT_NE(broken("/device", test::Json{{"name", "no more"}}), "");
  EXPECT_NE(broken("/schema", "moe-result-0"), "");
  EXPECT_NE(broken("/machine/libraries/fmt", 9), "");
  test::Json bad = good;
  bad["rows"][0].erase("repro");
  EXPECT_NE(test::schema_errors(bad.dump()), "");
}

TEST(Json, HasTheFieldsOfTheContract) {
  const test::Json object = test::Json::parse(render(test::example_report(), Format::kJson, false));
  for (const char* key : {"schema", "run", "machine", "ceilings", "rows"}) {
    EXPECT_TRUE(object.contains(key)) << key;
  }
  for (const char* key : {"target",
                          "level",
                          "name",
                          "backend",
                          "dtype",
                          "status",
                          "reason",
                          "tokens",
                          "hidden",
                          "intermediate",
                          "experts",
                          "top_k",
                          "skew",
                          "seed",
                          "verified",
                          "error",
                          "tolerance_used",
                          "median_us",
                          "iqr_us",
                          "samples",
                          "speedup_vs_first",
                          "gain_vs_previous",
                          "distinguishable",
                          "gflops",
                          "ceiling_fraction",
                          "bound",
                          "workspace_bytes",
                          "peak_bytes",
                          "bytes_needed",
                          "isa",
                          "launch",
                          "cache",
                          "twin_ms",
                          "twin_fraction",
                          "floor_ms",
                          "floor_fraction",
                          "sm_clock_mhz",
                          "power_w",
                          "temperature_c",
                          "throttle",
                          "repro"}) {
    EXPECT_TRUE(object["rows"][0].contains(key)) << key;
  }
}

TEST(Json, HasTheSamplesOnOneLine) {
  report::Report report = test::example_report();
  report.rows[0].bench.sample_us = {1.5, 2.25, 1234567.8912};
  report.rows[0].bench.plan = "brackets [1, 2] and a \\" + std::string(1, '"') + "[3,\n 4]";
  const std::string text = render(report, Format::kJson, false);
  EXPECT_NE(text.find("\"sample_us\": [1.5,2.25,1234567.891],\n"), std::string::npos);
  const test::Json object = test::Json::parse(text);
  EXPECT_EQ(object["rows"][0]["plan"], report.rows[0].bench.plan);
  EXPECT_EQ(object["rows"][0]["sample_us"][1], 2.25);
  EXPECT_TRUE(object["rows"][1]["sample_us"].empty()) << "nothing was timed";
}

TEST(Json, NullsWhatWasNotMeasured) {
  const test::Json object = test::Json::parse(render(test::example_report(), Format::kJson, false));
  const test::Json& oom = object["rows"][1];
  EXPECT_EQ(oom["status"], "out_of_memory");
  EXPECT_TRUE(oom["median_us"].is_null());
  EXPECT_TRUE(oom["peak_bytes"].is_null());
  EXPECT_TRUE(oom["error"].is_null());
  EXPECT_EQ(oom["bytes_needed"], std::uint64_t{64} << 30);
  EXPECT_EQ(oom["verified"], false);
  EXPECT_TRUE(object["rows"][6]["error"].is_null()) << "JSON has no infinity";
  EXPECT_EQ(object["rows"][4]["distinguishable"], false);
  EXPECT_TRUE(object["rows"][0]["distinguishable"].is_null());
}

TEST(Csv, HasOneLinePerRowAndQuotesWhatNeedsIt) {
  const auto lines = lines_of(render(test::example_report(), Format::kCsv, false));
  ASSERT_EQ(lines.size(), 8U);
  EXPECT_TRUE(lines[0].starts_with("target,level,name,technique,backend,dtype,status,reason,"));
  EXPECT_TRUE(lines[0].ends_with(",repro"));
  EXPECT_TRUE(lines[1].starts_with(
      "moe_journey:naive,0,naive,\"does what naive does, with \"\"quotes\"\", commas"))
      << lines[1];
  // As many separators outside of quotes as in the head.
  const auto separators = [](const std::string& line) {
    bool quoted = false;
    int count = 0;
    for (const char letter : line) {
      if (letter == '"') quoted = !quoted;
      if (letter == ',' && !quoted) ++count;
    }
    return count;
  };
  for (const std::string& line : lines) EXPECT_EQ(separators(line), separators(lines[0])) << line;
}

TEST(Markdown, EveryRowHasEightCells) {
  int rows = 0;
  for (const std::string& line :
       lines_of(render(test::example_report(), Format::kMarkdown, false))) {
    if (!line.starts_with("| ")) continue;
    ++rows;
    EXPECT_EQ(std::count(line.begin(), line.end(), '|'), 9) << line;
  }
  EXPECT_EQ(rows, 8);
}

TEST(Format, NearestMatch) {
  EXPECT_EQ(report::parse_format("md"), Format::kMarkdown);
  try {
    (void)report::parse_format("jsn");
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "unknown format 'jsn'; did you mean 'json'?");
  }
}

TEST(Wrap, BreaksAtSpacesAndCutsLongWords) {
  EXPECT_EQ(report::wrap("aaa bbb ccc", 7), (std::vector<std::string>{"aaa bbb", "ccc"}));
  EXPECT_EQ(report::wrap("aaaaaaaaaa", 4), (std::vector<std::string>{"aaaa", "aaaa", "aa"}));
  EXPECT_EQ(report::wrap("", 4), (std::vector<std::string>{""}));
}

}  // namespace
}  // namespace moe
