// Up to how many tokens one level is faster than the level below it, as measured on a device: what
// "auto" goes by. One file per device and problem in the tuning cache.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/cache_file.h"
#include "moe/config.h"

namespace moe {

/// Medians of both levels at one number of tokens, timed in turns.
struct CrossoverSample {
  std::int64_t tokens = 0;
  double few_us = 0;   ///< of the level for few tokens
  double many_us = 0;  ///< of the level for many
  bool operator==(const CrossoverSample&) const = default;
};
struct Crossover {
  std::vector<CrossoverSample> samples = {};  ///< by tokens, ascending
  std::string routing = {};                   ///< while they were timed
  std::string date = {};                      ///< UTC

  /// The most tokens of a sample up to which the level for few tokens is the faster one in every sample; 0:
  /// in none.
  [[nodiscard]] std::int64_t most_tokens() const;
  /// The fewest tokens of a sample at which it is not; 0: none was measured.
  [[nodiscard]] std::int64_t first_slower() const;
  bool operator==(const Crossover&) const = default;
};

/// The file of two levels, by their names.
class CrossoverCache {
 public:
  /// `folder` "off" (or empty): nothing is read or written.
  CrossoverCache(const std::string& folder, const DeviceIdentity& device, const Problem& problem,
                 const std::string& few, const std::string& many);

  struct Found {
    std::optional<Crossover> stored;
    std::string refused;  ///< why a file that is there is not used, as a part of a sentence
  };
  /// Never throws: a damaged or foreign file is as good as none.
  [[nodiscard]] Found load() const;
  /// Returns why it could not be written, "" on success.
  [[nodiscard]] std::string save(const Crossover& crossover) const;
  [[nodiscard]] const std::string& path() const { return document_.path(); }

 private:
  std::string key_;  // JSON
  CacheDocument document_;
};

}  // namespace moe
