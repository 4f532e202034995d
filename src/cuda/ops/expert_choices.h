// What level 6 chose for the experts of one layer, and where it is kept: one JSON file per device,
// driver, library and problem. Shapes here are those of with_shared_slots().
//
// A layer of T tokens is called with any number of them. Loads are the numbers of tokens it is tuned
// for, T and fractions of it; each owns a range of rows per expert around its mean, and the ranges of
// all loads together leave no gap.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/cache_file.h"
#include "cuda/backend.h"
#include "cuda/ops/expert_gemms.h"
#include "moe/config.h"

namespace moe::cuda {

struct ExpertLoad {
  std::int64_t tokens = 0;
  std::int64_t first_rows = 0;  ///< of an expert: the range whose kernels this load chooses
  std::int64_t last_rows = 0;   ///< inclusive
  bool operator==(const ExpertLoad&) const = default;
};
/// Largest first, at most four.
[[nodiscard]] std::vector<ExpertLoad> expert_loads(const Shape& shape);

/// The choice for one load and where it comes from.
struct ExpertChoice {
  ExpertLoad load;
  ExpertSchedule schedule;
  std::optional<MatmulAlgorithm> gate_up =
      {};  ///< nullopt: the library's first proposal for each m
  std::optional<MatmulAlgorithm> down = {};
  // When timed: all experts under this choice, and under the default schedule with the library's
  // first proposals, in turns.
  bool timed = false;
  double microseconds = 0;
  double default_microseconds = 0;
  std::string date = {};  ///< UTC, "2026-01-31T12:00:00Z"
  bool operator==(const ExpertChoice&) const = default;
};
/// What is used where nothing was timed.
[[nodiscard]] ExpertSchedule default_schedule(const Shape& shape);
[[nodiscard]] std::vector<ExpertChoice> default_choices(const Shape& shape);
/// Of `choices`, one per load, that for a forward of `tokens`.
[[nodiscard]] const ExpertChoice& choice_for(const std::vector<ExpertChoice>& choices,
                                             std::int64_t tokens);

/// Milliseconds of Level::prepare and of its parts.
struct StartUp {
  double kernels = 0;  ///< NVRTC, or reading the cubin
  double library = 0;  ///< cuBLASLt's first proposals for all m
  double tuning = 0;
  double total = 0;  ///< these, packing and the rest
  bool operator==(const StartUp&) const = default;
};

struct StoredChoices {
  std::vector<ExpertChoice> choices = {};  ///< one per load, in their order
  double budget_seconds = 0;               ///< that the tuner had
  bool complete = false;                   ///< every load was timed within it
  StartUp cold = {};                       ///< of the layer that made the file
};

class ExpertChoiceCache {
 public:
  /// `folder` "off" (or empty): nothing is read or written. Choices with more than `most_launchers`
  /// are refused.
  ExpertChoiceCache(const std::string& folder, const DeviceFacts& facts, const Problem& problem,
                    int most_launchers);

  struct Found {
    std::optional<StoredChoices> stored;
    std::string refused;  ///< why a file that is there is not used, as a part of a sentence
  };
  /// Never throws: a damaged or foreign file is as good as none.
  [[nodiscard]] Found load() const;
  /// Returns why it could not be written, "" on success.
  [[nodiscard]] std::string save(const StoredChoices& stored) const;

  [[nodiscard]] bool enabled() const { return document_.enabled(); }
  [[nodiscard]] const std::string& path() const { return document_.path(); }

 private:
  DeviceFacts facts_;
  Problem problem_;
  int most_launchers_;
  CacheDocument document_;
};

}  // namespace moe::cuda
