// Home folders in the texts of results.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "core/home_path.h"

namespace moe {
namespace {

TEST(HomePath, IsATilde) {
  const char* const before = std::getenv("HOME");
  const std::string kept = before == nullptr ? "" : before;
  setenv("HOME", "/home/someone/", 1);
  EXPECT_EQ(with_home_as_tilde("read from /home/someone/.cache/a.json; kept in /home/someone/b"),
            "read from ~/.cache/a.json; kept in ~/b");
  EXPECT_EQ(with_home_as_tilde("/home/someone else/a"), "/home/someone else/a");
  EXPECT_EQ(with_home_as_tilde("/tmp/cache"), "/tmp/cache");
  setenv("HOME", "/", 1);
  EXPECT_EQ(with_home_as_tilde("/tmp/cache"), "/tmp/cache");
  unsetenv("HOME");
  EXPECT_EQ(with_home_as_tilde("/home/someone/a"), "/home/someone/a");
  if (before != nullptr) setenv("HOME", kept.c_str(), 1);
}

}  // namespace
}  // namespace moe
