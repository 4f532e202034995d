// The GPU as an Instrument. All of it happens on one stream, that of the layers it measures.
#include "core/instrument.h"

#include "core/check.h"
#include "cuda/ceilings.h"
#include "cuda/check.h"
#include "cuda/kernel_profile.h"
#include "cuda/nvml.h"
#include "cuda/ops/fingerprint.h"
#include "cuda/ops/gemm_cublaslt.h"
#include "cuda/recorded_graph.h"
#include "cuda/stopwatch.h"
#include "cuda/twin.h"

namespace moe::cuda {
namespace {

std::string pci_bus_id(int ordinal) {
  char text[32] = {};
  MOE_CUDA_CHECK(cudaDeviceGetPCIBusId(text, sizeof(text), ordinal));
  return text;
}

class CudaInstrument final : public Instrument {
 public:
  explicit CudaInstrument(const LayerOptions& options) : device_(options) {
    if (!device_.unavailable().empty()) return;
    stopwatch_.emplace(device_);
    sum_ = DeviceBuffer(sizeof(std::uint64_t));
    std::string unused_reason;  // rows without clocks say enough
    sensor_ = NvmlSensor::open(pci_bus_id(device_.facts().ordinal), unused_reason);
  }

  [[nodiscard]] Device& device() override { return device_; }
  [[nodiscard]] std::optional<DeviceInfo> describe() override;
  [[nodiscard]] bool can_be_cold() const override { return true; }
  void copy(const TensorView& to, const TensorView& from) override {
    MOE_CUDA_CHECK(cudaMemcpyAsync(to.data, from.data, from.bytes(), cudaMemcpyDeviceToDevice,
                                   device_.stream()));
  }
  void poison(const TensorView& y) override {
    // All bits set is a NaN in fp32 and in bf16.
    MOE_CUDA_CHECK(cudaMemsetAsync(y.data, 0xff, y.bytes(), device_.stream()));
  }
  [[nodiscard]] std::uint64_t fingerprint(const TensorView& tensor) override {
    std::uint64_t sum = 0;
    cuda::fingerprint(tensor.data, tensor.bytes(), sum_.as<std::uint64_t>(), device_.stream());
    device_.copy_to_host(&sum, sum_.data(), sizeof(sum));
    return sum;
  }
  [[nodiscard]] std::unique_ptr<Replay> record(const std::function<void()>& work) override {
    return std::make_unique<RecordedGraph>(device_.stream(), work);
  }
  [[nodiscard]] std::uint64_t twin_bytes(const Problem& problem) const override {
    return dense_twin_bytes(problem);
  }
  [[nodiscard]] std::unique_ptr<Replay> make_twin(const Problem& problem) override {
    return make_dense_twin(device_, problem);
  }
  [[nodiscard]] std::unique_ptr<CeilingProbes> make_probes() override {
    return make_ceiling_probes(device_, *stopwatch_);
  }
  [[nodiscard]] std::optional<KernelProfile> profile(const std::function<void()>& forward,
                                                     int forwards, const TracedForward& traced,
                                                     std::string& reason) override {
    return profile_kernels(device_, forward, forwards, traced, reason);
  }
  [[nodiscard]] std::optional<SensorReading> sense() override {
    if (sensor_ == nullptr) return std::nullopt;
    const NvmlReading reading = sensor_->read();
    return SensorReading{.sm_clock_mhz = reading.sm_clock_mhz,
                         .power_w = reading.power_w,
                         .temperature_c = reading.temperature_c,
                         .throttle = reading.throttle_text};
  }

 private:
  double measure(const std::function<void()>& work, const Timing& timing) override {
    return stopwatch_->milliseconds(work, timing) * 1e-3;
  }

  CudaDevice device_;
  std::optional<Stopwatch> stopwatch_;
  DeviceBuffer sum_;
  std::unique_ptr<NvmlSensor> sensor_;  // null where NVML is not there
};

std::optional<DeviceInfo> CudaInstrument::describe() {
  const DeviceFacts& facts = device_.facts();
  const auto version = [](int number) {
    return fmt::format("{}.{}", number / 1000, number % 1000 / 10);
  };
  return DeviceInfo{.name = facts.name,
                    .uuid = facts.uuid,
                    .driver = version(facts.driver_version),
                    .runtime = version(facts.runtime_version),
                    .compute_capability = fmt::format("{}.{}", facts.major, facts.minor),
                    .library = cublaslt_version(),
                    .multiprocessors = facts.multiprocessors,
                    .l2_bytes = facts.l2_bytes,
                    .memory_bytes = facts.memory_bytes};
}

}  // namespace

std::unique_ptr<Instrument> make_instrument(const LayerOptions& options) {
  return std::make_unique<CudaInstrument>(options);
}

}  // namespace moe::cuda
