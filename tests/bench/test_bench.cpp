#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <thread>

#include "bench/probes.h"
#include "core/threads.h"
#include "core/workload.h"
#include "moe/bench.h"
#include "moe/error.h"

namespace moe {
namespace {

BenchOptions tiny(std::vector<std::string> levels) {
  BenchOptions options;
  options.levels = std::move(levels);
  options.layer.problem.shape = {
      .tokens = 4, .hidden = 64, .intermediate = 32, .experts = 4, .top_k = 2};
  options.layer.threads = 1;  // not to depend on how busy the other processors are
  options.layer.tune_cache = "off";
  options.layer.tune_seconds = 0;
  options.seconds_per_level = 1e-4;
  return options;
}

TEST(Bench, MeasuresLevelsSideBySide) {
  const BenchResult result = bench(tiny({"memefficient", "0", "batched"}));
  EXPECT_TRUE(result.complete);
  ASSERT_EQ(result.rows.size(), 3U);
  EXPECT_EQ(result.rows[0].level.name, "naive");  // ascending, whatever the order asked for
  EXPECT_EQ(result.rows[2].level.name, "memefficient");
  for (const BenchRow& row : result.rows) {
    EXPECT_EQ(row.status, RowStatus::kOk) << row.reason;
    EXPECT_TRUE(row.verified);
    EXPECT_GE(row.samples, 3);
    EXPECT_GT(row.tolerance_used, 0);
    EXPECT_LE(row.tolerance_used, 1);
    EXPECT_GT(row.min_us, 0);
    EXPECT_LE(row.min_us, row.median_us);
    EXPECT_LE(row.median_us, row.p95_us);
    EXPECT_NEAR(row.gflops, useful_flops(row.problem) / row.median_us / 1e3, 1e-9);
    EXPECT_NEAR(row.ceiling_fraction, row.roof_us / row.median_us, 1e-12);
    EXPECT_NEAR(*row.speedup_vs_first, result.rows[0].median_us / row.median_us, 1e-9);
    EXPECT_GE(row.active_experts, 2);
    EXPECT_LE(row.active_experts, 4);
    EXPECT_GE(row.max_over_mean, 1);
    EXPECT_EQ(row.expert_load.size(), 4U);
    EXPECT_EQ(std::accumulate(row.expert_load.begin(), row.expert_load.end(), std::int64_t{0}),
              3 * row.problem.shape.routed_rows());
  }
  EXPECT_FALSE(result.rows[0].gain_vs_previous.has_value());
  EXPECT_NEAR(*result.rows[2].gain_vs_previous, result.rows[1].median_us / result.rows[2].median_us,
              1e-9);
  EXPECT_EQ(result.rows[2].previous, "batched");
  ASSERT_EQ(result.noise.size(), 1U);
  EXPECT_EQ(result.noise[0].level, "memefficient");
  EXPECT_GE(result.noise[0].relative, 0);
  EXPECT_GE(result.ceilings.samples, 5);
}

TEST(Bench, AxisSharesTheWeightsAndKeepsRowsApart) {
  BenchOptions options = tiny({"memefficient"});
  options.tokens = {1, 5};
  const BenchResult result = bench(options);
  ASSERT_EQ(result.rows.size(), 2U);
  EXPECT_EQ(result.rows[0].problem.shape.tokens, 1);
  EXPECT_EQ(result.rows[1].problem.shape.tokens, 5);
  EXPECT_FALSE(result.rows[1].gain_vs_previous.has_value());  // another problem is no comparison
}

TEST(Bench, PredictedOutOfMemoryIsARow) {
  BenchOptions options = tiny({"naive", "batched"});
  options.layer.workspace_limit = 4096;
  const BenchResult result = bench(options);
  ASSERT_EQ(result.rows.size(), 2U);
  EXPECT_EQ(result.rows[0].status, RowStatus::kOk) << result.rows[0].reason;
  EXPECT_EQ(result.rows[1].status, RowStatus::kOutOfMemory);
  EXPECT_FALSE(result.rows[1].verified);
  EXPECT_EQ(result.rows[1].samples, 0);
  LayerOptions layer = options.layer;
  layer.level = "batched";
  layer.workspace_limit = 0;
  EXPECT_EQ(result.rows[1].bytes_needed, Layer::predict(layer).total());
}

TEST(Bench, AGraphOfALevelWithoutOneIsASkippedRow) {
  BenchOptions options = tiny({"memefficient"});
  options.launches = {Launch::kEager, Launch::kGraph};
  const BenchResult result = bench(options);
  ASSERT_EQ(result.rows.size(), 2U);
  EXPECT_EQ(result.rows[0].status, RowStatus::kOk) << result.rows[0].reason;
  EXPECT_EQ(result.rows[0].launch, Launch::kEager);
  EXPECT_EQ(result.rows[0].cache, Cache::kHot);
  EXPECT_EQ(result.rows[1].status, RowStatus::kSkipped);
  EXPECT_EQ(result.rows[1].launch, Launch::kGraph);
  EXPECT_NE(result.rows[1].reason.find("cannot be launched as a graph"), std::string::npos)
      << result.rows[1].reason;
}

TEST(Bench, WeightsThatFitNoMemoryAreRowsForEveryLevel) {
  BenchOptions options = tiny({"naive", "memefficient"});
  // 3 TiB of weights.
  options.layer.problem.shape = {
      .tokens = 1, .hidden = 16384, .intermediate = 65536, .experts = 256, .top_k = 1};
  const BenchResult result = bench(options);
  ASSERT_EQ(result.rows.size(), 2U);
  for (const BenchRow& row : result.rows) {
    EXPECT_EQ(row.status, RowStatus::kOutOfMemory);
    EXPECT_NE(row.reason.find("3.00 TiB"), std::string::npos) << row.reason;
  }
}

TEST(Bench, ALevelThatCannotFinishIsATimeoutRow) {
  BenchOptions options = tiny({"naive", "memefficient"});
  options.layer.problem.shape = {
      .tokens = 512, .hidden = 256, .intermediate = 512, .experts = 4, .top_k = 2};
  options.timeout_seconds = 0.3;  // naive needs about 0.3 s for each of its seven forwards
  const BenchResult result = bench(options);
  ASSERT_EQ(result.rows.size(), 2U);
  EXPECT_EQ(result.rows[0].status, RowStatus::kTimeout);
  EXPECT_NE(result.rows[0].reason.find("estimated from"), std::string::npos);
  EXPECT_EQ(result.rows[0].samples, 0);
}

TEST(Bench, RefusesWhatCannotWorkBeforeMeasuring) {
  BenchOptions options = tiny({"nave"});
  EXPECT_THROW(BenchRun{options}, Error);
  options = tiny({});
  options.caches = {Cache::kHot, Cache::kCold};  // a processor's caches are not emptied
  EXPECT_THROW(BenchRun{options}, Error);
  options = tiny({});
  options.tokens = {4, 0};
  EXPECT_THROW(BenchRun{options}, Error);
  options = tiny({});
  options.min_samples = 0;
  EXPECT_THROW(BenchRun{options}, Error);
  options = tiny({});
  options.timeout_seconds = std::nan("");
  EXPECT_THROW(BenchRun{options}, Error);
  options = tiny({});
  options.skew = "hot";
  EXPECT_THROW(BenchRun{options}, Error);
}

TEST(Bench, StopReturnsWhatWasFinished) {
  BenchOptions options = tiny({"memefficient"});
  options.min_samples = 100000;
  BenchRun run(options);
  std::thread worker([&] { run.run(); });
  for (int i = 0; i < 1000 && run.result().rows.empty(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  run.stop();
  worker.join();
  const BenchResult result = run.result();
  EXPECT_FALSE(result.complete);
  ASSERT_EQ(result.rows.size(), 1U);
  EXPECT_EQ(result.rows[0].status, RowStatus::kOk);
  EXPECT_GE(result.rows[0].samples, 1);
  EXPECT_LT(result.rows[0].samples, 100000);
}

TEST(Bench, PeakMemoryOfAnArenaLevelIsItsWorkspace) {
  BenchOptions options = tiny({"memefficient"});
  options.layer.problem.shape = {
      .tokens = 4096, .hidden = 256, .intermediate = 64, .experts = 4, .top_k = 4};
  const BenchResult result = bench(options);
  ASSERT_EQ(result.rows.size(), 1U);
  const BenchRow& row = result.rows[0];
  ASSERT_EQ(row.status, RowStatus::kOk) << row.reason;
  if (!row.peak_bytes) GTEST_SKIP() << "this system does not tell the peak";
  constexpr double kCounterSlack = 1 << 20;  // the kernel batches its counters per thread
  EXPECT_NEAR(static_cast<double>(*row.peak_bytes), static_cast<double>(row.workspace_bytes),
              0.1 * static_cast<double>(row.workspace_bytes) + kCounterSlack);
}

TEST(Roof, IsTheLargerOfArithmeticAndTraffic) {
  Ceilings ceilings;
  ceilings.samples = 1;
  ceilings.fp32_gflops = 100;
  ceilings.bf16_gflops = 200;
  ceilings.read_gbs = 10;
  Problem problem{
      .shape = {.tokens = 512, .hidden = 1024, .intermediate = 2048, .experts = 8, .top_k = 2}};
  const Roof many = roof_of(problem, 8, ceilings);
  EXPECT_EQ(many.bound, Bound::kCompute);
  EXPECT_NEAR(many.microseconds, useful_flops(problem) / 100e3, 1e-6);
  problem.dtype = DType::kBF16;
  EXPECT_NEAR(roof_of(problem, 8, ceilings).microseconds, useful_flops(problem) / 200e3, 1e-6);
  ceilings.bf16_gflops.reset();  // no such instruction: the fp32 peak counts
  EXPECT_NEAR(roof_of(problem, 8, ceilings).microseconds, useful_flops(problem) / 100e3, 1e-6);
  problem.shape.tokens = 1;
  const Roof one = roof_of(problem, 2, ceilings);
  EXPECT_EQ(one.bound, Bound::kMemory);
  EXPECT_NEAR(one.microseconds, minimum_bytes(problem, 2) / 10e3, 1e-6);
}

TEST(StreamFloor, IsTheActiveWeightsOverTheReadRateAndAnEmptyKernel) {
  Ceilings ceilings;
  ceilings.samples = 1;
  ceilings.read_gbs = 4600;
  const Problem problem{
      .shape = {.tokens = 1, .hidden = 2048, .intermediate = 768, .experts = 128, .top_k = 8},
      .dtype = DType::kBF16};
  EXPECT_DOUBLE_EQ(active_weight_bytes(problem, 8), 75'497'472);  // 8 x three matrices of 3 MiB
  EXPECT_NEAR(stream_floor_us(problem, 8, ceilings), 16.4125, 1e-4);
  EXPECT_NEAR(stream_floor_us(problem, 16, ceilings), 32.8250, 1e-4);
  ceilings.empty_us = 3.7;
  EXPECT_NEAR(stream_floor_us(problem, 8, ceilings), 20.1125, 1e-4);
}

TEST(Bench, AutoIsARowThatNamesTheLevelItTakes) {
  BenchOptions options = tiny({"auto", "memefficient"});
  const BenchResult result = bench(options);
  ASSERT_EQ(result.rows.size(), 2U);
  EXPECT_EQ(result.rows[0].level.name, "memefficient");
  const BenchRow& row = result.rows[1];
  ASSERT_EQ(row.status, RowStatus::kOk) << row.reason;
  EXPECT_EQ(row.level.name, "auto");
  LayerOptions layer = options.layer;
  layer.level = "auto";
  const OwnedWeights weights = make_weights(layer.problem, 0);
  const LevelInfo taken = Layer::create(layer, weights.view()).level();
  EXPECT_EQ(row.level.technique, "takes " + taken.name);
  EXPECT_EQ(row.level.number, taken.number);
  EXPECT_DOUBLE_EQ(*row.weight_gbs,
                   active_weight_bytes(row.problem, row.active_experts) / row.median_us / 1e3);
  EXPECT_DOUBLE_EQ(*row.stream_fraction, *row.stream_floor_us / row.median_us);
}

TEST(Probes, EveryTierMeasuresPlausibleRates) {
  for (const Isa isa : available_isas()) {
    LayerOptions options;
    options.isa = name_of(isa);
    options.threads = 1;
    const Ceilings ceilings = measure_ceilings(options, 3);
    SCOPED_TRACE(ceilings.isa);
    EXPECT_EQ(ceilings.samples, 3);
    // A core does between 1 and 4096 FLOPs per cycle and none of them runs at 10 GHz.
    EXPECT_GT(ceilings.fp32_gflops, 0.5);
    EXPECT_LT(ceilings.fp32_gflops, 40e3);
    EXPECT_GT(ceilings.read_gbs, 0.2);
    EXPECT_LT(ceilings.read_gbs, 2000);
    EXPECT_EQ(ceilings.bf16_gflops.has_value(), isa >= Isa::kAvx512bf16);
    EXPECT_FALSE(ceilings.empty_us.has_value()) << "the CPU launches no kernels";
  }
}

TEST(Probes, KernelsDoTheArithmeticTheyClaim) {
  for (const Isa isa : available_isas()) {
    const ProbeKernels& kernels = probe_kernels_for(isa);
    SCOPED_TRACE(name_of(isa));
    EXPECT_EQ(kernels.isa, isa);
    // x -> 0.5 x + 0.5 ends at 1 in every lane of every chain: FLOPs / 2 of them.
    EXPECT_NEAR(kernels.multiply_add(60), kernels.multiply_add_flops / 2, 1e-3);
    alignas(64) std::uint64_t words[2 * kReadStep / 8];
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < std::size(words); ++i) sum += words[i] = i * i + 1;
    EXPECT_EQ(kernels.read(reinterpret_cast<const std::byte*>(words), sizeof(words)), sum);
  }
}

TEST(Machine, IsDescribed) {
  const MachineInfo machine = describe_machine();
  EXPECT_FALSE(machine.cpu.empty());
  EXPECT_GE(machine.cores, 1);
  EXPECT_EQ(machine.threads, usable_threads());
  EXPECT_GT(machine.memory_bytes, machine.available_bytes / 2);
  EXPECT_EQ(machine.isas.front(), "scalar");
  EXPECT_EQ(machine.isas.back(), machine.isa);
}

}  // namespace
}  // namespace moe
