// The processor as an Instrument, and the choice between the backends' instruments.
#include "core/instrument.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "bench/probes.h"
#include "bench/series.h"
#include "core/check.h"
#include "core/level.h"
#include "core/threads.h"

namespace moe {
namespace {

using Clock = std::chrono::steady_clock;

/// Wall clock around the call. The caches hold what the forward before left: emptying those of a
/// processor would also take the layer's packed weights out of the places where layers that run
/// back to back find them.
class HostInstrument final : public Instrument {
 public:
  explicit HostInstrument(const LayerOptions& options)
      : device_(cpu::make_device(options)),
        isa_(options.isa),
        threads_(options.threads == 0 ? usable_threads() : options.threads) {}

  [[nodiscard]] Device& device() override { return *device_; }
  [[nodiscard]] std::optional<DeviceInfo> describe() override { return std::nullopt; }
  [[nodiscard]] bool can_be_cold() const override { return false; }
  void copy(const TensorView& to, const TensorView& from) override {
    std::memcpy(to.data, from.data, from.bytes());
  }
  void poison(const TensorView& y) override { moe::poison(y); }
  [[nodiscard]] std::uint64_t fingerprint(const TensorView& tensor) override {
    return moe::fingerprint(tensor);
  }
  [[nodiscard]] std::unique_ptr<Replay> record(const std::function<void()>&) override {
    fail(ErrorCode::kUnsupported, "the CPU backend has no graphs to record into");
  }
  [[nodiscard]] std::uint64_t twin_bytes(const Problem&) const override { return 0; }
  [[nodiscard]] std::unique_ptr<Replay> make_twin(const Problem&) override { return nullptr; }
  [[nodiscard]] std::unique_ptr<CeilingProbes> make_probes() override {
    return std::make_unique<Probes>(isa_, threads_);
  }
  [[nodiscard]] std::optional<KernelProfile> profile(const std::function<void()>&, int,
                                                     const TracedForward&,
                                                     std::string& reason) override {
    reason = "the CPU backend launches no kernels that could be recorded";
    return std::nullopt;
  }
  [[nodiscard]] std::optional<SensorReading> sense() override { return std::nullopt; }

 private:
  double measure(const std::function<void()>& work, const Timing&) override {
    const auto start = Clock::now();
    work();
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  std::unique_ptr<Device> device_;
  std::string isa_;
  int threads_;
};

LayerOptions options_for(Backend backend) {
  LayerOptions options;
  options.backend = backend;
  return options;
}

}  // namespace

Elapsed Instrument::elapsed(const std::function<void()>& work, const Timing& timing) {
  struct InProgress {
    std::atomic<std::int64_t>& began_ns;
    explicit InProgress(std::atomic<std::int64_t>& ns) : began_ns(ns) {
      began_ns = Clock::now().time_since_epoch().count();
    }
    ~InProgress() { began_ns = 0; }
  };
  const InProgress in_progress(began_ns_);
  Clock::time_point called;
  const double seconds = measure(
      [&] {
        called = Clock::now();
        work();
      },
      timing);
  return {seconds, std::chrono::duration<double>(Clock::now() - called).count()};
}

double Instrument::seconds_running() const {
  const std::int64_t began = began_ns_;
  if (began == 0) return 0;
  const Clock::duration elapsed = Clock::now().time_since_epoch() - Clock::duration(began);
  return std::chrono::duration<double>(elapsed).count();
}

std::unique_ptr<Instrument> make_instrument(const LayerOptions& options) {
  if constexpr (MOE_HAVE_CUDA != 0) {
    if (options.backend == Backend::kCuda) return cuda::make_instrument(options);
  }
  return std::make_unique<HostInstrument>(options);
}

std::optional<DeviceInfo> describe_device(Backend backend) {
  if (!why_unusable(backend).empty()) return std::nullopt;
  return make_instrument(options_for(backend))->describe();
}

std::string why_unusable(Backend backend) {
  const auto& levels = list_levels();
  const bool any = std::any_of(levels.begin(), levels.end(), [&](const LevelInfo& level) {
    return level_factory(level, backend) != nullptr;
  });
  if (!any) return fmt::format("this build has no {} backend", name_of(backend));
  return make_device(options_for(backend))->unavailable();
}

}  // namespace moe
