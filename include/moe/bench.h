// Measurement: several levels on one problem, verified, timed side by side, against the machine's
// own ceilings. docs/benchmarking.md describes the procedure.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/layer.h"

namespace moe {

enum class RowStatus : std::uint8_t { kOk, kSkipped, kOutOfMemory, kFailed, kTimeout };
/// "ok" | "skipped" | "out_of_memory" | "failed" | "timeout"
[[nodiscard]] std::string_view name_of(RowStatus status);

/// What limits a problem: arithmetic or reading the bytes that must be read.
enum class Bound : std::uint8_t { kCompute, kMemory };
[[nodiscard]] std::string_view name_of(Bound bound);

/// What the caches hold when a timed forward begins.
enum class Cache : std::uint8_t {
  kHot,   ///< what a forward on another input left there
  kCold,  ///< nothing of the layer: they were filled with other data, which is not dirty
  /// Nothing of the layer, and other data that was just written and is not in memory yet: what a
  /// forward reads pushes it out first.
  kDirty,
};
[[nodiscard]] std::string_view name_of(Cache cache);  ///< "hot" | "cold" | "dirty"

/// Rates of the machine that computes, measured by probes that do nothing else. Medians; on the CPU
/// all threads together, on a GPU the library's GEMMs (fp8: e4m3, one scale per tensor).
struct Ceilings {
  std::string isa;         ///< instruction-set ceiling in force; of a GPU its architecture
  int threads = 0;         ///< of the CPU; 0 on a GPU
  int samples = 0;         ///< probes of each kind
  double fp32_gflops = 0;  ///< fp32 multiply-adds
  /// bf16 dot products with fp32 sums; absent when the instruction set has none, and bf16 levels
  /// then have the fp32 peak as their roof.
  std::optional<double> bf16_gflops;
  std::optional<double> fp8_gflops;
  double read_gbs = 0;  ///< reading main memory, 1e9 bytes per second
  /// Copying main memory, bytes read and written together.
  std::optional<double> copy_gbs;
  /// Microseconds between two events around an empty kernel, launched as a graph: what no forward on a
  /// GPU is faster than. Absent on the CPU.
  std::optional<double> empty_us;
  double fp32_spread = 0;  ///< interquartile range over median
  double bf16_spread = 0;
  double fp8_spread = 0;
  double read_spread = 0;
  double copy_spread = 0;
};

/// The least time that a problem can take under `ceilings`, and why.
struct Roof {
  double microseconds = 0;
  Bound bound = Bound::kCompute;
};
/// The larger of useful FLOPs over the peak of the dtype and minimum bytes over the read rate.
[[nodiscard]] Roof roof_of(const Problem& problem, std::int64_t active_experts,
                           const Ceilings& ceilings);
/// Bytes of gate, up and down of `active_experts` experts: what a forward of a few tokens reads.
[[nodiscard]] double active_weight_bytes(const Problem& problem, std::int64_t active_experts);
/// Microseconds of a forward that does nothing but read these bytes once: they over the read rate, and
/// on a GPU the cost of an empty kernel.
[[nodiscard]] double stream_floor_us(const Problem& problem, std::int64_t active_experts,
                                     const Ceilings& ceilings);

/// Measures the ceilings of options.backend alone, `samples` times each. Of the options, isa and
/// threads matter, too. Throws kUnsupported where the backend cannot run.
[[nodiscard]] Ceilings measure_ceilings(const LayerOptions& options, int samples);

/// What a GPU's sensors say at one moment.
struct SensorReading {
  int sm_clock_mhz = 0;
  double power_w = 0;
  int temperature_c = 0;
  std::string throttle;  ///< reasons for a lowered clock, comma-separated; "": none
};

/// What a device that computes is, where that is not the CPU.
struct DeviceInfo {
  std::string name;
  std::string uuid;
  std::string driver;   ///< newest CUDA version of the driver
  std::string runtime;  ///< CUDA version that this build links
  std::string compute_capability;
  std::string library;  ///< of the GEMMs, with its version
  int multiprocessors = 0;
  std::uint64_t l2_bytes = 0;
  std::uint64_t memory_bytes = 0;
};
/// Absent for the CPU and where the backend cannot run.
[[nodiscard]] std::optional<DeviceInfo> describe_device(Backend backend);
/// "" when this build and this machine have the backend; else the reason as a sentence.
[[nodiscard]] std::string why_unusable(Backend backend);

/// All launches of one kernel, copy or fill in one forward; means over the profiled forwards.
struct KernelTime {
  std::string name;
  double launches = 0;
  double microseconds = 0;      ///< of all launches together
  double share = 0;             ///< of the microseconds of all kernels
  std::optional<double> bytes;  ///< written, as the level's trace says; absent where it does not
};

/// What ran on a GPU during one forward.
struct KernelProfile {
  int forwards = 0;                 ///< that were recorded
  std::vector<KernelTime> kernels;  ///< most time first
  double launches = 0;
  double span_us = 0;              ///< from the first start to the last end
  double busy_us = 0;              ///< of it, with at least one kernel running
  double gap_us = 0;               ///< span less busy
  double overlap_us = 0;           ///< time of all kernels less busy
  double largest_gap_us = 0;       ///< of any forward
  std::string largest_gap_before;  ///< the kernel that ended it
  std::uint64_t lost = 0;          ///< records that the recorder could not keep
};

/// A level and how its work gets to the device.
struct LevelLaunch {
  std::string level;
  Launch launch = Launch::kAuto;
};

/// What BenchOptions::levels and LayerOptions::level call the level that suits the problem.
inline constexpr std::string_view kAutoLevel = "auto";

struct BenchOptions {
  /// Names or numbers, run in ascending order; empty = every level that the backend has. "auto" is
  /// what Layer::create() takes for the problem, after all others.
  std::vector<std::string> levels;
  /// In place of `levels` with each of `launches` where not empty; names only, run in this order.
  std::vector<LevelLaunch> series;
  /// Backend, problem, threads, isa, tuning and workspace limit; `level` is ignored.
  LayerOptions layer;
  /// Token counts to measure one after the other with the same weights; empty = the problem's.
  std::vector<std::int64_t> tokens;
  /// States of the caches to time in, a row each; empty = cold where the backend can empty them.
  std::vector<Cache> caches;
  /// Launches to measure, a row each; kGraph where a level has no graph is a skipped row.
  std::vector<Launch> launches = {Launch::kAuto};
  /// Whether each level's kernels are recorded too, in forwards that are not timed.
  bool profile_kernels = false;
  /// "uniform", "zipf:S", "hot:N,P", "dirichlet:A", "one-expert" or "trace:FILE"; docs/routing.md.
  std::string skew = "uniform";
  std::uint64_t seed = 0;
  /// The layer's weights, in host memory that outlives the run; absent = seeded ones of the skew. With
  /// weights given the skew must be uniform: it is made by the seeded ones.
  std::optional<Weights> weights;
  int warmup = 1;       ///< untimed forwards after verification, of levels below a second
  int min_samples = 3;  ///< timed forwards that every level gets, however slow
  /// Time for the timed forwards of one level; those that need less than it for min_samples take
  /// more samples.
  double seconds_per_level = 2.5;
  /// Seconds that one level may spend on one problem, from verification to the last sample; 0 = no
  /// limit. A level that cannot finish (estimated from forwards of fewer tokens) is not started.
  double timeout_seconds = 0;
  /// Called from run()'s thread with what comes next; `milestone` is false for single rounds. May be
  /// empty.
  std::function<void(const std::string& text, bool milestone)> progress;
};

/// One level on one problem.
struct BenchRow {
  LevelInfo level;
  Problem problem;
  RowStatus status = RowStatus::kSkipped;
  std::string reason;  ///< why status is not ok; "" when it is
  /// An output was outside of its tolerance: the reason why status is kFailed.
  bool wrong_output = false;
  bool verified = false;  ///< every compared output, before and while timing, was within tolerance
  double error = 0;       ///< relative error of the worst row of all compared outputs
  double tolerance_used = 0;      ///< 1 is the limit
  int samples = 0;                ///< 0: nothing below was measured
  std::vector<double> sample_us;  ///< in the order in which they were taken
  double median_us = 0;
  double iqr_us = 0;
  double min_us = 0;
  double p95_us = 0;
  std::optional<double> speedup_vs_first;  ///< median of level 0 over this median
  std::optional<double> gain_vs_previous;  ///< median of the row before over this median
  std::string previous;                    ///< the level that gain_vs_previous compares with
  bool distinguishable = false;            ///< the gain is outside the noise
  double gflops = 0;                       ///< useful FLOPs over median
  double tokens_per_s = 0;
  double roof_us = 0;
  double ceiling_fraction = 0;  ///< roof over median
  Bound bound = Bound::kCompute;
  Cache cache = Cache::kHot;
  Launch launch = Launch::kAuto;  ///< what was timed; without samples what was asked for
  /// Median of the dense twin, two plain GEMMs of the same arithmetic, timed in the same rounds.
  std::optional<double> twin_us;
  std::optional<double> twin_fraction;  ///< twin over median
  /// The larger of the twin and of the bytes that must move over the read rate.
  std::optional<double> floor_us;
  std::optional<double> floor_fraction;  ///< floor over median
  /// active_weight_bytes() over median, 1e9 bytes per second.
  std::optional<double> weight_gbs;
  std::optional<double> stream_floor_us;  ///< stream_floor_us() with the probes of the problem
  std::optional<double> stream_fraction;  ///< stream floor over median
  std::optional<int> sm_clock_mhz;        ///< medians of readings right after the timed forwards
  std::optional<double> power_w;
  std::optional<int> temperature_c;
  std::optional<std::string> throttle;  ///< all reasons that were read; "none"
  std::uint64_t workspace_bytes = 0;
  /// CPU: most resident memory that one forward added; absent where the system does not tell. GPU:
  /// device memory that the level took, from before its creation to after its second forward.
  std::optional<std::uint64_t> peak_bytes;
  std::uint64_t bytes_needed = 0;         ///< predicted: workspace, transient and prepared together
  std::int64_t active_experts = 0;        ///< median of the inputs, as the median forward is of one
  double max_over_mean = 0;               ///< rows of the busiest expert over the mean of all
  std::vector<std::int64_t> expert_load;  ///< rows per expert, of all inputs together
  double prepare_ms = 0;
  int threads = 0;
  std::string isa;
  std::string plan;
  std::optional<KernelProfile> kernels;  ///< with BenchOptions::profile_kernels
  std::string kernels_reason;            ///< why they are absent although asked for
  std::string notes;
};

/// Two interleaved series of one level, on one problem: what differs between them is noise.
struct NoiseFloor {
  std::string level;
  std::int64_t tokens = 0;
  Cache cache = Cache::kHot;
  Launch launch = Launch::kEager;
  /// Relative: the larger of the difference of the two medians and the half-width of its 95 %
  /// bootstrap interval.
  double relative = 0;
};

struct BenchResult {
  bool complete = false;  ///< false while running and after stop()
  Ceilings ceilings;      ///< over the whole run; rows use the probes of their own problem
  std::optional<DeviceInfo> device;
  std::vector<NoiseFloor> noise;
  std::vector<BenchRow> rows;  ///< by problem, then level; only decided ones
  double seconds = 0;
  /// Of the time of the processors this process may run on, while it measured: taken by the host of a
  /// virtual machine, and by other programs.
  std::optional<double> steal_fraction;
  std::optional<double> others_fraction;
};

/// A bench that another thread can watch and stop.
class BenchRun {
 public:
  /// Checks everything that can be wrong with the options; throws Error. Measures nothing.
  explicit BenchRun(BenchOptions options);
  ~BenchRun();
  BenchRun(const BenchRun&) = delete;
  BenchRun& operator=(const BenchRun&) = delete;

  /// Measures. Call once. What a level does wrong becomes its row; throws only what concerns all.
  void run();
  /// Rows decided so far. From any thread, at any time.
  [[nodiscard]] BenchResult result() const;
  /// Makes run() return after the forward in progress. From any thread.
  void stop();
  /// Seconds that the forward in progress has taken so far; 0 when none is.
  [[nodiscard]] double seconds_in_forward() const;
  /// Declares the level in progress timed out, for a caller that stops waiting for run().
  void abandon();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

[[nodiscard]] BenchResult bench(const BenchOptions& options);

/// What measured numbers depend on.
struct MachineInfo {
  std::string cpu;
  int cores = 0;    ///< physical, of the machine
  int threads = 0;  ///< that this process may use
  std::uint64_t memory_bytes = 0;
  std::uint64_t available_bytes = 0;
  std::string os;
  std::string kernel;
  std::string compiler;
  std::string isa;  ///< highest instruction-set tier
  std::vector<std::string> isas;
  std::string huge_pages;  ///< transparent huge pages: "always", "madvise", "never", "" unknown
  std::vector<std::pair<std::string, std::string>> libraries;  ///< linked into the library
};
[[nodiscard]] MachineInfo describe_machine();

}  // namespace moe
