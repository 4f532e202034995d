// Runs the real program and collects what it said.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#include <gtest/gtest.h>

namespace moe::test {

struct Said {
  int code = -1;
  std::string out;
  std::string err;
};

inline std::string read_all(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// `moe ARGUMENTS` through the shell, with no tuning cache. 128 + n for signal n, as shells say.
inline Said run_moe(const std::string& arguments, const std::string& environment = "") {
  const std::string base = ::testing::TempDir() + "moe_cli_" + std::to_string(getpid());
  const std::string command = "env MOE_CACHE=off " + environment + " " MOE_BINARY " " + arguments +
                              " >" + base + ".out 2>" + base + ".err";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_all(base + ".out"),
          read_all(base + ".err")};
}

}  // namespace moe::test
