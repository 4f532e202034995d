// Instrument: what a bench needs of a backend beside its Device: a clock, a way to empty the caches,
// checks of an output where it lies, probes of the hardware's rates. One implementation per backend;
// src/bench knows only this interface.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/backend.h"
#include "moe/bench.h"

namespace moe {

/// Samples of the hardware's rates, in GFLOP/s and GB/s, and of what nothing at all costs.
struct ProbeSamples {
  std::vector<double> fp32;
  std::vector<double> bf16;
  std::vector<double> fp8;
  std::vector<double> read;
  std::vector<double> copy;
  std::vector<double> empty_us;  // microseconds of an empty kernel
  void append(const ProbeSamples& other);
};

class CeilingProbes {
 public:
  CeilingProbes() = default;
  CeilingProbes(const CeilingProbes&) = delete;
  CeilingProbes& operator=(const CeilingProbes&) = delete;
  virtual ~CeilingProbes() = default;
  /// Appends one sample of each kind that the backend has, a few milliseconds each.
  virtual void sample(ProbeSamples& samples) = 0;
  [[nodiscard]] virtual std::string isa() const = 0;  // instruction set that was probed
  [[nodiscard]] virtual int threads() const = 0;
};

/// Recorded work that one launch repeats.
class Replay {
 public:
  Replay() = default;
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;
  virtual ~Replay() = default;
  /// Queues the work.
  virtual void launch() = 0;
};

/// Of a timed region: what the instrument's clock says, and what passed on the host's between the call of
/// the work and the moment at which the whole device was idle again.
struct Elapsed {
  double seconds = 0;
  double wall_seconds = 0;
};

/// The state in which a timed region begins.
struct Timing {
  Cache cache = Cache::kHot;
  /// Eager work is timed from an idle host and device on, its launches included. A graph is queued
  /// while the device is still busy, so that only its execution is timed.
  Launch launch = Launch::kEager;
};

class Instrument {
 public:
  Instrument() = default;
  Instrument(const Instrument&) = delete;
  Instrument& operator=(const Instrument&) = delete;
  virtual ~Instrument() = default;

  /// Unless device().unavailable() is empty, nothing else may be called.
  [[nodiscard]] virtual Device& device() = 0;
  /// Absent on the host.
  [[nodiscard]] virtual std::optional<DeviceInfo> describe() = 0;
  /// Whether the caches can be emptied before a sample.
  [[nodiscard]] virtual bool can_be_cold() const = 0;

  /// Runs `work`, waits until it is done and returns the seconds it took. What was queued before has
  /// ended when the clock starts.
  [[nodiscard]] double seconds(const std::function<void()>& work, const Timing& timing) {
    return elapsed(work, timing).seconds;
  }
  [[nodiscard]] Elapsed elapsed(const std::function<void()>& work, const Timing& timing);
  /// Seconds that the work in progress has taken so far, 0 when none is. From any thread.
  [[nodiscard]] double seconds_running() const;

  /// to = from, both tensors of the device, of the same size.
  virtual void copy(const TensorView& to, const TensorView& from) = 0;
  /// Fills y with NaN.
  virtual void poison(const TensorView& y) = 0;
  /// core/fingerprint.h of a tensor of the device.
  [[nodiscard]] virtual std::uint64_t fingerprint(const TensorView& tensor) = 0;

  /// Records work that is queued on device().native_stream() as a graph. Throws kUnsupported.
  [[nodiscard]] virtual std::unique_ptr<Replay> record(const std::function<void()>& work) = 0;
  /// Bytes that the twin of a problem takes.
  [[nodiscard]] virtual std::uint64_t twin_bytes(const Problem& problem) const = 0;
  /// The dense twin of a problem: plain GEMMs of the layer's arithmetic, [T·K,H]x[H,2I] and
  /// [T·K,I]x[I,H], on random data; null where the backend has none.
  [[nodiscard]] virtual std::unique_ptr<Replay> make_twin(const Problem& problem) = 0;
  [[nodiscard]] virtual std::unique_ptr<CeilingProbes> make_probes() = 0;
  /// Records the kernels of `forwards` calls of `forward`, after each of which it waits. Absent where
  /// they cannot be recorded; `reason` then says why. `traced` is one more forward, which calls its
  /// argument after each of its steps and returns the bytes of each: they are given to the kernels.
  using TracedForward = std::function<std::vector<std::uint64_t>(const std::function<void()>&)>;
  [[nodiscard]] virtual std::optional<KernelProfile> profile(const std::function<void()>& forward,
                                                             int forwards,
                                                             const TracedForward& traced,
                                                             std::string& reason) = 0;
  /// Clocks, power and temperature now; absent where nothing tells them.
  [[nodiscard]] virtual std::optional<SensorReading> sense() = 0;

 private:
  /// On return the whole device is idle, also of work that the clock did not see.
  virtual double measure(const std::function<void()>& work, const Timing& timing) = 0;

  std::atomic<std::int64_t> began_ns_{0};  // steady clock; 0: nothing is running
};

/// Of options.backend, if this build has it; else the CPU's. `options` as of the layers to measure.
[[nodiscard]] std::unique_ptr<Instrument> make_instrument(const LayerOptions& options);

namespace cuda {
[[nodiscard]] std::unique_ptr<Instrument> make_instrument(const LayerOptions& options);
}

}  // namespace moe
