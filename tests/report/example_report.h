// A report with a row of every status, made by hand.
#pragma once

#include <string>
#include <tuple>

#include "report/report.h"

namespace moe::test {

inline BenchRow example_row(int number, const std::string& name, double median_us) {
  BenchRow row;
  row.level = {
      .number = number,
      .name = name,
      .symbol = "level",
      .technique = "does what " + name + " does, with \"quotes\", commas and enough words to wrap"};
  row.problem.shape = {
      .tokens = 256, .hidden = 1024, .intermediate = 2048, .experts = 8, .top_k = 2};
  row.status = RowStatus::kOk;
  row.verified = true;
  row.error = 3.14e-7;
  row.tolerance_used = 0.22;
  row.samples = 20;
  row.median_us = median_us;
  for (int i = 0; i < row.samples; ++i) row.sample_us.push_back(median_us * (0.981 + 0.002 * i));
  row.iqr_us = median_us / 50;
  row.min_us = median_us * 0.981;
  row.p95_us = median_us * 1.2;
  row.gflops = 100;
  row.tokens_per_s = 256e6 / median_us;
  row.roof_us = 28000;
  row.ceiling_fraction = 28000 / median_us;
  row.workspace_bytes = 1 << 20;
  row.peak_bytes = 2 << 20;
  row.bytes_needed = 3 << 20;
  row.active_experts = 8;
  row.max_over_mean = 1.2;
  row.expert_load = {230, 210, 200, 190, 180, 180, 176, 170};
  row.launch = Launch::kEager;
  row.threads = 2;
  row.isa = "avx512f";
  return row;
}

inline BenchRow without_time(int number, const std::string& name, RowStatus status) {
  BenchRow row;
  row.level.number = number;
  row.level.name = name;
  row.level.technique = "does something";
  row.problem.shape = {
      .tokens = 256, .hidden = 1024, .intermediate = 2048, .experts = 8, .top_k = 2};
  row.status = status;
  row.reason =
      "a reason with values 1234567890 of which there are so many that the sentence does "
      "not fit into what is left of one line of the table";
  row.bytes_needed = std::uint64_t{64} << 30;
  return row;
}

inline report::Report example_report() {
  report::Report report;
  report.suite = "moe_journey";
  report.skew = "uniform";
  report.preset = "lab";
  report.command =
      "./moe bench run -t moe_journey --preset lab --axis tokens=256 --dtype fp32 "
      "--backend cpu --threads 0 --isa auto --skew uniform --seed 0";
  report.started = "2026-01-01T00:00:00Z";
  report.version = "0.1.0";
  report.machine.cpu = "A Processor With A Rather Long Name That Goes On For A While @ 2.60GHz";
  report.machine.cores = 2;
  report.machine.threads = 2;
  report.libraries = {{"fmt", "9.1.0"}};
  report.ceilings.isa = "avx512bf16";
  report.ceilings.threads = 2;
  report.ceilings.samples = 5;
  report.ceilings.fp32_gflops = 230;
  report.ceilings.read_gbs = 31.4;
  report.noise = {{"grouped", 256, Cache::kHot, Launch::kEager, 0.012}};
  std::vector<BenchRow> rows = {example_row(0, "naive", 2.1e6),
                                without_time(1, "batched", RowStatus::kOutOfMemory),
                                without_time(2, "fused", RowStatus::kTimeout),
                                example_row(3, "memefficient", 300e3),
                                example_row(4, "grouped", 298e3),
                                without_time(5, "graphs", RowStatus::kSkipped),
                                without_time(6, "compiled", RowStatus::kFailed)};
  rows[3].speedup_vs_first = 7.0;
  rows[3].gain_vs_previous = 7.0;
  rows[3].distinguishable = true;
  rows[3].previous = "naive";
  rows[4].speedup_vs_first = 7.047;
  rows[4].gain_vs_previous = 1.0067;
  rows[4].previous = "memefficient";
  rows[6].error = 1.0 / 0.0;  // a row of zeros where the answer is not zero
  for (const BenchRow& row : rows) {
    report.rows.push_back({row, "moe_journey:" + row.level.name, "./moe bench run"});
  }
  return report;
}

/// A run of moe_decode on a GPU: two token counts, two states of the caches, a level that is not there at
/// one of them.
inline report::Report example_decode_report() {
  report::Report report = example_report();
  report.suite = "moe_decode";
  report.backend = Backend::kCuda;
  report.ceilings.read_gbs = 4000;
  report.ceilings.empty_us = 3.75;
  report.rows.clear();
  for (const std::int64_t tokens : {1, 64}) {
    for (const auto& [number, name, factor] :
         {std::tuple(8, "persistent", 2.0), std::tuple(9, "streaming", 1.25),
          std::tuple(9, "auto", 1.25)}) {
      for (const Cache cache : {Cache::kCold, Cache::kDirty}) {
        const double floor_us = 20.0 * static_cast<double>(tokens);
        const double median_us = floor_us * factor + (cache == Cache::kDirty ? 5 : 0);
        BenchRow row = example_row(number, name, median_us);
        if (row.level.name == kAutoLevel) {
          row.level.variant = true;
          row.level.technique = tokens == 1 ? "takes streaming" : "takes persistent";
        }
        row.problem.shape.tokens = tokens;
        row.problem.dtype = DType::kBF16;
        row.cache = cache;
        row.launch = Launch::kGraph;
        row.active_experts = tokens == 1 ? 2 : 8;
        row.stream_floor_us = floor_us;
        row.stream_fraction = floor_us / median_us;
        row.weight_gbs = 4000 * (floor_us - 3.75) / median_us;
        if (tokens == 64 && row.level.name == "streaming") {
          row = without_time(number, name, RowStatus::kSkipped);
          row.problem.shape.tokens = tokens;
          row.problem.dtype = DType::kBF16;
          row.cache = cache;
        }
        report.rows.push_back({row, "moe_decode:" + row.level.name, "./moe bench run"});
      }
    }
  }
  return report;
}

/// The same as a GPU would have reported it.
inline report::Report example_gpu_report() {
  report::Report report = example_report();
  report.backend = Backend::kCuda;
  report.device = DeviceInfo{.name = "An Accelerator",
                             .uuid = "GPU-00000000-0000-0000-0000-000000000000",
                             .driver = "13.0",
                             .runtime = "13.0",
                             .compute_capability = "9.0",
                             .library = "cuBLASLt 13.1.0",
                             .multiprocessors = 100,
                             .l2_bytes = 50 << 20,
                             .memory_bytes = std::uint64_t{140} << 30};
  report.ceilings.isa = "sm_90";
  report.ceilings.threads = 0;
  report.ceilings.bf16_gflops = 700e3;
  report.ceilings.fp8_gflops = 1300e3;
  report.ceilings.copy_gbs = 4100;
  for (report::ReportRow& row : report.rows) {
    BenchRow& bench = row.bench;
    bench.cache = Cache::kCold;
    if (bench.samples == 0) continue;
    bench.twin_us = 1000;
    bench.twin_fraction = 1000 / bench.median_us;
    bench.floor_us = 1100;
    bench.floor_fraction = 1100 / bench.median_us;
    bench.sm_clock_mhz = 1300 + bench.level.number;
    bench.power_w = 650;
    bench.temperature_c = 60;
    bench.throttle = "sw power cap";
  }
  report.rows[4].bench.launch = Launch::kGraph;
  report.rows[4].bench.kernels =
      KernelProfile{.forwards = 5,
                    .kernels = {{"gemm", 16, 200, 0.8, 3e6},
                                {"a_kernel_with_a_long_name<bf16, 8>", 1, 50, 0.2, {}}},
                    .launches = 17,
                    .span_us = 260,
                    .busy_us = 240,
                    .gap_us = 20,
                    .overlap_us = 10,
                    .largest_gap_us = 12,
                    .largest_gap_before = "gemm",
                    .lost = 0};
  report.rows[0].bench.kernels_reason = "libcupti.so.13 is not on this machine";
  return report;
}

}  // namespace moe::test
