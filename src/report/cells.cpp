#include "report/cells.h"

#include <fmt/core.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <set>
#include <tuple>

#include "core/text.h"

namespace moe::report {
namespace {

/// Three significant digits, so that 1.04, 61.2 and 1140 all say as much.
std::string factor(double value) {
  if (value >= 100) return fmt::format("{:.0f}x", value);
  return fmt::format("{:.{}f}x", value, value >= 10 ? 1 : 2);
}

std::string percent(double fraction) {
  return fmt::format("{:.{}f} %", 100 * fraction, fraction < 0.0995 ? 1 : 0);
}

std::string machine_text(const Report& report) {
  const MachineInfo& machine = report.machine;
  std::string text = fmt::format("{}, {} cores, {} threads, {}", machine.cpu, machine.cores,
                                 machine.threads, format_bytes(machine.memory_bytes));
  for (const std::string& part : {machine.os, machine.compiler}) {
    if (!part.empty()) text += ", " + part;
  }
  if (!report.commit.empty()) {
    text += fmt::format(", commit {}{}", report.commit.substr(0, 10),
                        report.modified ? " (modified)" : "");
  }
  if (report.steal_fraction) text += fmt::format(", steal {}", percent(*report.steal_fraction));
  if (report.others_fraction) {
    text += fmt::format(", other programs {}", percent(*report.others_fraction));
  }
  return text;
}

std::string device_text(const DeviceInfo& device) {
  return fmt::format(
      "{}, compute capability {}, {} multiprocessors, L2 {}, {}; driver for CUDA {}, "
      "built with {}, {}",
      device.name, device.compute_capability, device.multiprocessors, format_bytes(device.l2_bytes),
      format_bytes(device.memory_bytes), device.driver, device.runtime, device.library);
}

/// 1234.5 with unit "GFLOP/s" and its thousandfold "TFLOP/s".
std::string rate(double giga, const char* unit) {
  return giga >= 1e4 ? fmt::format("{:.1f} T{}", giga / 1e3, unit)
                     : fmt::format("{:.1f} G{}", giga, unit);
}

std::string ceilings_text(const Ceilings& ceilings) {
  if (ceilings.samples == 0) return "not measured";
  std::string text = "fp32 " + rate(ceilings.fp32_gflops, "FLOP/s");
  if (ceilings.bf16_gflops) text += ", bf16 " + rate(*ceilings.bf16_gflops, "FLOP/s");
  if (ceilings.fp8_gflops) text += ", fp8 " + rate(*ceilings.fp8_gflops, "FLOP/s");
  text +=
      fmt::format(", read {:.1f} GB/s (IQR {})", ceilings.read_gbs, percent(ceilings.read_spread));
  if (ceilings.copy_gbs) text += fmt::format(", copy {:.1f} GB/s", *ceilings.copy_gbs);
  text += "; " + ceilings.isa;
  if (ceilings.threads > 0) text += fmt::format(", {} threads", ceilings.threads);
  return text + fmt::format(", {} probes", ceilings.samples);
}

/// Whether `of` has more than one value among the measured rows.
template <class Of>
bool differ(const std::vector<ReportRow>& rows, Of&& of) {
  const ReportRow* first = nullptr;
  for (const ReportRow& row : rows) {
    if (row.bench.samples == 0) continue;
    if (first == nullptr) first = &row;
    if (of(row.bench) != of(first->bench)) return true;
  }
  return false;
}
Cache cache_of(const BenchRow& row) {
  return row.cache;
}
Launch launch_of(const BenchRow& row) {
  return row.launch;
}

/// Shares of the experts' rows, from the busiest down: all of few experts, landmarks of many.
std::string load_text(const std::vector<ReportRow>& rows) {
  const auto routed = std::find_if(rows.begin(), rows.end(), [](const ReportRow& row) {
    return !row.bench.expert_load.empty();
  });
  if (routed == rows.end()) return {};
  constexpr std::size_t kAllOf = 16;
  std::vector<std::int64_t> load = routed->bench.expert_load;
  std::sort(load.begin(), load.end(), std::greater<>());
  const auto total =
      static_cast<double>(std::accumulate(load.begin(), load.end(), std::int64_t{0}));
  const auto share = [&](std::size_t first) {
    return percent(static_cast<double>(load[first]) / total);
  };
  std::string text;
  if (load.size() <= kAllOf) {
    for (std::size_t i = 0; i < load.size(); ++i) text += (i == 0 ? "" : ", ") + share(i);
    return text + " of the rows, expert by expert from the busiest";
  }
  return fmt::format(
      "busiest expert {} of the rows, {} the 2nd, {} the {}th, {} the median one, {} the least",
      share(0), share(1), share(load.size() / 10), load.size() / 10 + 1, share(load.size() / 2),
      share(load.size() - 1));
}

void add_twin(std::vector<Footer>& list, const std::vector<ReportRow>& rows) {
  std::string text;
  for (const ReportRow& row : rows) {
    if (!row.bench.twin_us || !row.bench.floor_us) continue;
    const std::string name = fmt::format(" {}", name_of(row.bench.cache));
    if (text.find(name) != std::string::npos) continue;
    text += fmt::format("{}{}{}, floor {}", text.empty() ? "" : "; ",
                        format_microseconds(*row.bench.twin_us), name,
                        format_microseconds(*row.bench.floor_us));
  }
  if (text.empty()) return;
  list.push_back({"twin", text + ": two plain GEMMs of the same arithmetic, a graph, in the same "
                                 "rounds"});
}

/// From the slowest clock to the fastest one of the rows.
void add_sensors(std::vector<Footer>& list, const std::vector<ReportRow>& rows) {
  const BenchRow* slowest = nullptr;
  const BenchRow* fastest = nullptr;
  std::set<std::string> reasons;
  for (const ReportRow& row : rows) {
    if (!row.bench.sm_clock_mhz) continue;
    const BenchRow& bench = row.bench;
    if (slowest == nullptr || *bench.sm_clock_mhz < *slowest->sm_clock_mhz) slowest = &bench;
    if (fastest == nullptr || *bench.sm_clock_mhz > *fastest->sm_clock_mhz) fastest = &bench;
    if (bench.throttle) reasons.insert(*bench.throttle);
  }
  if (slowest == nullptr) return;
  std::string text;
  for (const std::string& reason : reasons) text += (text.empty() ? "" : "; ") + reason;
  list.push_back(
      {"clocks",
       fmt::format("{} MHz ({}, {:.0f} W, {} C) to {} MHz ({}, {:.0f} W, {} C); "
                   "throttled: {}",
                   *slowest->sm_clock_mhz, slowest->level.name, slowest->power_w.value_or(0),
                   slowest->temperature_c.value_or(0), *fastest->sm_clock_mhz, fastest->level.name,
                   fastest->power_w.value_or(0), fastest->temperature_c.value_or(0), text)});
}

}  // namespace

std::string speedup_cell(const BenchRow& row) {
  return row.speedup_vs_first ? factor(*row.speedup_vs_first) : "-";
}

std::string change_cell(const BenchRow& row) {
  if (!row.gain_vs_previous) return "-";
  return fmt::format("{}{}", row.distinguishable ? "" : "~", factor(*row.gain_vs_previous));
}

std::string ceiling_cell(const BenchRow& row) {
  return row.roof_us > 0 ? percent(row.ceiling_fraction) : "-";
}

bool have_twin(const std::vector<ReportRow>& rows) {
  return std::any_of(rows.begin(), rows.end(),
                     [](const ReportRow& row) { return row.bench.twin_fraction.has_value(); });
}

const char* share_title(bool of_twin) {
  return of_twin ? "twin" : "ceiling";
}

std::string share_cell(const BenchRow& row, bool of_twin) {
  if (!of_twin) return ceiling_cell(row);
  return row.twin_fraction ? percent(*row.twin_fraction) : "-";
}

std::string technique_text(const BenchRow& row, const std::vector<ReportRow>& rows) {
  std::string marks;
  if (differ(rows, launch_of)) marks += fmt::format("[{}] ", name_of(row.launch));
  if (differ(rows, cache_of)) marks += fmt::format("[{}] ", name_of(row.cache));
  return marks + row.level.technique;
}

std::string conditions_text(const std::vector<ReportRow>& rows) {
  for (const ReportRow& row : rows) {
    if (row.bench.samples == 0 || row.bench.launch == Launch::kAuto) continue;
    std::string text;
    if (!differ(rows, cache_of)) text += fmt::format("{} caches", name_of(row.bench.cache));
    if (!differ(rows, launch_of)) {
      text += fmt::format("{}{} launches", text.empty() ? "" : ", ", name_of(row.bench.launch));
    }
    return text;
  }
  return {};
}

std::string memory_cell(const BenchRow& row) {
  return format_bytes(row.peak_bytes.value_or(row.bytes_needed));
}

std::string tolerance_cell(const BenchRow& row) {
  return fmt::format("{:.0f} %", 100 * row.tolerance_used);
}

std::string status_text(const BenchRow& row) {
  std::string status(name_of(row.status));
  for (char& letter : status) {
    if (letter == '_') letter = ' ';
  }
  return row.reason.empty() ? status : status + ": " + row.reason;
}

std::string source_text(const Report& report) {
  if (!report.data.empty()) return report.data + "  ";
  return report.preset.empty() ? "" : report.preset + "  ";
}

std::string problem_text(const Report& report, const Problem& problem) {
  return fmt::format("{}{} {}  {}{}  skew {}  seed {}", source_text(report),
                     name_of(report.backend), name_of(problem.dtype), to_string(problem.shape),
                     block_text(problem), report.skew, report.seed);
}

std::string block_text(const Problem& problem) {
  const std::string block = block_options(problem);
  return block.empty() ? "" : "  " + block;
}

std::vector<Footer> footers(const Report& report, const std::vector<ReportRow>& rows) {
  std::vector<Footer> list;
  list.push_back({"machine", machine_text(report)});
  if (report.device) list.push_back({"device", device_text(*report.device)});
  list.push_back({"ceilings", ceilings_text(report.ceilings)});
  for (const ReportRow& row : rows) {
    if (row.bench.roof_us <= 0) continue;
    list.push_back({"roof", fmt::format("{}, {} bound; {} of {} experts active, busiest {:.2f}x "
                                        "the mean load",
                                        format_microseconds(row.bench.roof_us),
                                        name_of(row.bench.bound), row.bench.active_experts,
                                        row.bench.problem.shape.experts, row.bench.max_over_mean)});
    break;
  }
  if (const std::string load = load_text(rows); !load.empty()) list.push_back({"load", load});
  if (report.device) {
    const std::string conditions = conditions_text(rows);
    if (!conditions.empty()) list.push_back({"measured", "with " + conditions});
  }
  add_twin(list, rows);
  add_sensors(list, rows);
  std::string noises;
  for (const NoiseFloor& noise : report.noise) {
    if (!rows.empty() && noise.tokens != rows.front().bench.problem.shape.tokens) continue;
    noises += fmt::format("{}{}{} between two series of {}", noises.empty() ? "" : ", ",
                          rows.empty() ? fmt::format("T={} ", noise.tokens) : std::string(),
                          percent(noise.relative), noise.level);
  }
  if (!rows.empty() && !noises.empty()) {
    noises += "; ~ marks a change that is not distinguishable from noise";
  }
  if (!noises.empty()) list.push_back({"noise", noises});
  std::string samples;
  std::string notes;
  bool above_roof = false;
  for (const ReportRow& row : rows) {
    if (row.bench.status != RowStatus::kOk) continue;
    samples += fmt::format("{}{} {}", samples.empty() ? "" : ", ", row.bench.level.name,
                           row.bench.samples);
    if (!row.bench.notes.empty() && notes.empty()) notes = row.bench.notes;
    above_roof = above_roof || row.bench.ceiling_fraction > 1;
  }
  if (!samples.empty()) list.push_back({"samples", samples});
  if (above_roof) {
    list.push_back({"note",
                    "above 100 %: the roof reads weights from main memory at the median rate; what "
                    "stays in a cache, or runs while the rate is high, beats it"});
  }
  if (!notes.empty()) list.push_back({"note", notes});
  if (!report.complete) list.push_back({"note", "ended early: only what was finished is listed"});
  list.push_back({"repro", report.command});
  return list;
}

std::vector<LevelInfo> levels_of(const Report& report) {
  std::vector<LevelInfo> levels;
  for (const ReportRow& row : report.rows) {
    const bool known = std::any_of(levels.begin(), levels.end(), [&](const LevelInfo& level) {
      return level.name == row.bench.level.name;
    });
    if (!known) levels.push_back(row.bench.level);
  }
  std::sort(levels.begin(), levels.end(), [](const LevelInfo& a, const LevelInfo& b) {
    return std::tie(a.number, a.variant, a.name) < std::tie(b.number, b.variant, b.name);
  });
  return levels;
}

std::vector<std::vector<ReportRow>> by_problem(const std::vector<ReportRow>& rows) {
  std::vector<std::vector<ReportRow>> groups;
  for (const ReportRow& row : rows) {
    if (groups.empty() || !(groups.back().front().bench.problem == row.bench.problem)) {
      groups.emplace_back();
    }
    groups.back().push_back(row);
  }
  return groups;
}

std::vector<std::string> wrap(const std::string& text, std::size_t width) {
  std::vector<std::string> lines;
  std::string rest = text;
  while (rest.size() > width) {
    std::size_t cut = rest.rfind(' ', width);
    const bool at_space = cut != std::string::npos && cut > 0;
    if (!at_space) cut = width;
    lines.push_back(rest.substr(0, cut));
    rest.erase(0, at_space ? cut + 1 : cut);
  }
  lines.push_back(rest);
  return lines;
}

}  // namespace moe::report
