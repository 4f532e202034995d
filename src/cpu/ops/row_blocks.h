// Work of levels 1 to 3: (routed row, block of output columns), spread over all threads.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace moe::cpu {

/// Output columns per unit of work: small enough that one token still occupies many cores, large
/// enough that a unit (64 dot products) is far longer than handing it out.
inline constexpr std::int64_t kColumnBlock = 64;

/// body(row, first_column, end_column) for every block of every row; each block runs exactly once.
template <class Body>
void for_each_row_block(std::int64_t rows, std::int64_t columns, int threads, const Body& body) {
  const std::int64_t blocks = (columns + kColumnBlock - 1) / kColumnBlock;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (std::int64_t unit = 0; unit < rows * blocks; ++unit) {
    const std::int64_t first = unit % blocks * kColumnBlock;
    body(unit / blocks, first, std::min(first + kColumnBlock, columns));
  }
}

}  // namespace moe::cpu
