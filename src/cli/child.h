// Other programs, run and listened to.
#pragma once

#include <string>
#include <vector>

namespace moe::cli {

struct ChildOutput {
  int code = 0;     // 128 + n for signal n, as shells say
  std::string out;  // all of its stdout; its stderr is ours
};

/// Runs `arguments[0]` (a path, no search) with the others as they are: no shell reads them. Waits for
/// it to end. Throws Error(kIo) when it cannot be started.
[[nodiscard]] ChildOutput run_child(const std::vector<std::string>& arguments);

/// The path of the running program.
[[nodiscard]] std::string own_path();

}  // namespace moe::cli
