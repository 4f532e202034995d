// Exit codes, as docs/cli.md lists them.
#pragma once

#include "moe/error.h"
#include "report/report.h"

namespace moe::cli {

enum ExitCode : int {
  kOk = 0,
  kCrashed = 1,
  kUsage = 2,
  kNotVerified = 3,
  kRegression = 4,
  kNothingRunnable = 6,
  kOutOfMemory = 7,
  kTimedOut = 124,
  kInterruptedBySignal = 130
};

[[nodiscard]] ExitCode exit_code_of(const Error& error);
/// A wrong output outweighs a crash, a crash every other row; otherwise one measured row is a
/// success, and without one the reason that most likely helps decides: timeout, memory, skipped.
[[nodiscard]] ExitCode exit_code_of(const std::vector<report::ReportRow>& rows);

}  // namespace moe::cli
