// What level 8 chose by timing, and where it is kept: one JSON file per device and problem, an entry per
// number of tokens, which layers of any number of tokens share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/cache_file.h"
#include "cuda/backend.h"
#include "cuda/ops/persistent_plan.h"

namespace moe::cuda {

/// The choice for forwards of one bucket (token_buckets()) and what it was measured by.
struct PersistentChoice {
  std::int64_t tokens = 0;
  PersistentPlan plan = {};
  std::string routing = {};  ///< what the rows were routed by: "uniform", "zipf:1", ...
  std::string date = {};     ///< UTC
  int candidates = 0;        ///< that were timed
  bool complete =
      false;  ///< all of them, and the fastest confirmed or refused; else the heuristic's
  double budget_seconds = 0;  ///< that the tuner had for all buckets
  // Medians of the confirming rounds; without them, where the heuristic won the rounds before, of those.
  double heuristic_us = 0;
  double chosen_us = 0;
  double noise = 0;  ///< relative, of the heuristic against itself
  bool operator==(const PersistentChoice&) const = default;
};

class PersistentChoiceCache {
 public:
  /// `folder` "off" (or empty): nothing is read or written. `placed`: which weights lie near those who read them
  /// (PersistentWeights::placed()), for other plans are best where they do not.
  PersistentChoiceCache(const std::string& folder, const DeviceFacts& facts, const Problem& problem,
                        std::string placed);

  struct Found {
    std::vector<PersistentChoice> choices;  ///< whatever buckets the file has
    std::string refused;  ///< why a file that is there is not used, as a part of a sentence
  };
  /// Never throws: a damaged or foreign file is as good as none.
  [[nodiscard]] Found load() const;
  /// Adds the choices to the file, in place of those for the same tokens. Returns why it could not be
  /// written, "" on success. Of two processes that save at once one may lose its choices.
  [[nodiscard]] std::string save(const std::vector<PersistentChoice>& choices) const;

  [[nodiscard]] bool enabled() const { return document_.enabled(); }
  [[nodiscard]] const std::string& path() const { return document_.path(); }

 private:
  DeviceFacts facts_;
  Problem problem_;
  std::string placed_;
  CacheDocument document_;
};

}  // namespace moe::cuda
