// NVML and CUPTI on the GPU itself: figures that are possible, and records that match what was
// launched. Without a GPU tests/cuda/host covers the code with stand-ins.
#include <array>
#include <set>

#include "cuda/activity.h"
#include "cuda/device_test.h"
#include "cuda/nvml.h"
#include "cuda/ops/swiglu.h"

namespace moe::cuda {
namespace {

class CudaSensors : public CudaTest {
 protected:
  std::string bus_id() {
    std::array<char, 32> text{};
    MOE_CUDA_CHECK(cudaDeviceGetPCIBusId(text.data(), text.size(), device().facts().ordinal));
    return text.data();
  }
};

TEST_F(CudaSensors, NvmlReadsThisDevice) {
  std::string reason;
  const auto sensor = NvmlSensor::open(bus_id(), reason);
  if (sensor == nullptr) GTEST_SKIP() << reason;
  const NvmlReading reading = sensor->read();
  EXPECT_GT(reading.sm_clock_mhz, 100);
  EXPECT_LE(reading.sm_clock_mhz, sensor->max_sm_clock_mhz());
  EXPECT_GT(reading.memory_clock_mhz, 100);
  EXPECT_GT(reading.power_w, 10);
  EXPECT_LT(reading.power_w, 2 * sensor->power_limit_w());
  EXPECT_GT(reading.temperature_c, 0);
  EXPECT_LT(reading.temperature_c, 120);
  EXPECT_NE(reading.throttle_text, "not reported");
  EXPECT_EQ(sensor->uuid().rfind("GPU-", 0), 0U) << sensor->uuid();

  const auto system = NvmlSystem::describe(reason);
  ASSERT_TRUE(system.has_value()) << reason;
  EXPECT_EQ(system->driver_version, sensor->driver_version());
  EXPECT_EQ(system->cuda_version, device().facts().driver_version);
  ASSERT_FALSE(system->gpus.empty());
  std::set<std::string> names;
  for (const NvmlGpu& gpu : system->gpus) names.insert(gpu.name);
  EXPECT_EQ(names.count(device().facts().name), 1U);
  std::printf(
      "NVML: %s, driver %s, %d of %d MHz, memory %d MHz, %.1f of %.0f W, %d C, reasons "
      "0x%llx \"%s\"\n",
      device().facts().name.c_str(), system->driver_version.c_str(), reading.sm_clock_mhz,
      sensor->max_sm_clock_mhz(), reading.memory_clock_mhz, reading.power_w,
      sensor->power_limit_w(), reading.temperature_c,
      static_cast<unsigned long long>(reading.throttle_reasons), reading.throttle_text.c_str());
}

/// Launches on the stream: a fill, two kernels, and a copy between device arrays.
class Script {
 public:
  explicit Script(CudaDevice& device)
      : a_(device, std::vector<float>(kCount, 1.0F)),
        b_(device, std::vector<float>(kCount, 2.0F)),
        c_(device, kCount) {}
  void launch(cudaStream_t stream) const {
    MOE_CUDA_CHECK(cudaMemsetAsync(c_.data(), 0, kBytes, stream));
    silu(DType::kF32, a_.data(), kCount, c_.data(), stream);
    multiply(DType::kF32, c_.data(), b_.data(), kCount, c_.data(), stream);
    MOE_CUDA_CHECK(cudaMemcpyAsync(b_.data(), c_.data(), kBytes, cudaMemcpyDeviceToDevice, stream));
  }
  static constexpr std::int64_t kCount = 1 << 20;
  static constexpr std::size_t kBytes = kCount * sizeof(float);

 private:
  DeviceArray<float> a_;
  DeviceArray<float> b_;
  DeviceArray<float> c_;
};

/// Three scripts, each under its own mark.
void expect_three_scripts(const std::vector<KernelRecord>& records, bool graph_launch) {
  ASSERT_EQ(records.size(), 12U);
  for (std::size_t i = 0; i < records.size(); ++i) {
    const KernelRecord& record = records[i];
    SCOPED_TRACE(testing::Message() << "record " << i << " " << record.name);
    const ActivityKind kinds[] = {ActivityKind::kMemset, ActivityKind::kKernel,
                                  ActivityKind::kKernel, ActivityKind::kMemcpy};
    EXPECT_EQ(record.kind, kinds[i % 4]);
    EXPECT_EQ(record.external_id, 100 + i / 4);
    EXPECT_EQ(record.graph_launch, graph_launch);
    EXPECT_GT(record.end_ns, record.start_ns);
    if (record.kind == ActivityKind::kKernel) {
      EXPECT_NE(record.name.find("elementwise_kernel<float"), std::string::npos);
      EXPECT_GT(record.grid[0], 0);
      EXPECT_GT(record.block[0], 0);
      EXPECT_GT(record.registers, 0);
    } else {
      EXPECT_EQ(record.bytes, Script::kBytes);
    }
  }
  const ActivitySummary summary = summarise(records);
  EXPECT_EQ(summary.repetitions, 3);
  EXPECT_EQ(summary.launches, 4);
  for (const KernelSummary& kernel : summary.kernels) {
    std::printf("%-40s %5.1f launches %8.2f us %5.1f %%\n", kernel.name.c_str(), kernel.launches,
                kernel.microseconds, 100 * kernel.share);
  }
  std::printf("span %.2f us, busy %.2f, gaps %.2f (largest %.2f before %s), overlap %.2f\n",
              summary.span_us, summary.busy_us, summary.gap_us, summary.largest_gap_us,
              summary.largest_gap_before.c_str(), summary.overlap_us);
}

TEST_F(CudaSensors, CuptiRecordsWhatWasLaunched) {
  std::string reason;
  const auto recorder = ActivityRecorder::open(reason);
  if (recorder == nullptr) GTEST_SKIP() << reason;
  const Script script(device());
  script.launch(stream());  // before start(): not recorded
  device().synchronise();
  recorder->start();
  for (std::uint64_t repetition = 0; repetition < 3; ++repetition) {
    recorder->mark(100 + repetition);
    script.launch(stream());
  }
  device().synchronise();
  const std::vector<KernelRecord> records = recorder->stop();
  EXPECT_EQ(recorder->lost(), 0U);
  expect_three_scripts(records, false);
  script.launch(stream());  // after stop(): not recorded
  device().synchronise();
  recorder->start();
  EXPECT_TRUE(recorder->stop().empty());
  std::printf("CUPTI: %s\n", recorder->library_path().c_str());
}

/// A graph of one script, and its launch.
class ScriptGraph {
 public:
  ScriptGraph(const Script& script, cudaStream_t stream) {
    cudaGraph_t graph = nullptr;
    MOE_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    script.launch(stream);
    MOE_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
    MOE_CUDA_CHECK(cudaGraphInstantiate(&executable_, graph, 0));
    MOE_CUDA_CHECK(cudaGraphDestroy(graph));
  }
  ScriptGraph(const ScriptGraph&) = delete;
  ScriptGraph& operator=(const ScriptGraph&) = delete;
  ~ScriptGraph() { MOE_CUDA_CHECK_NOTHROW(cudaGraphExecDestroy(executable_)); }
  void launch(cudaStream_t stream) const { MOE_CUDA_CHECK(cudaGraphLaunch(executable_, stream)); }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

TEST_F(CudaSensors, CuptiRecordsTheNodesOfAGraph) {
  std::string reason;
  const auto recorder = ActivityRecorder::open(reason);
  if (recorder == nullptr) GTEST_SKIP() << reason;
  const Script script(device());
  const ScriptGraph graph(script, stream());  // made before start(), as a level makes it
  graph.launch(stream());
  device().synchronise();
  recorder->start();
  for (std::uint64_t repetition = 0; repetition < 3; ++repetition) {
    recorder->mark(100 + repetition);
    graph.launch(stream());
  }
  device().synchronise();
  const std::vector<KernelRecord> records = recorder->stop();
  EXPECT_EQ(recorder->lost(), 0U);
  expect_three_scripts(records, true);
}

}  // namespace
}  // namespace moe::cuda
