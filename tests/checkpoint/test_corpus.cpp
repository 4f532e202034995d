// The fuzzer's corpus once more, without the fuzzer.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "fuzz/checkpoint_input.h"

namespace moe {
namespace {

TEST(Corpus, IsReadOrRefused) {
  int files = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(MOE_SOURCE_DIR "/tests/fuzz/corpus/checkpoint")) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string bytes(std::istreambuf_iterator<char>(file), {});
    SCOPED_TRACE(entry.path());
    EXPECT_NO_THROW(test::read_as_everything(std::as_bytes(std::span(bytes.data(), bytes.size()))));
    ++files;
  }
  EXPECT_GT(files, 20);
}

}  // namespace
}  // namespace moe
