#include "cli/watch.h"

#include <atomic>
#include <chrono>
#include <csignal>
#include <exception>
#include <memory>
#include <thread>

namespace moe::cli {
namespace {

std::atomic<bool> signalled{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler sets it");

extern "C" void remember_signal(int) {
  signalled = true;
}

constexpr std::chrono::milliseconds kLook{20};
/// After a signal: how long the forward in progress may take to end.
constexpr std::chrono::milliseconds kGrace{300};

/// Shared with the worker, which outlives watch() when it is left behind.
struct Outcome {
  std::atomic<bool> done{false};
  std::exception_ptr error;
};

}  // namespace

Interrupt::Interrupt()
    : interrupt_(std::signal(SIGINT, remember_signal)),
      terminate_(std::signal(SIGTERM, remember_signal)) {}

Interrupt::~Interrupt() {
  std::signal(SIGINT, interrupt_);
  std::signal(SIGTERM, terminate_);
}

const std::atomic<bool>* Interrupt::flag() const {
  return &signalled;
}

Watched watch(BenchRun& run, double hang_seconds) {
  const Interrupt interrupt;
  const auto shared = std::make_shared<Outcome>();
  std::thread worker([&run, shared] {
    try {
      run.run();
    } catch (...) {
      shared->error = std::current_exception();
    }
    shared->done = true;
  });
  const std::atomic<bool>& done = shared->done;

  Watched watched;
  while (!done && !signalled) {
    std::this_thread::sleep_for(kLook);
    if (hang_seconds > 0 && run.seconds_in_forward() > hang_seconds) {
      run.abandon();
      watched.result = run.result();
      watched.ending = Ending::kAbandoned;
      worker.detach();
      return watched;
    }
  }
  watched.interrupted = signalled;
  if (watched.interrupted) {
    run.stop();
    const auto deadline = std::chrono::steady_clock::now() + kGrace;
    while (!done && std::chrono::steady_clock::now() < deadline) std::this_thread::sleep_for(kLook);
    watched.ending = done ? Ending::kInterrupted : Ending::kAbandoned;
    if (!done) {
      watched.result = run.result();
      worker.detach();
      return watched;
    }
  }
  worker.join();
  if (shared->error) std::rethrow_exception(shared->error);
  watched.result = run.result();
  return watched;
}

}  // namespace moe::cli
