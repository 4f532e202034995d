// The run-time compiler and its cache. Needs the toolkit's NVRTC, but no GPU.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <stdexcept>

#include "core/cache_file.h"
#include "cuda/nvrtc.h"
#include "moe/error.h"
#include "temporary_folder.h"

namespace moe::cuda {
namespace {

namespace fs = std::filesystem;

class Nvrtc : public testing::Test {
 protected:
  void SetUp() override {
    if (!nvrtc_unavailable().empty()) GTEST_SKIP() << nvrtc_unavailable();
  }
  [[nodiscard]] std::string only_file() const {
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator()), 1);
    return fs::directory_iterator(folder_.path())->path().string();
  }
  test::TemporaryFolder folder_;
};

NvrtcProgram program(int hidden, int intermediate, int experts, int top_k, bool bf16,
                     int tokens_per_warp = 1) {
  return {
      .entry = "cuda/nvrtc_kernels.cuh",
      .arch = nvrtc_arch(9, 0),
      .defines = {"MOE_HIDDEN=" + std::to_string(hidden),
                  "MOE_INTERMEDIATE=" + std::to_string(intermediate),
                  "MOE_EXPERTS=" + std::to_string(experts), "MOE_TOP_K=" + std::to_string(top_k),
                  "MOE_TOKENS_PER_WARP=" + std::to_string(tokens_per_warp),
                  std::string("MOE_BF16=") + (bf16 ? "1" : "0")}};
}

/// Kernels that ptxas reports, and whether any of them spilled.
struct Report {
  std::set<std::string> kernels;
  bool spills = false;
};
Report report_of(const std::string& log) {
  Report report;
  const std::regex kernel("entry function '([a-z_]+)'");
  for (auto match = std::sregex_iterator(log.begin(), log.end(), kernel);
       match != std::sregex_iterator(); ++match) {
    report.kernels.insert((*match)[1]);
  }
  report.spills = std::regex_search(log, std::regex("[1-9][0-9]* bytes spill"));
  return report;
}

TEST_F(Nvrtc, CompilesEveryKernelOfALayerWithoutSpills) {
  const std::set<std::string> narrow = {"moe_route", "moe_permute_narrow", "moe_combine_narrow",
                                        "moe_swiglu"};
  std::set<std::string> all = narrow;
  all.insert({"moe_permute_wide", "moe_combine_wide"});
  struct Layer {
    int hidden, intermediate, experts, top_k;
  };
  // lab, mixtral-8x7b, qwen3-30b-a3b, olmoe, gpt-oss-120b; odd; most experts, K above a warp.
  for (const Layer& layer :
       {Layer{1024, 2048, 8, 2}, Layer{4096, 14336, 8, 2}, Layer{2048, 768, 128, 8},
        Layer{2048, 1024, 64, 8}, Layer{2880, 2880, 128, 4}, Layer{33, 47, 3, 2}, Layer{1, 1, 1, 1},
        Layer{64, 64, 1024, 40}}) {
    for (const bool bf16 : {true, false}) {
      for (const int tokens_per_warp : {1, 8}) {
        const CompiledProgram compiled = nvrtc_compile(program(
            layer.hidden, layer.intermediate, layer.experts, layer.top_k, bf16, tokens_per_warp));
        SCOPED_TRACE(testing::Message() << layer.hidden << " " << layer.experts << "\n"
                                        << compiled.log);
        ASSERT_EQ(compiled.cubin.substr(1, 3), "ELF");
        const Report report = report_of(compiled.log);
        EXPECT_EQ(report.kernels, layer.hidden * (bf16 ? 2 : 4) % 16 == 0 ? all : narrow);
        EXPECT_FALSE(report.spills);
      }
    }
  }
}

TEST_F(Nvrtc, SizesAreConstantsOfTheCode) {
  const std::string one = nvrtc_compile(program(1024, 2048, 8, 2, true)).cubin;
  EXPECT_EQ(one, nvrtc_compile(program(1024, 2048, 8, 2, true)).cubin);
  EXPECT_NE(one, nvrtc_compile(program(1024, 2048, 8, 4, true)).cubin);
  EXPECT_NE(one, nvrtc_compile(program(1032, 2048, 8, 2, true)).cubin);
}

TEST_F(Nvrtc, RefusalSaysWhatTheCompilerSaid) {
  NvrtcProgram broken = program(1024, 2048, 8, 2, true);
  broken.defines[0] = "MOE_HIDDEN=no_such_name";
  try {
    FAIL() << nvrtc_compile_cached(broken, folder_.path()).from;
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("no_such_name"), std::string::npos) << error.what();
  }
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

TEST_F(Nvrtc, ASecondLayerCompilesNothing) {
  const NvrtcProgram one = program(64, 64, 4, 2, true);
  const CompiledProgram cold = nvrtc_compile_cached(one, folder_.path());
  const std::uint64_t before = nvrtc_compilations();
  const CompiledProgram warm = nvrtc_compile_cached(one, folder_.path());
  EXPECT_EQ(nvrtc_compilations(), before);
  EXPECT_EQ(warm.cubin, cold.cubin);
  EXPECT_NE(warm.from.find(only_file()), std::string::npos) << warm.from;
  EXPECT_NE(nvrtc_compile_cached(program(64, 64, 4, 1, true), folder_.path()).cubin, cold.cubin);
  EXPECT_EQ(nvrtc_compilations(), before + 1);
}

TEST_F(Nvrtc, DamagedAndForeignCubinsAreReplaced) {
  const NvrtcProgram one = program(64, 64, 4, 2, true);
  const std::string cubin = nvrtc_compile_cached(one, folder_.path()).cubin;
  const std::string path = only_file();
  const std::string good = *read_whole(path);
  std::string flipped = good;
  flipped[good.size() - 5] = static_cast<char>(flipped[good.size() - 5] ^ 1);
  std::string foreign = good;
  foreign.replace(foreign.find("MOE_TOP_K=2"), 11, "MOE_TOP_K=3");
  for (const std::string& text : {std::string(), std::string("\n"), std::string("{}\n"),
                                  good.substr(0, good.size() / 2), flipped, foreign}) {
    std::ofstream(path, std::ios::binary) << text;
    const CompiledProgram compiled = nvrtc_compile_cached(one, folder_.path());
    EXPECT_EQ(compiled.cubin, cubin);
    EXPECT_NE(compiled.from.find("was not used"), std::string::npos) << compiled.from;
    EXPECT_EQ(read_whole(path), good);
  }
}

TEST_F(Nvrtc, WithoutAFolderItCompilesAndSaysSo) {
  std::ofstream(folder_.path("file")) << "x";
  const CompiledProgram compiled =
      nvrtc_compile_cached(program(64, 64, 4, 2, true), folder_.path("file"));
  EXPECT_NE(compiled.from.find("not kept"), std::string::npos) << compiled.from;
  const std::uint64_t before = nvrtc_compilations();
  EXPECT_EQ(nvrtc_compile_cached(program(64, 64, 4, 2, true), "off").cubin, compiled.cubin);
  EXPECT_EQ(nvrtc_compilations(), before + 1);
}

}  // namespace
}  // namespace moe::cuda
