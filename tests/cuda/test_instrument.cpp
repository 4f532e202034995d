// The harness on the GPU: its clock, its caches, its checks, and whole bench runs.
#include <algorithm>
#include <cmath>

#include "bench/series.h"
#include "core/instrument.h"
#include "core/scalar.h"
#include "core/statistics.h"
#include "cuda/device_test.h"
#include "cuda/stopwatch.h"
#include "moe/bench.h"
#include "moe/error.h"
#include "verify/fuzz.h"
#include "verify/guarded.h"

namespace moe::cuda {
namespace {

class CudaBench : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    layer_options_.backend = Backend::kCuda;
    layer_options_.problem = {.shape = {256, 512, 768, 8, 2}, .dtype = DType::kBF16};
    instrument_ = moe::make_instrument(layer_options_);
  }
  CudaDevice& bench_device() { return static_cast<CudaDevice&>(instrument_->device()); }
  cudaStream_t bench_stream() { return bench_device().stream(); }

  BenchOptions bench_options(std::vector<std::string> levels) {
    BenchOptions options;
    options.levels = std::move(levels);
    options.layer = layer_options_;
    options.layer.tune_cache = "off";
    options.layer.tune_seconds = 0.1;
    options.seconds_per_level = 0.05;
    return options;
  }

  LayerOptions layer_options_;
  std::unique_ptr<Instrument> instrument_;
};

TEST_F(CudaBench, TimesACopyAtARateThatTheMemoryCanHave) {
  const DeviceBuffer from(std::size_t{256} << 20);
  const DeviceBuffer to(from.size());
  for (const Launch launch : {Launch::kEager, Launch::kGraph}) {
    for (const Cache cache : {Cache::kCold, Cache::kDirty, Cache::kHot}) {
      std::vector<double> rates;
      for (int i = 0; i < 5; ++i) {
        const double seconds = instrument_->seconds(
            [&] {
              MOE_CUDA_CHECK(cudaMemcpyAsync(to.data(), from.data(), from.size(),
                                             cudaMemcpyDeviceToDevice, bench_stream()));
            },
            {cache, launch});
        rates.push_back(2.0 * static_cast<double>(from.size()) / seconds / 1e9);
      }
      EXPECT_GT(median(rates), 500) << name_of(launch) << " " << name_of(cache);
      EXPECT_LT(median(rates), 20000) << name_of(launch) << " " << name_of(cache);
    }
  }
  EXPECT_EQ(instrument_->seconds_running(), 0);
}

TEST_F(CudaBench, AColdSampleReadsFromMemoryAndAHotOneFromTheCache) {
  // A quarter of the L2 cache, read twice: what was read just before is still there unless flushed.
  const DeviceBuffer data(bench_device().facts().l2_bytes / 4 / 16 * 16);
  const DeviceBuffer sink(sizeof(unsigned));
  MOE_CUDA_CHECK(cudaMemset(data.data(), 1, data.size()));
  const auto read = [&] {
    read_memory(data.data(), data.size(), sink.as<unsigned>(), bench_stream());
  };
  std::vector<double> cold;
  std::vector<double> dirty;
  std::vector<double> hot;
  for (int i = 0; i < 15; ++i) {
    cold.push_back(instrument_->seconds(read, {Cache::kCold, Launch::kGraph}));
    dirty.push_back(instrument_->seconds(read, {Cache::kDirty, Launch::kGraph}));
    read();
    hot.push_back(instrument_->seconds(read, {Cache::kHot, Launch::kGraph}));
  }
  EXPECT_LT(median(hot), 0.9 * median(cold)) << median(hot) << " s and " << median(cold) << " s";
  EXPECT_GT(median(dirty), 1.05 * median(cold))
      << median(dirty) << " s: what is in the cache must be written back first";
}

TEST_F(CudaBench, PoisonIsNaNInBothTypes) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const DeviceTensor y(bench_device(), dtype, {7, 33});
    instrument_->poison(y.view());
    const Tensor host(dtype, {7, 33});
    bench_device().copy_to_host(host.view().data, y.view().data, host.view().bytes());
    for (std::int64_t i = 0; i < host.view().elements(); ++i) {
      const float value =
          dtype == DType::kF32 ? host.as<float>()[i] : to_float(host.as<BFloat16>()[i]);
      EXPECT_TRUE(std::isnan(value)) << name_of(dtype) << " element " << i;
    }
  }
}

TEST_F(CudaBench, ARecordedForwardComputesAgain) {
  const DeviceArray<int> from(device(), std::vector<int>{1, 2, 3});
  const DeviceArray<int> to(device(), 3);
  const std::unique_ptr<Replay> replay = instrument_->record([&] {
    MOE_CUDA_CHECK(
        cudaMemcpyAsync(to.data(), from.data(), 12, cudaMemcpyDeviceToDevice, bench_stream()));
  });
  EXPECT_EQ(to.download(), std::vector<int>(3, -1)) << "recording is not running";
  replay->launch();
  bench_device().synchronise();
  EXPECT_EQ(to.download(), (std::vector<int>{1, 2, 3}));
  EXPECT_THROW(static_cast<void>(instrument_->record(
                   [] { throw Error(ErrorCode::kUnsupported, "cannot be recorded"); })),
               Error);
  bench_device().synchronise();  // the stream is still usable
}

TEST_F(CudaBench, CeilingsArePlausible) {
  const Ceilings ceilings = measure_ceilings(layer_options_, 3);
  EXPECT_EQ(ceilings.samples, 3);
  EXPECT_GT(ceilings.fp32_gflops, 1e3);
  ASSERT_TRUE(ceilings.bf16_gflops && ceilings.fp8_gflops && ceilings.copy_gbs);
  EXPECT_GT(*ceilings.bf16_gflops, 2 * ceilings.fp32_gflops) << "tensor cores";
  EXPECT_GT(*ceilings.fp8_gflops, 1.2 * *ceilings.bf16_gflops);
  EXPECT_GT(ceilings.read_gbs, 500);
  EXPECT_LT(ceilings.read_gbs, 20000);
  EXPECT_LT(*ceilings.copy_gbs, 1.2 * ceilings.read_gbs);
  ASSERT_TRUE(ceilings.empty_us.has_value());
  EXPECT_GT(*ceilings.empty_us, 0.5);
  EXPECT_LT(*ceilings.empty_us, 50);
}

TEST_F(CudaBench, MeasuresEveryLevelVerified) {
  BenchOptions options = bench_options({});
  options.caches = {Cache::kCold, Cache::kHot};
  const BenchResult result = bench(options);
  ASSERT_TRUE(result.device.has_value());
  EXPECT_GT(result.device->multiprocessors, 0);
  EXPECT_EQ(result.device->uuid.substr(0, 4), "GPU-");
  std::size_t measured = 0;
  for (const BenchRow& row : result.rows) {
    SCOPED_TRACE(row.level.name + " " + std::string(name_of(row.cache)));
    if (row.status == RowStatus::kSkipped) continue;
    ++measured;
    ASSERT_EQ(row.status, RowStatus::kOk) << row.reason;
    EXPECT_TRUE(row.verified);
    EXPECT_GE(row.samples, options.min_samples);
    EXPECT_GT(row.tolerance_used, 0);
    EXPECT_LE(row.tolerance_used, 1);
    ASSERT_TRUE(row.twin_us && row.twin_fraction && row.floor_us && row.floor_fraction);
    EXPECT_NEAR(*row.twin_fraction, *row.twin_us / row.median_us, 1e-12);
    EXPECT_GE(*row.floor_us, *row.twin_us);
    ASSERT_TRUE(row.peak_bytes.has_value());
    EXPECT_GE(*row.peak_bytes, row.workspace_bytes);
    // Levels 1 and 2 gather 400 MiB here: a pool that cannot use the same place twice would show. The
    // first level also pays for the library's code.
    constexpr std::uint64_t kSlack = std::uint64_t{300} << 20;
    if (row.level.number > 0) {
      EXPECT_LE(*row.peak_bytes, row.bytes_needed + kSlack);
    }
    EXPECT_TRUE(row.launch == Launch::kEager || row.launch == Launch::kGraph);
  }
  EXPECT_GE(measured, 8U) << "levels 0 to 3 at least, twice";
}

TEST_F(CudaBench, ALevelThatOnlyQueuesWorkIsRecorded) {
  BenchOptions options = bench_options({"memefficient", "grouped"});
  options.launches = {Launch::kEager, Launch::kGraph};
  const BenchResult result = bench(options);
  ASSERT_EQ(result.rows.size(), 4U);
  for (const int row : {0, 1, 2}) {
    EXPECT_EQ(result.rows[static_cast<std::size_t>(row)].status, RowStatus::kOk)
        << result.rows[static_cast<std::size_t>(row)].reason;
  }
  EXPECT_EQ(result.rows[0].launch, Launch::kEager);
  EXPECT_EQ(result.rows[1].launch, Launch::kGraph);
  EXPECT_TRUE(result.rows[1].verified);
  EXPECT_EQ(result.rows[3].status, RowStatus::kSkipped) << "it waits for the device in the middle";
}

TEST_F(CudaBench, RecordedForwardsOfEveryLevelAreRight) {
  BenchOptions options = bench_options({});
  options.launches = {Launch::kGraph};
  std::size_t recorded = 0;
  for (const BenchRow& row : bench(options).rows) {
    if (row.status == RowStatus::kSkipped) continue;
    ++recorded;
    EXPECT_EQ(row.status, RowStatus::kOk) << row.level.name << ": " << row.reason;
    EXPECT_EQ(row.launch, Launch::kGraph) << row.level.name;
    EXPECT_TRUE(row.verified) << row.level.name;
  }
  EXPECT_GE(recorded, 2U) << "memefficient and graphs run on every GPU";
}

TEST_F(CudaBench, WhatDoesNotFitIsARowAndTheOthersRun) {
  BenchOptions options = bench_options({"batched", "memefficient"});
  options.layer.problem.shape = {1 << 16, 1024, 2048, 4, 2};  // 2^17 gathered matrices of 4 MiB
  options.min_samples = 1;
  const BenchResult result = bench(options);
  ASSERT_EQ(result.rows.size(), 2U);
  EXPECT_EQ(result.rows[0].status, RowStatus::kOutOfMemory) << result.rows[0].reason;
  EXPECT_GE(result.rows[0].bytes_needed, std::uint64_t{512} << 30);
  EXPECT_EQ(result.rows[1].status, RowStatus::kOk) << result.rows[1].reason;
}

TEST_F(CudaBench, AnAllocationThatFailsInForwardIsARowAndTheOthersRun) {
  BenchOptions options = bench_options({"batched", "memefficient"});
  options.layer.problem.shape = {1 << 16, 1024, 2048, 4, 2};
  options.min_samples = 1;
  // A limit that the caller vouches for replaces the free memory: batched is created, and its forward
  // asks the device for what is not there.
  options.layer.workspace_limit = std::uint64_t{1} << 42;
  const BenchResult result = bench(options);
  ASSERT_EQ(result.rows.size(), 2U);
  EXPECT_EQ(result.rows[0].status, RowStatus::kOutOfMemory) << result.rows[0].reason;
  EXPECT_NE(result.rows[0].reason.find("in forward"), std::string::npos) << result.rows[0].reason;
  EXPECT_EQ(result.rows[1].status, RowStatus::kOk) << result.rows[1].reason;
}

TEST_F(CudaBench, MemoryThatAnotherHoldsIsMissing) {
  const std::uint64_t free = bench_device().available_memory();
  const DeviceBuffer held(free - (std::uint64_t{3} << 30));  // room for the probes
  BenchOptions options = bench_options({"batched", "memefficient"});
  options.layer.problem.shape = {2048, 1024, 2048, 4, 2};  // batched: 16 GiB
  const BenchResult result = bench(options);
  ASSERT_EQ(result.rows.size(), 2U);
  EXPECT_EQ(result.rows[0].status, RowStatus::kOutOfMemory) << result.rows[0].reason;
  EXPECT_EQ(result.rows[1].status, RowStatus::kOk) << result.rows[1].reason;
}

TEST_F(CudaBench, FuzzesOnTheDevice) {
  const FuzzResult result = fuzz({.cases = 12, .seed = 3, .backend = Backend::kCuda});
  for (const FuzzFailure& failure : result.failures) {
    ADD_FAILURE() << failure.level << ": " << failure.what << "\n" << failure.repro;
  }
  EXPECT_GE(result.layers, 12);
}

TEST_F(CudaBench, AWriteBehindYOnTheDeviceIsSeen) {
  const Tensor host(DType::kF32, {4, 32});
  GuardedTensor guarded(host.view(), 3);
  GuardedMirror mirror(device(), guarded);
  mirror.download();
  EXPECT_EQ(guarded.damaged_bytes(), 0);
  MOE_CUDA_CHECK(cudaMemset(mirror.view().as<std::byte>() + mirror.view().bytes(), 0, 4));
  MOE_CUDA_CHECK(cudaMemset(mirror.view().as<std::byte>() - 1, 0, 1));
  mirror.download();
  EXPECT_EQ(guarded.damaged_bytes(), 5);
}

}  // namespace
}  // namespace moe::cuda
