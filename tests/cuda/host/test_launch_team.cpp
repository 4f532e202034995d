// Threads that launch together: every member's part is done once and by its thread, whether the
// helpers sleep or not, and what a member throws reaches the caller.
#include "cuda/launch_team.h"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <set>
#include <stdexcept>

namespace moe::cuda {
namespace {

TEST(LaunchTeam, EveryMemberDoesItsPartOnceBeforeRunReturns) {
  std::atomic<int> started{0};
  LaunchTeam team(3, [&] { ++started; });
  ASSERT_EQ(team.members(), 4);
  for (int round = 0; round < 2000; ++round) {
    const int members = 1 + round % 4;
    std::array<int, 4> calls{};  // not atomic: each member has its own, and run() orders them
    if (round % 3 == 0) team.wake();
    if (round % 500 == 499) std::this_thread::sleep_for(std::chrono::milliseconds(3));  // all sleep
    team.run(members, [&](int member) { ++calls[static_cast<std::size_t>(member)]; });
    for (int member = 0; member < 4; ++member) {
      ASSERT_EQ(calls[static_cast<std::size_t>(member)], member < members ? 1 : 0) << round;
    }
  }
  EXPECT_EQ(started, 3);
}

// As a thread does that was stopped for so long between being woken and looking.
TEST(LaunchTeam, AHelperLooksOnceHoweverLateItIs) {
  LaunchTeam team(
      3, [] {}, std::chrono::microseconds(0));
  for (int round = 0; round < 200; ++round) {
    std::array<int, 4> calls{};
    team.run(4, [&](int member) { ++calls[static_cast<std::size_t>(member)]; });
    ASSERT_EQ(calls, (std::array<int, 4>{1, 1, 1, 1})) << round;
  }
}

TEST(LaunchTeam, MembersAreThreadsAndTheFirstIsTheCaller) {
  LaunchTeam team(2, [] {});
  std::array<std::thread::id, 3> ids;
  team.run(3,
           [&](int member) { ids[static_cast<std::size_t>(member)] = std::this_thread::get_id(); });
  EXPECT_EQ(ids[0], std::this_thread::get_id());
  EXPECT_EQ(std::set<std::thread::id>(ids.begin(), ids.end()).size(), 3U);
}

TEST(LaunchTeam, WhatAMemberThrowsReachesTheCallerAndTheTeamGoesOn) {
  LaunchTeam team(2, [] {});
  for (const int guilty : {0, 1, 2}) {
    std::atomic<int> others{0};
    EXPECT_THROW(team.run(3,
                          [&](int member) {
                            if (member == guilty) throw std::runtime_error("no");
                            ++others;
                          }),
                 std::runtime_error);
    EXPECT_EQ(others, 2);
    int calls = 0;
    team.run(1, [&](int) { ++calls; });
    EXPECT_EQ(calls, 1);
  }
}

TEST(LaunchTeam, EndsWhileItsHelpersSleepOrLook) {
  for (int round = 0; round < 50; ++round) {
    LaunchTeam team(2, [] {});
    if (round % 2 == 0) team.wake();
    if (round % 5 == 0) team.run(3, [](int) {});
  }
}

}  // namespace
}  // namespace moe::cuda
