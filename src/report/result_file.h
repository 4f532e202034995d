// A result file read back: the JSON of `moe bench run`, as far as results are compared.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/verdict.h"
#include "moe/config.h"

namespace moe::report {

/// What makes two rows measurements of the same thing. The suite is not in it: moe_journey and
/// moe_scale time alike.
struct RowKey {
  std::string level;
  Problem problem;
  std::string backend;
  std::string launch;  ///< "eager" | "graph"
  std::string cache;   ///< "hot" | "cold"
  std::string skew;
  std::uint64_t seed = 0;
  int threads = 0;
  std::string data = {};  ///< "ckpt:DIR#LAYER"; "" for seeded weights
  friend bool operator==(const RowKey&, const RowKey&) = default;
};

struct ResultRow {
  RowKey key;
  int level_number = 0;
  std::string status;  ///< "ok" | "skipped" | ...
  std::string reason;
  bool verified = false;
  int samples = 0;  ///< 0: no times
  RowTimes times;
  std::vector<std::int64_t> expert_load;  ///< rows per expert; empty in older files
};

/// What a time depends on beside the program.
struct ResultDevice {
  std::string backend;
  std::string name;  ///< of the GPU, or the CPU with its cores
  std::string isa;   ///< the highest that the run might use; of a GPU its architecture
  int threads = 0;   ///< that the run might use; 0 on a GPU
  std::string uuid;  ///< of the very GPU; "" on a CPU
  /// "NVIDIA H200", "AMD EPYC, 2 cores, up to avx512bf16"
  [[nodiscard]] std::string describe() const;
  /// Of the same kind under the same instruction-set ceiling; the very GPU may be another.
  [[nodiscard]] bool same_kind(const ResultDevice& other) const;
};

struct ResultFile {
  std::string path;
  std::string suite;
  std::string preset;   ///< "" when the shape was given
  std::string started;  ///< UTC, ISO 8601
  std::string commit;   ///< "" unknown
  bool modified = false;
  ResultDevice device;
  std::vector<ResultRow> rows;
  nlohmann::json document;  ///< all of it
  /// "results/a.json (55c7d1fe9f, 2026-11-25)"
  [[nodiscard]] std::string describe() const;
};

/// Throws Error(kIo) for a file that cannot be read and kInvalidArgument, with the place, for one that
/// is no result. Files written before a field existed are read: without samples the interval of a
/// median follows from its interquartile range.
[[nodiscard]] ResultFile read_result(const std::string& path);
/// The same of a text; `name` stands in messages.
[[nodiscard]] ResultFile parse_result(const std::string& text, const std::string& name);

}  // namespace moe::report
