// Threads of the host that launch work for the device together.
//
// A launch through the library costs the host several microseconds. Where a layer needs hundreds of
// them, one thread is slower than the device; threads that launch to different streams are not in
// each other's way.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace moe::cuda {

class LaunchTeam {
 public:
  /// How long a helper looks for work before it sleeps: longer than the steps of a forward between wake() and run().
  static constexpr std::chrono::microseconds kAwake{500};

  /// `helpers` threads besides the caller; each calls `on_start` first, which must not throw.
  LaunchTeam(int helpers, const std::function<void()>& on_start,
             std::chrono::microseconds awake = kAwake);
  LaunchTeam(const LaunchTeam&) = delete;
  LaunchTeam& operator=(const LaunchTeam&) = delete;
  ~LaunchTeam();

  [[nodiscard]] int members() const { return static_cast<int>(helpers_.size()) + 1; }
  /// Lets the helpers wake up, which takes tens of microseconds: for a fraction of a millisecond
  /// they then look for work without sleeping.
  void wake();
  /// task(member) for every member below `members`, 0 in the calling thread. Returns when all have
  /// returned, and rethrows what one of them threw. One call at a time.
  void run(int members, const std::function<void(int)>& task);

 private:
  void help(int member);

  const std::chrono::microseconds awake_;
  std::mutex mutex_;
  std::condition_variable wanted_;
  std::uint64_t wakes_ = 0;  // under mutex_
  bool stop_ = false;        // under mutex_
  // Of the current task; written before `task_number_` grows.
  const std::function<void(int)>* task_ = nullptr;
  int task_members_ = 0;
  std::atomic<std::uint64_t> task_number_{0};
  std::atomic<int> busy_{0};
  std::vector<std::exception_ptr> thrown_;  // by member
  std::vector<std::thread> helpers_;
};

}  // namespace moe::cuda
