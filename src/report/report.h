// What a run found, and its four printed forms. A report knows results, not how they were made.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bench/myths.h"
#include "moe/bench.h"

namespace moe::report {

struct ReportRow {
  BenchRow bench;
  std::string target;  // "moe_journey:grouped"
  std::string repro;   // a command that measures this row again
};

struct Report {
  std::string suite;  // "moe_journey" | "moe_scale" | "moe_decode" | "moe_myths"
  Backend backend = Backend::kCpu;
  std::string skew;
  std::uint64_t seed = 0;
  std::string preset;         // "" when the shape was given
  std::string data;           // "ckpt:DIR#LAYER"; "" for seeded weights
  std::string preset_limits;  // what of the preset's model is not computed
  std::string command;        // the whole run again
  std::string started;        // UTC, ISO 8601
  double seconds = 0;
  bool complete = true;
  int exit_code = 0;
  MachineInfo machine;
  std::vector<std::pair<std::string, std::string>> libraries;  // all that are linked
  std::string version;
  std::string commit;  // "" when the sources are no git checkout
  bool modified = false;
  Ceilings ceilings;
  std::optional<DeviceInfo> device;
  std::vector<NoiseFloor> noise;
  std::optional<double> steal_fraction;
  std::optional<double> others_fraction;
  /// By level name, one sentence: why its gain changes with the number of tokens as it does.
  std::map<std::string, std::string> scale_reasons;
  std::vector<ReportRow> rows;
  std::vector<MythResult> myths;  // of "moe_myths"
};

enum class Format : std::uint8_t { kTable, kJson, kCsv, kMarkdown };
[[nodiscard]] Format parse_format(std::string_view name);  // throws kInvalidArgument

/// The schema's name, the value of "schema" in the JSON form.
inline constexpr std::string_view kSchema = "moe-result-1";

/// `color` is for the table only.
[[nodiscard]] std::string render(const Report& report, Format format, bool color);

/// The kernels of every row that has them; "" when none has.
[[nodiscard]] std::string render_kernels(const std::vector<ReportRow>& rows);

[[nodiscard]] std::string render_table(const Report& report, bool color);
[[nodiscard]] std::string render_json(const Report& report);
[[nodiscard]] std::string render_csv(const Report& report);
[[nodiscard]] std::string render_markdown(const Report& report);

}  // namespace moe::report
