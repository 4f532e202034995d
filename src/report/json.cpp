#include <cmath>

#include "report/row_json.h"

namespace moe::report {
namespace {

using Json = nlohmann::ordered_json;

/// To the nanosecond: no clock here resolves less.
Json sample_json(const std::vector<double>& microseconds) {
  Json list = Json::array();
  for (const double sample : microseconds) list.push_back(std::round(sample * 1e3) / 1e3);
  return list;
}

/// Arrays of numbers on one line each; dump() gives every number a line of its own.
std::string with_short_arrays(const std::string& text) {
  std::string out;
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '[') {
      const std::size_t end = text.find_first_not_of("0123456789+-.eE, \n", at + 1);
      if (end != std::string::npos && text[end] == ']') {
        for (; at < end; ++at) {
          if (text[at] != ' ' && text[at] != '\n') out += text[at];
        }
      }
    } else if (text[at] == '"') {  // a bracket within a string is a letter
      const std::size_t begin = at++;
      for (; text[at] != '"'; ++at) at += text[at] == '\\' ? 1 : 0;
      out.append(text, begin, at - begin);
    }
    out += text[at];
  }
  return out;
}

/// `value` if it was measured. JSON has no infinity: an infinite error becomes null, too.
Json measured(bool was_measured, double value) {
  return was_measured && std::isfinite(value) ? Json(value) : Json(nullptr);
}

template <class Value>
Json present(const std::optional<Value>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json milliseconds(const std::optional<double>& microseconds) {
  return microseconds ? Json(*microseconds / 1e3) : Json(nullptr);
}

Json text_or_null(const std::string& text) {
  return text.empty() ? Json(nullptr) : Json(text);
}

Json machine_json(const Report& report) {
  const MachineInfo& machine = report.machine;
  Json libraries = Json::object();
  for (const auto& [name, version] : report.libraries) libraries[name] = version;
  return {{"cpu", machine.cpu},
          {"cores", machine.cores},
          {"threads", machine.threads},
          {"memory_bytes", machine.memory_bytes},
          {"available_bytes", machine.available_bytes},
          {"os", machine.os},
          {"kernel", machine.kernel},
          {"isa", machine.isa},
          {"huge_pages", machine.huge_pages},
          {"compiler", machine.compiler},
          {"commit", text_or_null(report.commit)},
          {"modified", report.modified},
          {"libraries", libraries}};
}

Json kernels_json(const std::optional<KernelProfile>& profile) {
  if (!profile) return nullptr;
  Json by_name = Json::array();
  for (const KernelTime& kernel : profile->kernels) {
    by_name.push_back({{"name", kernel.name},
                       {"launches", kernel.launches},
                       {"time_us", kernel.microseconds},
                       {"share", kernel.share},
                       {"bytes", present(kernel.bytes)}});
  }
  return {{"forwards", profile->forwards},
          {"launches", profile->launches},
          {"span_us", profile->span_us},
          {"busy_us", profile->busy_us},
          {"gap_us", profile->gap_us},
          {"overlap_us", profile->overlap_us},
          {"largest_gap_us", profile->largest_gap_us},
          {"largest_gap_before", text_or_null(profile->largest_gap_before)},
          {"lost", profile->lost},
          {"by_name", by_name}};
}

Json device_json(const std::optional<DeviceInfo>& device) {
  if (!device) return nullptr;
  return {{"name", device->name},
          {"uuid", device->uuid},
          {"driver", device->driver},
          {"runtime", device->runtime},
          {"compute_capability", device->compute_capability},
          {"library", device->library},
          {"multiprocessors", device->multiprocessors},
          {"l2_bytes", device->l2_bytes},
          {"memory_bytes", device->memory_bytes}};
}

Json ceilings_json(const Ceilings& ceilings) {
  const bool measured_any = ceilings.samples > 0;
  const bool bf16 = ceilings.bf16_gflops.has_value();
  return {{"isa", ceilings.isa},
          {"threads", ceilings.threads},
          {"samples", ceilings.samples},
          {"fp32_gflops", measured(measured_any, ceilings.fp32_gflops)},
          {"bf16_gflops", present(ceilings.bf16_gflops)},
          {"fp8_gflops", present(ceilings.fp8_gflops)},
          {"read_gbs", measured(measured_any, ceilings.read_gbs)},
          {"copy_gbs", present(ceilings.copy_gbs)},
          {"empty_us", present(ceilings.empty_us)},
          {"fp32_spread", measured(measured_any, ceilings.fp32_spread)},
          {"bf16_spread", measured(bf16, ceilings.bf16_spread)},
          {"fp8_spread", measured(ceilings.fp8_gflops.has_value(), ceilings.fp8_spread)},
          {"read_spread", measured(measured_any, ceilings.read_spread)},
          {"copy_spread", measured(ceilings.copy_gbs.has_value(), ceilings.copy_spread)}};
}

}  // namespace

Json row_json(const Report& report, const ReportRow& row) {
  const BenchRow& bench = row.bench;
  const Shape& shape = bench.problem.shape;
  const bool timed = bench.samples > 0;
  const bool roofed = timed && bench.roof_us > 0;
  // A level that failed its verification was compared but never timed.
  const bool compared = bench.verified || bench.status == RowStatus::kFailed;
  const bool created = bench.threads > 0;
  return {{"target", row.target},
          {"level", bench.level.number},
          {"name", bench.level.name},
          {"technique", bench.level.technique},
          {"backend", name_of(report.backend)},
          {"dtype", name_of(bench.problem.dtype)},
          {"status", name_of(bench.status)},
          {"reason", text_or_null(bench.reason)},
          {"launch", bench.launch == Launch::kAuto ? Json(nullptr) : Json(name_of(bench.launch))},
          {"cache", name_of(bench.cache)},
          {"tokens", shape.tokens},
          {"hidden", shape.hidden},
          {"intermediate", shape.intermediate},
          {"experts", shape.experts},
          {"top_k", shape.top_k},
          {"block", block_options(bench.problem)},
          {"skew", report.skew},
          {"seed", report.seed},
          {"active_experts", bench.active_experts > 0 ? Json(bench.active_experts) : Json(nullptr)},
          {"max_over_mean", measured(bench.max_over_mean > 0, bench.max_over_mean)},
          {"expert_load", bench.expert_load},
          {"verified", bench.verified},
          {"error", measured(compared, bench.error)},
          {"tolerance_used", measured(compared, bench.tolerance_used)},
          {"samples", bench.samples},
          {"sample_us", sample_json(bench.sample_us)},
          {"median_us", measured(timed, bench.median_us)},
          {"iqr_us", measured(timed, bench.iqr_us)},
          {"min_us", measured(timed, bench.min_us)},
          {"p95_us", measured(timed, bench.p95_us)},
          {"speedup_vs_first", present(bench.speedup_vs_first)},
          {"gain_vs_previous", present(bench.gain_vs_previous)},
          {"previous", text_or_null(bench.previous)},
          {"distinguishable", bench.gain_vs_previous ? Json(bench.distinguishable) : Json(nullptr)},
          {"gflops", measured(timed, bench.gflops)},
          {"tokens_per_s", measured(timed, bench.tokens_per_s)},
          {"roof_us", measured(roofed, bench.roof_us)},
          {"ceiling_fraction", measured(roofed, bench.ceiling_fraction)},
          {"twin_ms", milliseconds(bench.twin_us)},
          {"twin_fraction", present(bench.twin_fraction)},
          {"floor_ms", milliseconds(bench.floor_us)},
          {"floor_fraction", present(bench.floor_fraction)},
          {"weight_gbs", present(bench.weight_gbs)},
          {"stream_floor_us", present(bench.stream_floor_us)},
          {"stream_fraction", present(bench.stream_fraction)},
          {"bound", roofed ? Json(name_of(bench.bound)) : Json(nullptr)},
          {"workspace_bytes", created ? Json(bench.workspace_bytes) : Json(nullptr)},
          {"peak_bytes", present(bench.peak_bytes)},
          {"bytes_needed", bench.bytes_needed},
          {"prepare_ms", measured(created, bench.prepare_ms)},
          {"sm_clock_mhz", present(bench.sm_clock_mhz)},
          {"power_w", present(bench.power_w)},
          {"temperature_c", present(bench.temperature_c)},
          {"throttle", present(bench.throttle)},
          {"threads", created ? Json(bench.threads) : Json(nullptr)},
          {"isa", text_or_null(bench.isa)},
          {"plan", text_or_null(bench.plan)},
          {"kernels", kernels_json(bench.kernels)},
          {"kernels_reason", text_or_null(bench.kernels_reason)},
          {"notes", text_or_null(bench.notes)},
          {"repro", row.repro}};
}

namespace {

Json side_json(const LevelLaunch& side) {
  return {{"name", side.level}, {"launch", name_of(side.launch)}};
}

Json myth_json(const MythResult& result) {
  const bool timed = result.verdict != MythVerdict::kNotMeasured;
  return {{"myth", result.myth.name},
          {"claim", result.myth.claim},
          {"tokens", result.tokens},
          {"without", side_json(result.myth.baseline)},
          {"with", side_json(result.myth.changed)},
          {"without_us", measured(timed, result.baseline_us)},
          {"with_us", measured(timed, result.changed_us)},
          {"gain", measured(timed, result.gain)},
          {"gain_low", measured(timed, result.gain_low)},
          {"gain_high", measured(timed, result.gain_high)},
          {"noise", measured(timed, result.noise)},
          {"distinguishable", timed ? Json(result.distinguishable) : Json(nullptr)},
          {"verdict", name_of(result.verdict)},
          {"reason", text_or_null(result.reason)},
          {"cause", text_or_null(result.cause)}};
}

}  // namespace

std::string render_json(const Report& report) {
  Json noise = Json::array();
  for (const NoiseFloor& floor : report.noise) {
    noise.push_back({{"level", floor.level},
                     {"tokens", floor.tokens},
                     {"cache", name_of(floor.cache)},
                     {"launch", name_of(floor.launch)},
                     {"relative", floor.relative}});
  }
  Json rows = Json::array();
  for (const ReportRow& row : report.rows) rows.push_back(row_json(report, row));
  Json object = {{"schema", kSchema},
                 {"run",
                  {{"suite", report.suite},
                   {"started", report.started},
                   {"seconds", report.seconds},
                   {"complete", report.complete},
                   {"exit_code", report.exit_code},
                   {"version", report.version},
                   {"preset", text_or_null(report.preset)},
                   {"preset_limits", text_or_null(report.preset_limits)},
                   {"steal_fraction", present(report.steal_fraction)},
                   {"others_fraction", present(report.others_fraction)},
                   {"noise", noise},
                   {"repro", report.command}}},
                 {"machine", machine_json(report)},
                 {"device", device_json(report.device)},
                 {"ceilings", ceilings_json(report.ceilings)},
                 {"rows", rows}};
  if (!report.data.empty()) object["run"]["data"] = report.data;
  if (report.suite == "moe_myths") {
    object["myths"] = Json::array();
    for (const MythResult& result : report.myths) object["myths"].push_back(myth_json(result));
  }
  return with_short_arrays(object.dump(2)) + "\n";
}

}  // namespace moe::report
