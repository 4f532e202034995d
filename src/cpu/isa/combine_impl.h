// The weighted sum of a token's K rows, for the tier whose Vector was included before.
#pragma once

#include <cstdint>

#include "core/scalar.h"

namespace moe::cpu {
namespace {

/// Stores the kLanes values of one vector as fp32 or bf16.
inline void store_lanes(float* to, Vector::F value) {
  Vector::store(to, value);
}
inline void store_lanes(BFloat16* to, Vector::F value) {
  float rounded[Vector::kLanes];
  Vector::store(rounded, Vector::round_to_bf16(value));
  for (int lane = 0; lane < Vector::kLanes; ++lane) {
    to[lane].bits =
        static_cast<std::uint16_t>(__builtin_bit_cast(std::uint32_t, rounded[lane]) >> 16);
  }
}

/// y[columns] = sum over `count` slots of weights[i]·y_perm[dst_row[i],:], in slot order; a dst_row
/// below 0 is skipped.
template <class Element>
void combine_rows(const float* y_perm, std::int64_t row_stride, const std::int64_t* dst_row,
                  const float* weights, std::int64_t count, std::int64_t columns, Element* y) {
  constexpr std::int64_t kStep = Vector::kLanes;
  std::int64_t column = 0;
  for (; column + kStep <= columns; column += kStep) {
    Vector::F sum = Vector::zero();
    for (std::int64_t i = 0; i < count; ++i) {
      if (dst_row[i] < 0) continue;
      const float* row = y_perm + dst_row[i] * row_stride;
      sum = Vector::fma(Vector::set1(weights[i]), Vector::load(row + column), sum);
    }
    store_lanes(y + column, sum);
  }
  if (column == columns) return;
  float edge[Vector::kLanes] = {};
  for (std::int64_t i = 0; i < count; ++i) {
    if (dst_row[i] < 0) continue;
    const float* row = y_perm + dst_row[i] * row_stride;
    for (std::int64_t at = column; at < columns; ++at) edge[at - column] += weights[i] * row[at];
  }
  Element last[Vector::kLanes];
  store_lanes(last, Vector::load(edge));
  for (std::int64_t at = column; at < columns; ++at) y[at] = last[at - column];
}

}  // namespace
}  // namespace moe::cpu
