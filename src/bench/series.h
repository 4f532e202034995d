// One timed series of forwards, each checked outside of its timed region. The forward is any
// function, so that the harness can be tested on forwards that cheat.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/device_tensor.h"
#include "core/instrument.h"
#include "core/workload.h"
#include "moe/verify.h"

namespace moe {

/// Computes y, or queues that where the instrument waits for it.
using Forward = std::function<void(const TensorView& x, const TensorView& y)>;

/// Distinct inputs of one problem, their answers, and the one x and the one y that every forward
/// gets: a forward that recognises its arguments by address sees the same ones each time. Inputs, x
/// and y lie in the memory of the instrument's device.
class BenchInputs {
 public:
  static constexpr int kInputs = 3;

  /// `weights` are host memory. They and the instrument outlive this.
  BenchInputs(const Problem& problem, const Weights& weights, std::uint64_t seed, const Skew& skew,
              Instrument& instrument);
  /// Bytes that an object for `problem` holds on the host, oracles included, and on a device apart
  /// from it.
  [[nodiscard]] static std::uint64_t predict_bytes(const Problem& problem);
  [[nodiscard]] static std::uint64_t predict_device_bytes(const Problem& problem);

  /// Copies input `index` to x and poisons y.
  void load(int index) const;
  [[nodiscard]] const TensorView& x() const { return x_.view(); }
  [[nodiscard]] const TensorView& y() const { return y_.view(); }
  /// y as it is now, in host memory, until the next call.
  [[nodiscard]] const TensorView& y_on_host() const;
  [[nodiscard]] Instrument& instrument() const { return *instrument_; }
  /// The answers for input `index`, for levels whose GEMMs multiply `operands`. Others than kAsStored
  /// are worked out when they are first asked for.
  [[nodiscard]] const Oracle& oracle(int index, Operands operands = Operands::kAsStored) const;
  [[nodiscard]] const Problem& problem() const { return problem_; }

 private:
  [[nodiscard]] std::vector<Oracle> make_oracles(Operands operands) const;

  Problem problem_;
  Weights weights_;
  std::uint64_t seed_;
  Skew skew_;
  Instrument* instrument_;
  std::vector<Tensor> host_inputs_;  // only where the device computes in the host's memory
  std::vector<DeviceTensor> inputs_;
  std::vector<Oracle> oracles_;
  mutable std::vector<Oracle> fp8_oracles_;
  DeviceTensor x_;
  DeviceTensor y_;
  Tensor host_y_;  // staging
};

class TimedSeries {
 public:
  /// `operands` as of the level (Layer::operands).
  TimedSeries(std::string name, Forward forward, const BenchInputs& inputs, Timing timing = {},
              Operands operands = Operands::kAsStored);
  /// A series of the same forward and the same verified outputs, without samples.
  [[nodiscard]] TimedSeries restarted(Timing timing) const;

  /// One untimed forward per input, compared with the oracle. `before_second` runs before the
  /// second one, `after_second` after it, to measure memory: by then what is allocated once is.
  /// False when one is wrong; failure() says how.
  bool verify(const std::function<void()>& before_second = {},
              const std::function<void()>& after_second = {});
  /// Untimed forwards.
  void warm_up(int count);
  /// One timed forward on the next input, then the check of what it wrote. False when that is
  /// wrong; the sample is then not kept.
  bool sample();

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const std::vector<double>& microseconds() const { return microseconds_; }
  /// What the sensors said right after each sample, where there are any.
  [[nodiscard]] const std::vector<SensorReading>& readings() const { return readings_; }
  [[nodiscard]] const Timing& timing() const { return timing_; }
  /// Of the verification's fastest forward: what one more will about take.
  [[nodiscard]] double expected_seconds() const { return expected_seconds_; }
  /// Of all oracle comparisons so far, the one that used most of its tolerance.
  [[nodiscard]] const Comparison& worst() const { return worst_; }
  [[nodiscard]] const std::string& failure() const { return failure_; }

 private:
  Elapsed run_forward(int input);
  bool check(int input, const std::string& when);
  bool check_clock(const Elapsed& elapsed, const std::string& when);

  std::string name_;
  Forward forward_;
  const BenchInputs* inputs_;
  Timing timing_;
  Operands operands_;
  std::vector<std::uint64_t> verified_;  // fingerprint of the y that passed, per input
  std::vector<double> microseconds_;
  std::vector<SensorReading> readings_;
  double expected_seconds_ = 0;
  Comparison worst_;
  std::string failure_;
  int next_input_ = 0;
  Elapsed
      least_unseen_;  // of the samples' forwards, the one with the least time that its clock missed
};

/// How many samples a forward of `seconds` gets: as many as fit `budget_seconds`, at least `least`
/// and at most kMostSamples (or `least`, when that is more).
[[nodiscard]] int planned_samples(double seconds, double budget_seconds, int least);
inline constexpr int kMostSamples = 60;

/// True when a series with `wanted` samples takes part in round `round` of `rounds`: its rounds are
/// spread evenly.
[[nodiscard]] bool takes_part(int round, int rounds, int wanted);

/// core/fingerprint.h of a host tensor: 64 bits that change when any byte does.
[[nodiscard]] std::uint64_t fingerprint(const TensorView& tensor);

}  // namespace moe
