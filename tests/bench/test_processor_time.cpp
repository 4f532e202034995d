#include "bench/processor_time.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <sstream>
#include <thread>

#include "core/threads.h"

namespace moe {
namespace {

std::optional<ProcessorTime> parsed(const char* stat, const std::vector<bool>& counted) {
  std::istringstream text(stat);
  return parse_processor_time(text, counted, 100);
}

TEST(ProcessorTime, AddsUpTheProcessorsThatCount) {
  // user nice system idle iowait irq softirq steal guest guest_nice
  const char* const stat =
      "cpu  1000 0 0 0 0 0 0 0 0 0\n"
      "cpu0 100 10 20 300 40 5 6 7 50 0\n"
      "cpu1 200 0 0 0 0 0 0 0 0 0\n"
      "cpu2 1 0 0 99 0 0 0 0 0 0\n"
      "intr 12 34\n";
  const auto all = parsed(stat, {true, true, true});
  ASSERT_TRUE(all.has_value());
  EXPECT_DOUBLE_EQ(all->total, 4.88 + 2 + 1);
  EXPECT_DOUBLE_EQ(all->busy, 1.41 + 2 + 0.01);
  EXPECT_DOUBLE_EQ(all->steal, 0.07);
  EXPECT_EQ(all->own, 0);
  const auto two = parsed(stat, {true, false, true});
  ASSERT_TRUE(two.has_value());
  EXPECT_DOUBLE_EQ(two->total, 5.88);
  EXPECT_DOUBLE_EQ(two->busy, 1.42);
}

TEST(ProcessorTime, IsUnknownWhereNothingIsSaid) {
  EXPECT_FALSE(parsed("", {true}).has_value());
  EXPECT_FALSE(parsed("cpu  1 2 3 4 5 6 7 8\n", {true}).has_value());  // the sum alone
  EXPECT_FALSE(parsed("cpu1 1 2 3 4 5 6 7 8\n", {true}).has_value());
  EXPECT_FALSE(parsed("cpu0 1 2 three\n", {true}).has_value());
}

TEST(ProcessorTime, SharesAreOfTheTimeBetween) {
  const ProcessorTime before{.total = 10, .busy = 4, .steal = 1, .own = 2};
  const auto shares =
      shares_between(before, ProcessorTime{.total = 20, .busy = 10, .steal = 1.5, .own = 3});
  ASSERT_TRUE(shares.has_value());
  EXPECT_DOUBLE_EQ(shares->steal, 0.05);
  EXPECT_DOUBLE_EQ(shares->others, 0.5);
  // Ticks are coarser than what a process is told of itself.
  const auto alone =
      shares_between(before, ProcessorTime{.total = 20, .busy = 10, .steal = 1, .own = 8.01});
  ASSERT_TRUE(alone.has_value());
  EXPECT_EQ(alone->others, 0);
  EXPECT_FALSE(shares_between(before, before).has_value());
  EXPECT_FALSE(shares_between(std::nullopt, before).has_value());
}

TEST(ProcessorTime, SeesAProgramBesideThisOne) {
  const auto before = processor_time();
  if (!before) GTEST_SKIP() << "this system does not say";
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    for (volatile unsigned spin = 0;;) spin = spin + 1;
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  const auto after = processor_time();
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  const auto shares = shares_between(before, after);
  ASSERT_TRUE(shares.has_value());
  EXPECT_GT(shares->others * usable_threads(),
            0.3);  // of a processor; all of it where there is one free
}

}  // namespace
}  // namespace moe
