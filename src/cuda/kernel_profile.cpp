#include "cuda/kernel_profile.h"

#include <memory>
#include <set>

#include "cuda/activity.h"

namespace moe::cuda {

std::map<std::string, double> bytes_by_kernel(const std::vector<KernelRecord>& records,
                                              const std::vector<std::uint64_t>& step_bytes) {
  std::map<std::uint64_t, std::set<std::string>> names_of_step;
  for (const KernelRecord& record : records) names_of_step[record.external_id].insert(record.name);
  std::map<std::string, double> bytes;
  std::set<std::string> unknown;
  for (const auto& [step, names] : names_of_step) {
    if (names.size() != 1 || step == 0 || step > step_bytes.size()) {
      unknown.insert(names.begin(), names.end());
    } else {
      bytes[*names.begin()] += static_cast<double>(step_bytes[step - 1]);
    }
  }
  for (const std::string& name : unknown) bytes.erase(name);
  return bytes;
}

std::optional<KernelProfile> profile_kernels(Device& device, const std::function<void()>& forward,
                                             int forwards, const Instrument::TracedForward& traced,
                                             std::string& reason) {
  const std::unique_ptr<ActivityRecorder> recorder = ActivityRecorder::open(reason);
  if (recorder == nullptr) return std::nullopt;
  device.synchronise();

  recorder->start();
  std::uint64_t step = 1;
  recorder->mark(step);
  const std::vector<std::uint64_t> step_bytes = traced([&] { recorder->mark(++step); });
  device.synchronise();
  const std::map<std::string, double> bytes = bytes_by_kernel(recorder->stop(), step_bytes);

  recorder->start();
  for (int i = 0; i < forwards; ++i) {
    recorder->mark(static_cast<std::uint64_t>(i) + 1);
    forward();
    device.synchronise();
  }
  const ActivitySummary summary = summarise(recorder->stop());
  KernelProfile profile{.forwards = summary.repetitions,
                        .kernels = {},
                        .launches = summary.launches,
                        .span_us = summary.span_us,
                        .busy_us = summary.busy_us,
                        .gap_us = summary.gap_us,
                        .overlap_us = summary.overlap_us,
                        .largest_gap_us = summary.largest_gap_us,
                        .largest_gap_before = summary.largest_gap_before,
                        .lost = recorder->lost()};
  for (const KernelSummary& kernel : summary.kernels) {
    KernelTime time{.name = kernel.name,
                    .launches = kernel.launches,
                    .microseconds = kernel.microseconds,
                    .share = kernel.share,
                    .bytes = {}};
    if (const auto known = bytes.find(kernel.name); known != bytes.end()) {
      time.bytes = known->second;
    } else if (kernel.kind != ActivityKind::kKernel) {
      time.bytes = kernel.bytes;
    }
    profile.kernels.push_back(std::move(time));
  }
  return profile;
}

}  // namespace moe::cuda
