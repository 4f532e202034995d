// An entry of the list by which kernels for few tokens find their work; host and device agree on it.
#pragma once

#include <cstdint>

namespace moe::cuda {

/// An expert that tokens were routed to: slots[first .. first + tokens) are its rows.
struct alignas(16) ActiveExpert {
  std::int32_t expert;  // no initial values: blocks keep some in shared memory
  std::int32_t first;
  std::int32_t tokens;  ///< 0: no expert, and none behind it
};

}  // namespace moe::cuda
