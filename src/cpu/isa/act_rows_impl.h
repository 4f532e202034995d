// Body of act_rows_*.cpp, for the tier whose Vector was included before.
#pragma once

#include <cstdint>

#include "cpu/isa/act_rows.h"
#include "cpu/isa/activation_impl.h"

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

/// `lanes` values from `from`, the others zero; all zero from null.
inline Vector::F load_lanes(const float* from, std::int64_t lanes) {
  if (from == nullptr) return Vector::zero();
  if (lanes == Vector::kLanes) return Vector::load(from);
  float edge[Vector::kLanes] = {};
  for (std::int64_t lane = 0; lane < lanes; ++lane) edge[lane] = from[lane];
  return Vector::load(edge);
}

template <class Element>
void act_rows(const ActBlock& block, Element* act, std::int64_t act_stride) {
  constexpr std::int64_t kLanes = Vector::kLanes;
  const std::int64_t columns = block.columns;
  const bool ungated = block.step.kind == ActivationStep::Kind::kReLU2;
  const bool plain = block.step.kind == ActivationStep::Kind::kSwiGlu &&
                     block.gate_bias == nullptr && block.row_scale == nullptr;
  for (std::int64_t row = 0; row < block.rows; ++row) {
    const float* gate = block.sums + row * (ungated ? 1 : 2) * columns;
    const float* up = gate + (ungated ? 0 : columns);
    Element* out = act + row * act_stride;
    std::int64_t i = 0;
    for (; plain && i + kLanes <= columns; i += kLanes) {
      store_lanes(swiglu(Vector::load(gate + i), Vector::load(up + i)), kLanes, out + i);
    }
    const Vector::F scale = Vector::set1(block.row_scale == nullptr ? 1.0F : block.row_scale[row]);
    for (; i < columns; i += kLanes) {
      const std::int64_t lanes = columns - i < kLanes ? columns - i : kLanes;
      const auto value = [&](const float* sums, const float* bias) {
        return Vector::fma(load_lanes(sums + i, lanes), scale,
                           load_lanes(bias == nullptr ? nullptr : bias + i, lanes));
      };
      const Vector::F u = value(up, block.up_bias);
      store_lanes(ungated ? relu2(u) : activate(block.step, value(gate, block.gate_bias), u), lanes,
                  out + i);
    }
  }
}

}  // namespace
}  // namespace moe::cpu
