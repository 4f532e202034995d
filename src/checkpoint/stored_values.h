// Values of safetensors files, which are aligned to nothing, and rows of them in the types that the levels take.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "checkpoint/stored_type.h"
#include "core/check.h"
#include "core/scalar.h"

namespace moe::checkpoint {

/// Elements are read where they lie: no offset in a file is aligned to anything.
template <class Bits>
Bits bits_at(const std::byte* data, std::int64_t index) {
  Bits bits;
  std::memcpy(&bits, data + index * static_cast<std::int64_t>(sizeof(Bits)), sizeof(Bits));
  return bits;
}

struct ReadF32 {
  using Bits = std::uint32_t;
  static float at(const std::byte* data, std::int64_t index) { return bits_at<float>(data, index); }
};
struct ReadBF16 {
  using Bits = std::uint16_t;
  static float at(const std::byte* data, std::int64_t index) {
    return to_float(BFloat16{bits_at<std::uint16_t>(data, index)});
  }
};
struct ReadF16 {
  static float at(const std::byte* data, std::int64_t index) {
    static const std::vector<float> values = [] {
      std::vector<float> table(65536);
      for (std::size_t bits = 0; bits < table.size(); ++bits) {
        table[bits] = float_of_f16(static_cast<std::uint16_t>(bits));
      }
      return table;
    }();
    return values[bits_at<std::uint16_t>(data, index)];
  }
};

template <class Body>
void with_reader(StoredType type, Body&& body) {
  switch (type) {
    case StoredType::kF32:
      return body.template operator()<ReadF32>();
    case StoredType::kBF16:
      return body.template operator()<ReadBF16>();
    case StoredType::kF16:
      return body.template operator()<ReadF16>();
    default:
      fail(ErrorCode::kInternal, "a tensor of type {} has no plain values", name_of(type));
  }
}

/// Whether every value that `Read` gives is one of `Element`'s, without a rounding.
template <class Read, class Element>
inline constexpr bool kKeepsValues = std::is_same_v<Read, ReadBF16> ||
                                     (std::is_same_v<Read, ReadF32> &&
                                      std::is_same_v<Element, float>);

/// Without branches, so that loops over it become vector code.
inline bool is_finite(float value) {
  return (std::bit_cast<std::uint32_t>(value) & 0x7f800000U) != 0x7f800000U;
}

/// Whether one of `count` values is NaN or infinite: has all bits of the exponent set. The largest bit
/// pattern without its sign tells; several maxima side by side, so that none waits for the one before.
template <class Bits>
bool any_special(const std::byte* data, std::int64_t count) {
  using Signed = std::make_signed_t<Bits>;
  constexpr auto kMagnitude = static_cast<Bits>(std::numeric_limits<Signed>::max());
  constexpr Signed kInfinity = sizeof(Bits) == 2 ? 0x7f80 : 0x7f800000;
  constexpr std::int64_t kSide = 64 / sizeof(Bits);
  Signed largest[kSide] = {};
  std::int64_t i = 0;
  for (; i + kSide <= count; i += kSide) {
    for (std::int64_t lane = 0; lane < kSide; ++lane) {
      const auto value = static_cast<Signed>(bits_at<Bits>(data, i + lane) & kMagnitude);
      largest[lane] = std::max(largest[lane], value);
    }
  }
  for (; i < count; ++i) {
    largest[0] = std::max(largest[0], static_cast<Signed>(bits_at<Bits>(data, i) & kMagnitude));
  }
  return *std::max_element(largest, largest + kSide) >= kInfinity;
}

/// bf16 as fp32: bits are moved, not values, of which a compiler makes vector code even for the oldest
/// x86-64.
inline void widen(const std::byte* from, float* out, std::int64_t count) {
  auto* bits = reinterpret_cast<std::byte*>(out);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t wide = static_cast<std::uint32_t>(bits_at<std::uint16_t>(from, i)) << 16;
    std::memcpy(bits + 4 * i, &wide, sizeof(wide));
  }
}

/// Writes `columns` values that `value_of(column)` gives; true when one was not finite.
template <class Element, class ValueOf>
bool write_row(Element* out, std::int64_t columns, bool& rounded, const ValueOf& value_of) {
  bool all_finite = true;
  bool all_same = true;
  for (std::int64_t column = 0; column < columns; ++column) {
    const float value = value_of(column);
    const Element element = from_float<Element>(value);
    out[column] = element;
    all_finite &= is_finite(to_float(element));
    all_same &= to_float(element) == value;
  }
  rounded = rounded || !all_same;
  return !all_finite;
}

}  // namespace moe::checkpoint
