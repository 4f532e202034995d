#include "report/cells.h"

#include <fmt/core.h>

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
  return text;
}

std::string ceilings_text(const Ceilings& ceilings) {
  if (ceilings.samples == 0) return "not measured";
  std::string text = fmt::format("fp32 {:.0f} GFLOP/s", ceilings.fp32_gflops);
  if (ceilings.bf16_gflops) text += fmt::format(", bf16 {:.0f} GFLOP/s", *ceilings.bf16_gflops);
  return text + fmt::format(", read {:.1f} GB/s (IQR {}); {}, {} threads, {} probes",
                            ceilings.read_gbs, percent(ceilings.read_spread), ceilings.isa,
                            ceilings.threads, ceilings.samples);
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

std::string problem_text(const Report& report, const Problem& problem) {
  return fmt::format("{}{} {}  {}  skew {}  seed {}",
                     report.preset.empty() ? "" : report.preset + "  ", name_of(report.backend),
                     name_of(problem.dtype), to_string(problem.shape), report.skew, report.seed);
}

std::vector<Footer> footers(const Report& report, const std::vector<ReportRow>& rows) {
  std::vector<Footer> list;
  list.push_back({"machine", machine_text(report)});
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
