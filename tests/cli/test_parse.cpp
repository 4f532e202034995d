#include <gtest/gtest.h>

#include "cli/exit_codes.h"
#include "cli/options.h"
#include "cli/parse.h"
#include "cli/presets.h"

namespace moe::cli {
namespace {

template <class Function>
std::string error_of(Function function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Parse, IntegersAreStrict) {
  EXPECT_EQ(parse_integer("--n", "42", 0, 100), 42);
  EXPECT_EQ(parse_integer("--n", "-3", -5, 5), -3);
  for (const char* bad : {"", " 1", "1 ", "1x", "0x10", "1.0", "1e3", "+1", "--1", "one"}) {
    EXPECT_EQ(error_of([&] { (void)parse_integer("--n", bad, 0, 100); }),
              std::string("--n: '") + bad + "' is not a whole number");
  }
  EXPECT_EQ(error_of([] { (void)parse_integer("--n", "101", 0, 100); }),
            "--n: 101 is not between 0 and 100");
  EXPECT_EQ(error_of([] { (void)parse_integer("--n", "9223372036854775808", 0, 100); }),
            "--n: 9223372036854775808 does not fit in 64 bits");
}

TEST(Parse, SeedsUseAll64Bits) {
  EXPECT_EQ(parse_seed("--seed", "18446744073709551615"), ~std::uint64_t{0});
  EXPECT_NE(error_of([] { (void)parse_seed("--seed", "18446744073709551616"); }), "no error");
  EXPECT_NE(error_of([] { (void)parse_seed("--seed", "-1"); }), "no error");
}

TEST(Parse, Seconds) {
  EXPECT_DOUBLE_EQ(parse_seconds("--timeout", "0.5"), 0.5);
  for (const char* bad : {"", "-1", "nan", "inf", "1s", "1e999"}) {
    EXPECT_NE(error_of([&] { (void)parse_seconds("--timeout", bad); }), "no error") << bad;
  }
}

TEST(Parse, Bytes) {
  EXPECT_EQ(parse_bytes("--limit", "1048576"), 1048576U);
  EXPECT_EQ(parse_bytes("--limit", "512MiB"), std::uint64_t{512} << 20);
  EXPECT_EQ(parse_bytes("--limit", "6G"), std::uint64_t{6} << 30);
  for (const char* bad : {"", "G", "4Q", "-1", "1.5G", "0", "99999999999T"}) {
    EXPECT_NE(error_of([&] { (void)parse_bytes("--limit", bad); }), "no error") << bad;
  }
}

TEST(Parse, Thiek) {
  EXPECT_EQ(parse_thiek("512,1024,2048,8,2"), (Shape{512, 1024, 2048, 8, 2}));
  EXPECT_EQ(error_of([] { (void)parse_thiek("1,2,3,4"); }),
            "--thiek: '1,2,3,4' has 4 values, but T,H,I,E,K are 5");
  EXPECT_NE(error_of([] { (void)parse_thiek("0,64,64,4,2"); }).find("tokens=0"), std::string::npos);
  EXPECT_NE(error_of([] { (void)parse_thiek("4,64,-64,4,2"); }).find("intermediate=-64"),
            std::string::npos);
  EXPECT_NE(error_of([] { (void)parse_thiek("4,64,64,4,5"); }).find("top_k=5 exceeds experts=4"),
            std::string::npos);
  EXPECT_NE(
      error_of([] { (void)parse_thiek("2000000000,2000000000,2000000000,8,8"); }).find("overflows"),
      std::string::npos);
}

TEST(Parse, TokensAxis) {
  using List = std::vector<std::int64_t>;
  EXPECT_EQ(parse_tokens_axis("tokens=64,1,512,64"), (List{1, 64, 512}));
  EXPECT_EQ(parse_tokens_axis("tokens=1:100:*4"), (List{1, 4, 16, 64}));
  EXPECT_EQ(parse_tokens_axis("tokens=64:192:+64,7"), (List{7, 64, 128, 192}));
  for (const char* bad : {"", "tokens", "tokens=", "topk=1", "tokens=1,,2", "tokens=0",
                          "tokens=4:1:*2", "tokens=1:4:2", "tokens=1:4:*1", "tokens=1:4:+0",
                          "tokens=1:4", "tokens=1:2000000000:+1", "tokens=2147483648"}) {
    EXPECT_NE(error_of([&] { (void)parse_tokens_axis(bad); }), "no error") << bad;
  }
}

TEST(Targets, NamesNumbersAndAll) {
  EXPECT_EQ(parse_targets({"moe_journey"}).levels.size(), 0U);
  const Targets some = parse_targets({"moe_journey:naive", "moe_journey:3"});
  EXPECT_EQ(some.suite, "moe_journey");
  EXPECT_EQ(some.levels, (std::vector<std::string>{"naive", "memefficient"}));
  EXPECT_TRUE(parse_targets({"moe_scale:naive", "moe_scale:all"}).levels.empty());
  EXPECT_EQ(error_of([] { (void)parse_targets({"naive"}); }),
            "unknown target 'naive'; did you mean 'moe_journey:naive'?");
  EXPECT_EQ(error_of([] { (void)parse_targets({"moe_jorney"}); }),
            "unknown target 'moe_jorney'; did you mean 'moe_journey'?");
  EXPECT_NE(error_of([] { (void)parse_targets({"moe_journey:nave"}); }).find("'naive'"),
            std::string::npos);
  EXPECT_NE(error_of([] { (void)parse_targets({}); }), "no error");
  EXPECT_NE(error_of([] { (void)parse_targets({"moe_journey", "moe_scale"}); }), "no error");
}

TEST(Presets, AreValidAndSayWhatTheyLeaveOut) {
  EXPECT_EQ(list_presets().size(), 41U);
  for (const Preset& preset : list_presets()) {
    EXPECT_NO_THROW(validate(preset.problem)) << preset.name;
    EXPECT_EQ(&find_preset(preset.name), &preset);
  }
  const Problem deepseek = find_preset("deepseek-v3").problem;
  EXPECT_EQ(deepseek.shape.hidden, 7168);
  EXPECT_EQ(deepseek.shape.experts, 256);
  EXPECT_EQ(deepseek.shared_intermediate, 2048);
  EXPECT_EQ(to_string(deepseek.router), "sigmoid,selection-bias,groups=8/4,scale=2.5");
  EXPECT_EQ(to_string(find_preset("gpt-oss-20b").problem.activation),
            "swiglu,alpha=1.702,limit=7,up=1");
  EXPECT_FALSE(find_preset("nemotron-3-nano").problem.activation.gated());
  EXPECT_EQ(find_preset("olmoe").name, "olmoe-1b-7b");  // the only one that begins so
  EXPECT_NE(error_of([] { (void)find_preset("deepseek"); }), "no error");
  EXPECT_NE(error_of([] { (void)find_preset("mixtrol-8x7b"); }).find("mixtral-8x7b"),
            std::string::npos);
}

TEST(ExitCodes, WorstRowDecides) {
  const auto code = [](std::vector<RowStatus> statuses, bool wrong = false) {
    std::vector<report::ReportRow> rows;
    for (const RowStatus status : statuses) {
      rows.emplace_back();
      rows.back().bench.status = status;
    }
    if (wrong) rows.back().bench.wrong_output = true;
    return exit_code_of(rows);
  };
  using S = RowStatus;
  EXPECT_EQ(code({S::kOk, S::kSkipped, S::kOutOfMemory, S::kTimeout}), kOk);
  EXPECT_EQ(code({S::kOk, S::kFailed}), kCrashed);
  EXPECT_EQ(code({S::kOk, S::kFailed, S::kFailed}, true), kNotVerified);
  EXPECT_EQ(code({S::kOutOfMemory, S::kOutOfMemory}), kOutOfMemory);
  EXPECT_EQ(code({S::kSkipped, S::kOutOfMemory}), kOutOfMemory);
  EXPECT_EQ(code({S::kSkipped}), kNothingRunnable);
  EXPECT_EQ(code({S::kTimeout, S::kOutOfMemory}), kTimedOut);
  EXPECT_EQ(code({}), kNothingRunnable);
}

}  // namespace
}  // namespace moe::cli
