// What Ctrl-C does: it sets a flag; a bench runs in a second thread, so that the signal and a forward that
// does not return can end the program with what was finished.
#pragma once

#include <atomic>

#include "moe/bench.h"

namespace moe::cli {

/// While one lives, SIGINT and SIGTERM set a flag and do not end the program. At most one at a time.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;
  /// For LayerOptions::cancel; lives as long as the program.
  [[nodiscard]] const std::atomic<bool>* flag() const;

 private:
  using Handler = void (*)(int);
  Handler interrupt_;
  Handler terminate_;
};

enum class Ending {
  kDone,
  kInterrupted,  // run() had returned when this was reported
  kAbandoned     // run() is still in a forward: print, then leave by _exit
};

struct Watched {
  BenchResult result;
  Ending ending = Ending::kDone;
  bool interrupted = false;  // by SIGINT or SIGTERM
};

/// Waits for run() until it ends, a signal arrives or one forward lasts longer than `hang_seconds`
/// (0 = no limit). Rethrows what run() throws.
[[nodiscard]] Watched watch(BenchRun& run, double hang_seconds);

}  // namespace moe::cli
