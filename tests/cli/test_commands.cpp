// The real program: exit codes, what goes to stdout and stderr, files, signals.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "bench/myths.h"
#include "cli/app.h"
#include "cli/embedded.h"
#include "cli/help.h"
#include "cli/presets.h"
#include "cli/provenance.h"
#include "cli/run_command.h"
#include "core/isa.h"
#include "moe/levels.h"
#include "report/schema_check.h"

namespace moe {
namespace {

using test::run_moe;
using test::Said;

// One thread: a test must not depend on how busy the other processors are.
const std::string kTiny = " --thiek 4,64,32,4,2 --threads 1 --tune-seconds 0 ";

TEST(Provenance, APackTellsItsCommit) {
  const std::string path = testing::TempDir() + "moe_test.commit";
  std::ofstream(path) << "0123abcd modified\n";
  EXPECT_EQ(cli::read_commit(path).hash, "0123abcd");
  EXPECT_TRUE(cli::read_commit(path).modified);
  std::ofstream(path) << "0123abcd\n";
  EXPECT_FALSE(cli::read_commit(path).modified);
  std::filesystem::remove(path);
  EXPECT_EQ(cli::read_commit(path).hash, "");
}

/// Usage errors: one sentence, nothing on stdout.
TEST(Usage, EveryErrorIsOneSentenceWithTheValues) {
  const std::pair<const char*, const char*> cases[] = {
      {"bench run", "moe: no target: give one with -t, such as -t moe_journey\n"},
      {"bench run -t moe_journy",
       "moe: unknown target 'moe_journy'; did you mean 'moe_journey'?\n"},
      {"bench run -t moe_journey --thiek 4,64,64,4,9",
       "moe: top_k=9 exceeds experts=4 (T=4 H=64 I=64 E=4 K=9)\n"},
      {"bench run -t moe_journey --thiek 0,64,64,4,2",
       "moe: tokens=0 must be at least 1 (T=0 H=64 I=64 E=4 K=2)\n"},
      {"bench run -t moe_journey --dtype fp23",
       "moe: unknown dtype 'fp23'; did you mean 'fp32'?\n"},
      {"bench run -t moe_journey --warmup two", "moe: --warmup: 'two' is not a whole number\n"},
      {"bench run -t moe_journey --preset mixtrol-8x7b",
       "moe: unknown preset 'mixtrol-8x7b'; did you mean 'mixtral-8x7b'?\n"},
      {"bench run -t moe_journey --preset lab --thiek 1,1,1,1,1",
       "moe: --preset lab and --thiek 1,1,1,1,1 both give the shape; use one\n"},
      {"bench run -t moe_journey --sede 3",
       "moe: bench run: unknown option '--sede'; did you mean '--seed'?\n"},
      {"bench run -t moe_journey --seed", "moe: bench run: --seed needs a value\n"},
      {"bench rnu", "moe: bench: unknown command 'rnu'; did you mean 'run'?\n"},
      {"bench run -t moe_journey --output /no/such/folder/x.json",
       "moe: cannot write /no/such/folder/x.json: no folder /no/such/folder\n"},
      {"bench run -t moe_journey --backend cpu --cache cod",
       "moe: unknown --cache 'cod'; did you mean 'cold'?\n"},
      {"bench run -t moe_decode --backend cpu --cache dirty",
       "moe: the cpu backend measures with hot caches only, not dirty\n"},
      {"bench run -t moe_decod", "moe: unknown target 'moe_decod'; did you mean 'moe_decode'?\n"},
      {"bench run -t moe_journey --launch grph",
       "moe: unknown --launch 'grph'; did you mean 'graph'?\n"},
      {"bench run -t moe_journey --backend cpu --cache cold",
       "moe: the cpu backend measures with hot caches only, not cold\n"},
      {"presets show", "moe: presets show: NAME is required\n"},
      {"explain naiv", "moe: unknown level 'naiv'; did you mean 'naive'?\n"}};
  for (const auto& [arguments, message] : cases) {
    const Said said = run_moe(arguments);
    EXPECT_EQ(said.code, 2) << arguments;
    EXPECT_EQ(said.out, "") << arguments;
    EXPECT_EQ(said.err, message) << arguments;
  }
}

TEST(Usage, NothingRunnableIsSix) {
#if !MOE_HAVE_CUDA
  const Said said = run_moe("bench run -t moe_journey --backend cuda" + kTiny);
  EXPECT_EQ(said.code, 6);
  EXPECT_EQ(said.out, "");
  EXPECT_EQ(said.err, "moe: this build has no cuda backend\n");
#endif
  if (best_isa() < Isa::kAmx) {
    EXPECT_EQ(run_moe("bench run -t moe_journey --isa amx" + kTiny).code, 6);
  }
}

#if MOE_HAVE_CUDA
TEST(CudaFaults, WithoutADeviceAndWithAnOldDriverEveryRowSaysSo) {
  const std::pair<const char*, const char*> faults[] = {
      {"CUDA_VISIBLE_DEVICES=", "no usable CUDA device: "},
      {"LD_LIBRARY_PATH=" MOE_FAKE_DRIVER_FOLDER, "driver for CUDA 12.4, built with CUDA "}};
  for (const auto& [environment, reason] : faults) {
    SCOPED_TRACE(environment);
    const std::string run = "bench run -t moe_journey -q --format json";
    const Said said = run_moe(run + " --backend cuda" + kTiny, environment);
    EXPECT_EQ(said.code, 6) << said.err;
    EXPECT_EQ(test::schema_errors(said.out), "");
    const test::Json object = test::Json::parse(said.out);
    EXPECT_EQ(object["rows"].size(), list_levels().size());
    for (const test::Json& row : object["rows"]) {
      EXPECT_EQ(row["status"], "skipped");
      EXPECT_EQ(row["backend"], "cuda");
      EXPECT_NE(row["reason"].get<std::string>().find(reason), std::string::npos) << row["reason"];
    }
    EXPECT_TRUE(object["device"].is_null());
    for (const char* command :
         {"roofline --backend cuda", "verify -t moe_journey:0 --backend cuda",
          "verify -q --backend cuda --fuzz 2", "explain auto --backend cuda"}) {
      const Said other = run_moe(command, environment);
      EXPECT_EQ(other.code, 6) << command << other.out << other.err;
      EXPECT_NE((other.out + other.err).find(reason), std::string::npos) << other.out << other.err;
    }
    EXPECT_NE(run_moe("bench list-targets", environment).out.find(reason), std::string::npos);
    // Without --backend the CPU is used, as if there were no CUDA in this build.
    const Said cpu =
        run_moe("bench run -t moe_journey:memefficient -q --format json" + kTiny, environment);
    EXPECT_EQ(cpu.code, 0) << cpu.err;
    EXPECT_EQ(test::Json::parse(cpu.out)["rows"][0]["backend"], "cpu");
  }
}
#endif

TEST(Run, JsonFollowsTheSchema) {
  const Said said = run_moe("bench run -t moe_journey -q --format json" + kTiny);
  ASSERT_EQ(said.code, 0) << said.err;
  EXPECT_EQ(said.err, "");
  EXPECT_EQ(test::schema_errors(said.out), "");
  const test::Json object = test::Json::parse(said.out);
  EXPECT_EQ(object["rows"].size(), list_levels().size());
  for (const test::Json& row : object["rows"]) {
    if (row["status"] == "skipped") continue;
    EXPECT_EQ(row["status"], "ok") << row["reason"];
    EXPECT_EQ(row["verified"], true);
  }
}

TEST(Run, TheReproCommandOfARowRuns) {
  const Said said =
      run_moe("bench run -t moe_journey:3 -q --format json --seed 5 --skew zipf:1.5" + kTiny);
  ASSERT_EQ(said.code, 0) << said.err;
  std::string command = test::Json::parse(said.out)["rows"][0]["repro"];
  ASSERT_TRUE(command.starts_with("./moe ")) << command;
  const Said again = run_moe(command.substr(6) + " -q --format json");
  ASSERT_EQ(again.code, 0) << again.err;
  const test::Json first = test::Json::parse(said.out)["rows"][0];
  const test::Json second = test::Json::parse(again.out)["rows"][0];
  for (const char* same :
       {"target", "dtype", "tokens", "hidden", "skew", "seed", "repro", "error"}) {
    EXPECT_EQ(first[same], second[same]) << same;
  }
}

TEST(Run, DecodeSweepsOneTo256TokensWithWhatAutoTakes) {
  const Said said = run_moe("bench run -t moe_decode --backend cpu -q --format json" + kTiny);
  ASSERT_EQ(said.code, 0) << said.err;
  EXPECT_EQ(test::schema_errors(said.out), "");
  const test::Json object = test::Json::parse(said.out);
  EXPECT_EQ(object["run"]["suite"], "moe_decode");
  std::set<std::int64_t> tokens;
  std::set<std::string> names;
  for (const test::Json& row : object["rows"]) {
    tokens.insert(row["tokens"].get<std::int64_t>());
    names.insert(row["name"].get<std::string>());
    if (row["status"] == "skipped") continue;
    ASSERT_EQ(row["status"], "ok") << row["reason"];
    EXPECT_EQ(row["cache"], "hot");
    const double bytes = 3.0 * 64 * 32 * 4 * row["active_experts"].get<double>();
    EXPECT_NEAR(row["weight_gbs"], bytes / row["median_us"].get<double>() / 1e3, 1e-9);
    EXPECT_NEAR(row["stream_fraction"],
                row["stream_floor_us"].get<double>() / row["median_us"].get<double>(), 1e-12);
    if (row["name"] == "auto") {
      EXPECT_TRUE(row["technique"].get<std::string>().starts_with("takes ")) << row["technique"];
    }
  }
  EXPECT_EQ(tokens, (std::set<std::int64_t>{1, 2, 4, 8, 16, 32, 64, 128, 256}));
  EXPECT_TRUE(names.contains("auto"));
  EXPECT_TRUE(names.contains("memefficient"));
  EXPECT_FALSE(names.contains("naive"));
  const std::string auto_row = object["rows"].back()["repro"];
  EXPECT_NE(auto_row.find("-t moe_decode:auto"), std::string::npos) << auto_row;
  const Said one = run_moe(auto_row.substr(6) + " -q");
  EXPECT_EQ(one.code, 0) << one.err;
  EXPECT_NE(one.out.find("share of the stream floor"), std::string::npos) << one.out;
}

TEST(Run, EveryLevelOutOfMemoryIsSeven) {
  const Said said = run_moe("bench run -t moe_journey:1 -q --workspace-limit 1" + kTiny);
  EXPECT_EQ(said.code, 7);
  EXPECT_NE(said.out.find("out of memory"), std::string::npos) << said.out;
}

TEST(Run, OutputFileIsCompleteOrAbsent) {
  const std::string path = ::testing::TempDir() + "moe_result.json";
  std::filesystem::remove(path);
  EXPECT_EQ(
      run_moe("bench run -t moe_journey:0 --thiek 4,64,32,4,9 --format json --output " + path).code,
      2);
  EXPECT_FALSE(std::filesystem::exists(path));
  const Said said = run_moe("bench run -t moe_journey:0 -q --format json --output " + path + kTiny);
  EXPECT_EQ(said.code, 0) << said.err;
  EXPECT_EQ(said.out, "");
  EXPECT_EQ(test::schema_errors(test::read_all(path)), "");
  for (const auto& entry : std::filesystem::directory_iterator(::testing::TempDir())) {
    EXPECT_EQ(entry.path().string().find(".part-"), std::string::npos) << entry.path();
  }
  std::filesystem::remove(path);
}

TEST(Run, FullStdoutIsAnError) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP();
  const std::string command = MOE_BINARY " presets list >/dev/full 2>/dev/null";
  EXPECT_EQ(WEXITSTATUS(std::system(command.c_str())), 2);
}

TEST(Run, AnUnreachableTimeoutIs124) {
  const Said said = run_moe("bench run -t moe_journey:0 -q --timeout 0.01 --thiek 256,256,256,4,2");
  EXPECT_EQ(said.code, 124) << said.out << said.err;
  EXPECT_NE(said.out.find("timeout: "), std::string::npos);
}

TEST(Run, InterruptEndsWithinASecondWithWhatWasFinished) {
  // memefficient has samples at once, and naive is in a forward of more than a second most of the
  // time: at that moment the signal comes.
  const test::Interrupted run = test::interrupt_moe(
      {"bench", "run", "-t", "moe_journey:naive", "-t", "moe_journey:memefficient", "--thiek",
       "32,512,1024,4,2", "--min-samples", "100000", "--timeout", "0", "--threads", "1", "--format",
       "json"},
      "round 11/");
  EXPECT_LT(run.seconds, 1.0);
  ASSERT_EQ(run.said.code, 130) << run.said.err;
  EXPECT_EQ(test::schema_errors(run.said.out), "");
  const test::Json object = test::Json::parse(run.said.out);
  EXPECT_EQ(object["run"]["complete"], false);
  EXPECT_EQ(object["run"]["exit_code"], 130);
  ASSERT_EQ(object["rows"].size(), 2U);
  EXPECT_GE(object["rows"][0]["samples"], 1);
}

TEST(Verify, InterruptLeavesWholeLines) {
  const test::Interrupted verify = test::interrupt_moe(
      {"verify", "--preset", "all", "--scale-down", "16", "--backend", "cpu", "--threads", "1"},
      " ok: ");
  EXPECT_EQ(verify.said.code, 130);
  EXPECT_LT(verify.seconds, 1.0);
  ASSERT_FALSE(verify.said.out.empty());
  EXPECT_EQ(verify.said.out.back(), '\n');
}

TEST(List, TargetsOnePerLine) {
  const std::size_t targets =
      3 * (list_levels().size() + list_variants().size() + 1) + list_myths().size();
  const Said said = run_moe("bench list-targets");
  EXPECT_EQ(said.code, 0);
  std::size_t listed = 0;
  std::size_t reasons = 0;
  std::istringstream lines(said.out);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("moe_")) ++listed;
    if (line.starts_with("* ")) ++reasons;
    EXPECT_TRUE(line.starts_with("moe_") || line.starts_with("* ")) << line;
  }
  EXPECT_EQ(listed, targets);
  EXPECT_TRUE(said.out.starts_with("moe_journey:naive ")) << said.out;
  const test::Json array = test::Json::parse(run_moe("bench list-targets --json").out);
  EXPECT_EQ(array.size(), targets);
  EXPECT_EQ(array[0]["target"], "moe_journey:naive");
  // Every level that is said to be unable to run has a reason, and the text has each reason once.
  std::set<std::string> said_reasons;
  for (const test::Json& target : array) {
    if (!target.contains("cannot_run")) continue;  // "auto", or a claim
    for (const auto& [backend, reason] : target["cannot_run"].items()) {
      EXPECT_NE(reason, "");
      said_reasons.insert(backend + ": " + reason.get<std::string>());
    }
  }
  EXPECT_EQ(reasons, said_reasons.size());
}

TEST(Verify, PassesAndFuzzes) {
  const Said said = run_moe("verify" + kTiny);
  EXPECT_EQ(said.code, 0) << said.out << said.err;
  EXPECT_NE(said.out.find("0 naive"), std::string::npos);
  const Said fuzz = run_moe("verify -q --fuzz 3 --fuzz-seed 11");
  EXPECT_EQ(fuzz.code, 0) << fuzz.out << fuzz.err;
  EXPECT_NE(fuzz.out.find("3 cases"), std::string::npos) << fuzz.out;
  EXPECT_EQ(run_moe("verify --fuzz 0").code, 2);
}

TEST(Verify, EveryPresetScaledDown) {
  const Said said =
      run_moe("verify --preset all --scale-down 64 --axis tokens=5 --tune-seconds 0 --backend cpu");
  EXPECT_EQ(said.code, 0) << said.out << said.err;
  // Its proportions, expert for expert: 7168/64, 2048/64, 256 experts, 8 of them a token.
  EXPECT_NE(said.out.find("T=5 H=112 I=32 E=256 K=8"), std::string::npos) << said.out;
  for (const cli::Preset& preset : cli::list_presets()) {
    EXPECT_NE(said.out.find(preset.name + " "), std::string::npos) << preset.name;
  }
  const Said one =
      run_moe("verify --preset gpt-oss-20b --scale-down -t moe_journey:fused --backend cpu");
  EXPECT_EQ(one.code, 0) << one.out << one.err;
  EXPECT_NE(one.out.find("T=32 H=180 I=180 E=32 K=4"), std::string::npos) << one.out;
  for (const char* wrong : {"verify --scale-down 0", "verify --scale-down --thiek 1,1,1,1,1",
                            "verify --scale-down --fuzz 3"}) {
    const Said refused = run_moe(wrong);
    EXPECT_EQ(refused.code, 2) << wrong;
    EXPECT_NE(refused.err.find("--scale-down"), std::string::npos) << refused.err;
  }
}

TEST(Explain, EveryLevelHasItsReasons) {
  for (const LevelInfo& level : list_levels()) {
    const Said said = run_moe("explain " + level.name);
    EXPECT_EQ(said.code, 0) << said.err;
    for (const char* part : {"Changes", "Why", "Costs"}) {
      EXPECT_NE(said.out.find(part), std::string::npos) << level.name;
    }
    EXPECT_EQ(said.out.find("#include"), std::string::npos);
  }
  const Said plan = run_moe("explain auto" + kTiny);
  EXPECT_EQ(plan.code, 0) << plan.err;
  EXPECT_TRUE(plan.out.starts_with("auto takes ")) << plan.out;
  EXPECT_NE(plan.out.find("\nplan of "), std::string::npos) << plan.out;
}

TEST(Others, PresetsDoctorRooflineVersion) {
  EXPECT_EQ(run_moe("presets list").code, 0);
  EXPECT_NE(run_moe("presets show gpt-oss-20b").out.find("2880"), std::string::npos);
  EXPECT_NE(run_moe("presets show gpt-oss-120b").out.find("128"), std::string::npos);
  EXPECT_EQ(test::Json::parse(run_moe("presets show lab --json").out)["hidden"], 1024);
  const test::Json imported = test::Json::parse(
      run_moe("presets import --json " MOE_SOURCE_DIR "/tests/interop/fixtures/gpt_oss/config.json")
          .out);
  EXPECT_EQ(imported["name"], "gpt_oss");
  EXPECT_EQ(imported["experts"], 4);
  EXPECT_EQ(imported["activation"], "swiglu,alpha=1.702,limit=7,up=1");
  EXPECT_EQ(run_moe("presets import /none").code, 2);
  const Said doctor = run_moe("doctor");
  EXPECT_EQ(doctor.code, 0);
  for (const char* part :
       {"cpu ", "isa ", "memory ", "cuda ", "gpus ", "libraries ", "tuning cache "}) {
    EXPECT_NE(doctor.out.find(part), std::string::npos) << part;
  }
  EXPECT_NE(run_moe("doctor", "OMP_WAIT_POLICY=passive").out.find("unset it"), std::string::npos);
  const test::Json roofline = test::Json::parse(run_moe("roofline --samples 2 --json").out);
  EXPECT_GT(roofline["fp32_gflops"], 0);
  EXPECT_EQ(roofline["roofs"].size(), 1U);
  EXPECT_TRUE(run_moe("--version").out.starts_with("moe "));
}

/// Long and short options that a help text mentions.
std::set<std::string> options_in(const std::string& text) {
  std::set<std::string> found;
  for (std::size_t at = text.find("--"); at != std::string::npos; at = text.find("--", at + 2)) {
    std::size_t end = at + 2;
    while (end < text.size() &&
           (std::isalpha(static_cast<unsigned char>(text[end])) != 0 || text[end] == '-'))
      ++end;
    if (end > at + 2) found.insert(text.substr(at, end - at));
  }
  return found;
}

TEST(Help, IsASectionOfThePageAndNamesItsOptions) {
  const std::string page(cli::embedded_file("docs/cli.md"));
  for (const char* command : {"",
                              "bench",
                              "bench run",
                              "bench list-targets",
                              "bench compare",
                              "bench history",
                              "verify",
                              "presets",
                              "presets list",
                              "presets show",
                              "presets import",
                              "inspect",
                              "report",
                              "explain",
                              "tune",
                              "roofline",
                              "doctor",
                              "route",
                              "route gen",
                              "route stats",
                              "route convert"}) {
    const std::string name = *command == '\0' ? "moe" : std::string("moe ") + command;
    const Said said = run_moe(std::string(command) + " --help");
    EXPECT_EQ(said.code, 0) << name;
    EXPECT_EQ(said.err, "");
    EXPECT_EQ(said.out, cli::help_text(name));
    EXPECT_EQ(said.out.find('`'), std::string::npos);
    EXPECT_NE(page.find("## `" + name + "`"), std::string::npos);
    const std::vector<std::string> real = cli::option_names(name);
    if (real.empty()) continue;  // groups of commands and the program itself
    EXPECT_EQ(options_in(said.out), std::set<std::string>(real.begin(), real.end())) << name;
  }
}

}  // namespace
}  // namespace moe
