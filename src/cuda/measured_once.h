// What is measured of a device once a process.
#pragma once

#include <map>
#include <mutex>

namespace moe::cuda {

/// A value for each device. One that says nothing (others may keep the device busy) is measured once more with each of
/// the next calls, kAttempts times in all.
template <class Value>
class MeasuredOnce {
 public:
  static constexpr int kAttempts = 4;

  /// `measure` makes the value, `known` says whether it says something.
  template <class Measure, class Known>
  const Value& of(int device, Measure&& measure, Known&& known) {
    const std::lock_guard lock(mutex_);
    Entry& entry = of_device_[device];
    if (!known(entry.value) && entry.attempts < kAttempts) {
      ++entry.attempts;
      entry.value = measure();
    }
    return entry.value;
  }

 private:
  struct Entry {
    Value value = {};
    int attempts = 0;
  };
  std::mutex mutex_;
  std::map<int, Entry> of_device_;
};

}  // namespace moe::cuda
