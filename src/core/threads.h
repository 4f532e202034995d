// How many CPU threads to use, and loops over them.
#pragma once

#include <cstdint>

namespace moe {

/// Processors this process may run on (affinity mask), at least 1.
[[nodiscard]] int usable_threads();

/// [begin, end) of part `index` of `parts` nearly equal parts of `count` items.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};
constexpr Range part_of(std::int64_t count, std::int64_t index, std::int64_t parts) {
  const std::int64_t base = count / parts;
  const std::int64_t extra = count % parts;
  const std::int64_t begin = index * base + (index < extra ? index : extra);
  return {begin, begin + base + (index < extra ? 1 : 0)};
}

}  // namespace moe
