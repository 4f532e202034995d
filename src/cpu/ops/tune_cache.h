// What the tuner found, on disk: one JSON file per machine, instruction set, dtype, threads and
// shape, with its provenance.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "core/cache_file.h"
#include "cpu/ops/grouped_gemm.h"
#include "moe/config.h"

namespace moe::cpu {

/// What a tuning result is valid for. The tokens are not part of it: choices are per rows of an
/// expert.
struct TuneKey {
  std::string cpu;  ///< machine_name()
  std::string isa;
  DType dtype = DType::kF32;
  int threads = 1;
  std::int64_t hidden = 0;
  std::int64_t intermediate = 0;
  std::int64_t experts = 0;
  std::int64_t top_k = 0;
  bool operator==(const TuneKey&) const = default;
};

/// "AMD EPYC, family 25 model 17 stepping 1", from CPUID.
[[nodiscard]] std::string machine_name();

/// The choice of one range and where it comes from.
struct TunedRange {
  bool tuned = false;  ///< false: never timed, the heuristic's choice
  TileChoice choice;
  double gain = 1.0;  ///< time of the heuristic's choice over time of this one, when timed
  std::string date;   ///< UTC, "2026-01-31T12:00:00Z"
  bool operator==(const TunedRange&) const = default;
};
using TunedRanges = std::array<TunedRange, static_cast<std::size_t>(TileChoices::kRanges)>;

class TuneCache {
 public:
  /// `folder` "off" (or empty): nothing is read or written.
  TuneCache(const std::string& folder, TuneKey key);

  /// The ranges of an earlier run; nullopt when there is no file or it is not valid for this key,
  /// these kernels and this version of the tuner. Never throws: a damaged file is as good as none.
  [[nodiscard]] std::optional<TunedRanges> load(const GemmKernels& kernels) const;
  /// Returns why it could not be written, "" on success.
  [[nodiscard]] std::string save(const TunedRanges& ranges, double seconds) const;

  [[nodiscard]] bool enabled() const { return document_.enabled(); }
  [[nodiscard]] const std::string& path() const { return document_.path(); }

 private:
  TuneKey key_;
  CacheDocument document_;
};

}  // namespace moe::cpu
