#include "cli/verify_lines.h"

#include "cli/output.h"
#include "core/check.h"

namespace moe::cli {

void VerifyLines::add(const std::string& head, const std::function<VerifyLine()>& check) {
  try {
    const VerifyLine line = check();
    write_stdout(fmt::format("{}  {}: {}\n", head, line.passed ? "ok" : "FAILED", line.text));
    (line.passed ? any_ok_ : wrong_) = true;
  } catch (const Error& error) {
    const ExitCode code = exit_code_of(error);
    const bool skipped = code == kNothingRunnable || code == kOutOfMemory;
    write_stdout(fmt::format("{}  {}: {}\n", head, skipped ? "skipped" : "FAILED", error.what()));
    if (!skipped) crashed_ = true;
    if (code == kOutOfMemory) skipped_ = code;
  }
}

ExitCode VerifyLines::exit_code() const {
  if (wrong_) return kNotVerified;
  if (crashed_) return kCrashed;
  return any_ok_ ? kOk : skipped_;
}

}  // namespace moe::cli
