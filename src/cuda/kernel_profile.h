// The kernels of a forward, out of CUPTI's records, with the bytes that the level's trace gives them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/instrument.h"
#include "cuda/activity_records.h"

namespace moe::cuda {

/// Bytes per kernel name out of one traced forward: `records` carry the number of their step, from 1
/// on, as external id, and step number s wrote step_bytes[s-1]. A step whose kernels have one name
/// gives them its bytes; a name that also runs in steps with other kernels has no bytes.
[[nodiscard]] std::map<std::string, double> bytes_by_kernel(
    const std::vector<KernelRecord>& records, const std::vector<std::uint64_t>& step_bytes);

/// As Instrument::profile.
[[nodiscard]] std::optional<KernelProfile> profile_kernels(Device& device,
                                                           const std::function<void()>& forward,
                                                           int forwards,
                                                           const Instrument::TracedForward& traced,
                                                           std::string& reason);

}  // namespace moe::cuda
