// Runs the real program and collects what it said.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "temporary_folder.h"

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

/// What a program that got a SIGINT in the middle said, and how long it took to end.
struct Interrupted {
  Said said;
  double seconds = 0;
};

/// Starts `moe ARGUMENTS` with no tuning cache and sends SIGINT once its stdout or stderr holds `text`.
inline Interrupted interrupt_moe(const std::vector<std::string>& arguments,
                                 const std::string& text) {
  const TemporaryFolder folder;
  const std::string out = folder.path("out");
  const std::string err = folder.path("err");
  std::vector<std::string> words = {"moe"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    setenv("MOE_CACHE", "off", 1);
    if (std::freopen(out.c_str(), "w", stdout) == nullptr ||
        std::freopen(err.c_str(), "w", stderr) == nullptr) {
      _exit(99);
    }
    execv(MOE_BINARY, argv.data());
    _exit(98);
  }
  EXPECT_GT(child, 0) << "fork";
  int status = 0;
  bool ended = false;
  for (int i = 0;
       i < 1200 && !ended && (read_all(out) + read_all(err)).find(text) == std::string::npos; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    ended = waitpid(child, &status, WNOHANG) == child;
  }
  EXPECT_FALSE(ended) << "ended before it said '" << text << "': " << read_all(err);
  const auto start = std::chrono::steady_clock::now();
  if (!ended) {
    kill(child, SIGINT);
    waitpid(child, &status, 0);
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  return {{WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_all(out),
           read_all(err)},
          took.count()};
}

}  // namespace moe::test
