// Body of swiglu_rows_*.cpp, for the tier whose Vector was included before.
#pragma once

#include <cstdint>

#include "cpu/isa/swiglu_impl.h"
#include "cpu/isa/swiglu_rows.h"

namespace moe::cpu {
namespace {

inline void store_lanes(Vector::F value, std::int64_t lanes, float* out) {
  if (lanes == Vector::kLanes) return Vector::store(out, value);
  float edge[Vector::kLanes];
  Vector::store(edge, value);
  for (std::int64_t lane = 0; lane < lanes; ++lane) out[lane] = edge[lane];
}

inline void store_lanes(Vector::F value, std::int64_t lanes, BFloat16* out) {
  float rounded[Vector::kLanes];
  Vector::store(rounded, Vector::round_to_bf16(value));
  for (std::int64_t lane = 0; lane < lanes; ++lane) {
    out[lane].bits =
        static_cast<std::uint16_t>(__builtin_bit_cast(std::uint32_t, rounded[lane]) >> 16);
  }
}

template <class Element>
void swiglu_rows(const float* gate_up, std::int64_t rows, std::int64_t columns, Element* act,
                 std::int64_t act_stride) {
  constexpr std::int64_t kLanes = Vector::kLanes;
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* gate = gate_up + row * 2 * columns;
    const float* up = gate + columns;
    Element* out = act + row * act_stride;
    std::int64_t i = 0;
    for (; i + kLanes <= columns; i += kLanes) {
      store_lanes(swiglu(Vector::load(gate + i), Vector::load(up + i)), kLanes, out + i);
    }
    if (i == columns) continue;
    float gate_edge[kLanes] = {};
    float up_edge[kLanes] = {};
    for (std::int64_t lane = 0; lane < columns - i; ++lane) {
      gate_edge[lane] = gate[i + lane];
      up_edge[lane] = up[i + lane];
    }
    store_lanes(swiglu(Vector::load(gate_edge), Vector::load(up_edge)), columns - i, out + i);
  }
}

}  // namespace
}  // namespace moe::cpu
