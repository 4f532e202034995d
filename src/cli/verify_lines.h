// The lines of `moe verify`: one per level, and what all of them mean for the exit code.
#pragma once

#include <functional>
#include <string>

#include "cli/exit_codes.h"

namespace moe::cli {

struct VerifyLine {
  bool passed = false;
  std::string text;  // how far off, or what failed
};

class VerifyLines {
 public:
  /// Runs `check` and prints `head` with its result. What it throws is a line as well: skipped when
  /// the level cannot run here, FAILED otherwise.
  void add(const std::string& head, const std::function<VerifyLine()>& check);
  /// A line that passed does not count as something verified.
  void forget_success() { any_ok_ = false; }
  [[nodiscard]] ExitCode exit_code() const;

 private:
  bool any_ok_ = false;
  bool wrong_ = false;
  bool crashed_ = false;
  ExitCode skipped_ = kNothingRunnable;
};

}  // namespace moe::cli
