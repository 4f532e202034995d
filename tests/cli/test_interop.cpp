// Checkpoints and outputs of the transformers library (tests/interop/make_fixtures.py): every level
// reproduces those of all families.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <regex>

#include "cli/run_command.h"

namespace moe {
namespace {

/// The committed fixtures, or those that ./moe test --interop has just made.
std::string fixtures() {
  const char* fresh = std::getenv("MOE_INTEROP");
  return fresh != nullptr ? fresh : MOE_SOURCE_DIR "/tests/interop/fixtures";
}

TEST(Interop, EveryLevelReproducesTheOutputsOfTransformers) {
  int families = 0;
  const std::regex pattern(R"((\w+)\.layer(\d+)\.safetensors)");
  for (const auto& entry : std::filesystem::directory_iterator(fixtures())) {
    std::smatch parts;
    const std::string file = entry.path().filename().string();
    if (!std::regex_match(file, parts, pattern)) continue;
    SCOPED_TRACE(file);
    const std::string model = fixtures() + "/" + parts[1].str();
    const test::Said said =
        test::run_moe("verify --backend cpu --tune-seconds 0 --data 'ckpt:" + model + "#" +
                      parts[2].str() + "' --io " + entry.path().string());
    const test::Said inspected = test::run_moe("inspect " + model + " --layer " + parts[2].str());
    EXPECT_EQ(inspected.code, 0) << inspected.err;
    ++families;
    EXPECT_EQ(said.code, 0) << said.out << said.err;
    for (const char* line : {"- fp64 oracle ", "0 naive ", "3 memefficient ", "6 compiled "}) {
      EXPECT_NE(said.out.find(line), std::string::npos) << said.out;
    }
  }
  EXPECT_EQ(families, 8);
}

}  // namespace
}  // namespace moe
