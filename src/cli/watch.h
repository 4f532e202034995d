// Runs a bench in a second thread, so that Ctrl-C and a forward that does not return can end the
// program with what was finished.
#pragma once

#include "moe/bench.h"

namespace moe::cli {

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
