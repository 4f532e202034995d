// What ran on a GPU and when, as records, and what they add up to: launches, time, share and gaps.
// Plain functions on plain data; cuda/activity.h collects the records.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moe::cuda {

enum class ActivityKind : std::uint8_t { kKernel, kMemcpy, kMemset };

/// One kernel, copy or fill on the device.
struct KernelRecord {
  ActivityKind kind = ActivityKind::kKernel;
  std::string name;  ///< short_kernel_name() of a kernel; "memcpy HtoD", "memset" otherwise
  std::int64_t start_ns = 0;
  std::int64_t end_ns = 0;
  std::array<int, 3> grid{};   ///< blocks; zeros for copies and fills, as all down to shared_bytes
  std::array<int, 3> block{};  ///< threads
  int registers = 0;           ///< per thread
  std::int64_t shared_bytes = 0;  ///< per block, static and dynamic
  std::uint64_t bytes = 0;        ///< copied or filled; 0 for kernels
  std::uint64_t external_id = 0;  ///< of the last mark() before the launch; 0: none
  bool graph_launch = false;      ///< launched as a node of a graph
};

/// A mangled name as people say it: demangled, without return type, parameters and our namespaces.
/// "combine_kernel<bf16, 8>". Longer than 96 characters: the middle is left out.
[[nodiscard]] std::string short_kernel_name(const char* mangled);

/// All activities of one name. Per repetition, where the records have several (see summarise).
struct KernelSummary {
  std::string name;
  ActivityKind kind = ActivityKind::kKernel;
  double launches = 0;
  double microseconds = 0;  ///< of all launches together
  double share = 0;         ///< of the microseconds of all names; the shares add up to 1
  double bytes = 0;         ///< copied or filled
};

/// Records as one picture. Per repetition, each being the records of one external id: what lies
/// between two ids is not part of either, and a name's figures are means over the repetitions.
struct ActivitySummary {
  int repetitions = 0;
  std::vector<KernelSummary> kernels;  ///< most time first
  double launches = 0;
  double span_us = 0;              ///< from the first start to the last end
  double busy_us = 0;              ///< of the span, the time in which at least one activity ran
  double gap_us = 0;               ///< span − busy
  double overlap_us = 0;           ///< time of all activities − busy: several ran at once
  double largest_gap_us = 0;       ///< of any repetition
  std::string largest_gap_before;  ///< the activity that ended that gap; "" when there is none
};
[[nodiscard]] ActivitySummary summarise(const std::vector<KernelRecord>& records);

}  // namespace moe::cuda
