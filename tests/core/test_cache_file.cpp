// Files of a cache folder: atomic writes, damaged and foreign documents.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "core/cache_file.h"
#include "temporary_folder.h"

namespace moe {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class CacheFile : public testing::Test {
 protected:
  test::TemporaryFolder folder_;
};

TEST_F(CacheFile, HashIsFnv1a) {
  // The published test vectors of the function.
  EXPECT_EQ(hash_of(""), 0xcbf29ce484222325U);
  EXPECT_EQ(hash_of("a"), 0xaf63dc4c8601ec8cU);
  EXPECT_EQ(hash_of("foobar"), 0x85944171f73967e8U);
}

TEST_F(CacheFile, WritesBytesAndLeavesNothingElse) {
  const std::string path = folder_.path("a/b/file");
  const std::string bytes("\0\xff\n\r text", 9);
  ASSERT_EQ(write_atomically(path, "older and longer than what follows"), "");
  ASSERT_EQ(write_atomically(path, bytes), "");
  EXPECT_EQ(read_whole(path), bytes);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path("a/b")), fs::directory_iterator()),
            1);
  EXPECT_EQ(read_whole(folder_.path("none")), std::nullopt);
}

TEST_F(CacheFile, SaysWhyItCannotWrite) {
  std::ofstream(folder_.path("file")) << "x";
  EXPECT_NE(write_atomically(folder_.path("file/below"), "y"), "");
  fs::create_directory(folder_.path("folder"));
  EXPECT_NE(write_atomically(folder_.path("folder"), "y"), "");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator()), 2)
      << "a temporary file was left";
}

TEST_F(CacheFile, DocumentsAreValidForTheirKeyOnly) {
  const CacheDocument document(folder_.path(), "one.json", "test", 3);
  const json key = {{"device", "a"}, {"hidden", 64}};
  EXPECT_EQ(document.load(key).json, "");
  EXPECT_EQ(document.load(key).refused, "") << "no file is no reason to complain";
  ASSERT_EQ(document.save(key, {{"entries", {1, 2}}}), "");
  EXPECT_EQ(json::parse(document.load(key).json).at("entries"), json({1, 2}));

  json other = key;
  other["hidden"] = 65;
  EXPECT_EQ(document.load(other).json, "");
  EXPECT_NE(document.load(other).refused, "");
  EXPECT_NE(CacheDocument(folder_.path(), "one.json", "test", 4).load(key).refused, "");
  EXPECT_NE(CacheDocument(folder_.path(), "one.json", "other", 3).load(key).refused, "");
}

TEST_F(CacheFile, DamagedDocumentsAreRefusedAndReplaced) {
  const CacheDocument document(folder_.path(), "one.json", "test", 1);
  const json key = {{"k", 1}};
  ASSERT_EQ(document.save(key, {{"entries", 7}}), "");
  const std::string good = *read_whole(document.path());
  for (const std::string& text :
       {std::string(), std::string("not json"), std::string("[]"), std::string("null"),
        std::string("{}"), std::string("\0\xff\xfe", 3), good.substr(0, good.size() / 2)}) {
    std::ofstream(document.path(), std::ios::binary) << text;
    EXPECT_EQ(document.load(key).json, "") << text;
    EXPECT_NE(document.load(key).refused, "") << text;
    ASSERT_EQ(document.save(key, {{"entries", 7}}), "");
    EXPECT_EQ(document.load(key).json, good);
  }
}

TEST_F(CacheFile, OffDoesNothing) {
  for (const char* folder : {"", "off"}) {
    const CacheDocument document(folder, "one.json", "test", 1);
    EXPECT_FALSE(document.enabled());
    EXPECT_EQ(document.save({{"k", 1}}, {{"entries", 7}}), "");
    EXPECT_EQ(document.load({{"k", 1}}).json, "");
  }
  EXPECT_FALSE(fs::exists("off"));
}

}  // namespace
}  // namespace moe
