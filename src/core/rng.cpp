#include "core/rng.h"

#include <cmath>
#include <numbers>

namespace moe {

double random_normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  const double radius = std::sqrt(-2.0 * std::log(random_uniform(seed, stream, 2 * index)));
  return radius * std::cos(2.0 * std::numbers::pi * random_uniform(seed, stream, 2 * index + 1));
}

}  // namespace moe
