// moe verify --io: levels against another implementation's output.
#pragma once

#include <string>
#include <vector>

#include "cli/exit_codes.h"
#include "cli/options.h"

namespace moe::cli {

/// x [T,H] and y [T,H], both F32, of a safetensors file. Throws Error(kIo).
struct Dump {
  Tensor x;
  Tensor y;
};
[[nodiscard]] Dump read_dump(const std::string& path);

/// Every level on x of the dump, compared with its y; a line each on stdout. `workload` has a
/// checkpoint; its tokens become those of x.
[[nodiscard]] ExitCode verify_dump(Workload workload, const std::string& path,
                                   const std::vector<LevelInfo>& levels);

}  // namespace moe::cli
