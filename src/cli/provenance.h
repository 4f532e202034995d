// Which sources this program was built from, and with which libraries.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "moe/bench.h"

namespace moe::cli {

struct Commit {
  std::string hash;  // "" when the sources are no git checkout or git is missing
  bool modified = false;
};
/// What a file beside the program says, named like it with ".commit" at the end (tools/cuda_pack.sh writes it
/// for programs that run elsewhere, where the source folder may hold other sources); without one, git
/// is asked about the source folder this program was built from.
[[nodiscard]] Commit source_commit();
/// What such a file says: the hash, and "modified" after it where that applies; empty without one.
[[nodiscard]] Commit read_commit(const std::string& path);

[[nodiscard]] std::string version();  // "0.1.0"
/// The library's and the command's own.
[[nodiscard]] std::vector<std::pair<std::string, std::string>> linked_libraries(
    const MachineInfo& machine);

/// First line that `command` prints; "" when it fails.
[[nodiscard]] std::string first_line_of(const std::string& command);

}  // namespace moe::cli
