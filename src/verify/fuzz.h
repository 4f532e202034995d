// Random small problems against every level that can run them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/workload.h"
#include "moe/layer.h"

namespace moe {

/// One random problem; everything follows from the seed and the machine.
struct FuzzCase {
  std::uint64_t seed = 0;  ///< of the weights and inputs, too
  Problem problem;
  Skew skew;
  int threads = 1;
  std::string isa;                   ///< one of those the machine has
  std::int64_t offset_elements = 0;  ///< of all tensors from a cache-line boundary
};

/// The case of a seed. The same on machines with the same instruction sets and processor count.
[[nodiscard]] FuzzCase make_fuzz_case(std::uint64_t seed);

struct FuzzOptions {
  std::int64_t cases = 100;
  std::uint64_t seed = 0;                ///< case 0 has this seed, the others seeds derived from it
  std::vector<std::string> levels = {};  ///< names; empty = all levels
  Backend backend = Backend::kCpu;
  /// Called after each case; returning false ends the run.
  std::function<bool(std::int64_t cases_done, std::int64_t failures)> on_case = {};
};

struct FuzzFailure {
  std::string level;
  std::string what;   ///< "input 1: row error ..."
  std::string repro;  ///< a moe command with the same values
  std::string exact;  ///< a moe command that runs this very case, with its alignment
};

struct FuzzResult {
  std::int64_t cases = 0;
  std::int64_t layers = 0;                      ///< (case, level) pairs verified
  std::map<std::string, std::int64_t> skipped;  ///< "level: reason" -> cases
  double worst_tolerance_used = 0;
  std::vector<FuzzFailure> failures;
};

/// Verifies every level on `cases` random problems. Levels that cannot run a case are
/// counted in `skipped`; any other error is a failure.
[[nodiscard]] FuzzResult fuzz(const FuzzOptions& options);

}  // namespace moe
