// Normal bf16 numbers for tests of operations.
#pragma once

#include <cstdint>
#include <vector>

#include "core/rng.h"
#include "core/scalar.h"

namespace moe::cuda {

inline std::vector<BFloat16> normal(std::int64_t count, std::uint64_t stream, double scale = 1) {
  std::vector<BFloat16> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = from_float<BFloat16>(static_cast<float>(scale * random_normal(77, stream, i)));
  }
  return values;
}

}  // namespace moe::cuda
