#include "cuda/launch_team.h"

#include <utility>

#include "core/check.h"

namespace moe::cuda {
namespace {

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

LaunchTeam::LaunchTeam(int helpers, const std::function<void()>& on_start,
                       std::chrono::microseconds awake)
    : awake_(awake) {
  thrown_.resize(static_cast<std::size_t>(helpers) + 1);
  helpers_.reserve(static_cast<std::size_t>(helpers));
  for (int member = 1; member <= helpers; ++member) {
    helpers_.emplace_back([this, member, on_start] {
      on_start();
      help(member);
    });
  }
}

LaunchTeam::~LaunchTeam() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wanted_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
}

void LaunchTeam::wake() {
  {
    const std::lock_guard lock(mutex_);
    ++wakes_;
  }
  wanted_.notify_all();
}

void LaunchTeam::run(int members, const std::function<void(int)>& task) {
  MOE_INTERNAL_CHECK(1 <= members && members <= this->members(), "{} members of a team of {}",
                     members, this->members());
  task_ = &task;
  task_members_ = members;
  busy_.store(static_cast<int>(helpers_.size()), std::memory_order_relaxed);
  task_number_.fetch_add(1, std::memory_order_release);
  wake();
  try {
    task(0);
  } catch (...) {
    thrown_[0] = std::current_exception();
  }
  while (busy_.load(std::memory_order_acquire) != 0) pause();
  std::exception_ptr first;
  for (std::exception_ptr& thrown : thrown_) {
    if (const std::exception_ptr one = std::exchange(thrown, nullptr); one && !first) first = one;
  }
  if (first) std::rethrow_exception(first);
}

void LaunchTeam::help(int member) {
  std::uint64_t wakes_seen = 0;
  std::uint64_t tasks_seen = 0;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      wanted_.wait(lock, [&] { return stop_ || wakes_ != wakes_seen; });
      if (stop_) return;
      wakes_seen = wakes_;
    }
    // NOTE: looks at least once, however long the thread was stopped since it was woken: that was for a task, and nobody
    // wakes it for the same one again.
    auto asleep = std::chrono::steady_clock::now() + awake_;
    do {
      const std::uint64_t task_number = task_number_.load(std::memory_order_acquire);
      if (task_number == tasks_seen) {
        pause();
        continue;
      }
      tasks_seen = task_number;
      if (member < task_members_) {
        try {
          (*task_)(member);
        } catch (...) {
          thrown_[static_cast<std::size_t>(member)] = std::current_exception();
        }
      }
      busy_.fetch_sub(1, std::memory_order_release);
      asleep = std::chrono::steady_clock::now() + awake_;
    } while (std::chrono::steady_clock::now() < asleep);
  }
}

}  // namespace moe::cuda
