// Values of safetensors files, which are aligned to nothing, and rows of them in the types that the levels take.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
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
inline constexpr bool kCopies = std::is_same_v<Read, ReadBF16> ||
                                (std::is_same_v<Read, ReadF32> && std::is_same_v<Element, float>);

/// Without branches, so that loops over it become vector code.
inline bool is_finite(float value) {
  return (std::bit_cast<std::uint32_t>(value) & 0x7f800000U) != 0x7f800000U;
}

/// Whether one of `count` bit patterns has all of `exponent` set: NaN or infinity.
template <class Bits>
bool any_special(const std::byte* data, std::int64_t count, Bits exponent) {
  Bits found = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    found |= static_cast<Bits>((bits_at<Bits>(data, i) & exponent) == exponent ? 1 : 0);
  }
  return found != 0;
}

/// Copies a row of values that `Element` holds exactly; true when one was not finite. Bits are moved and
/// looked at, not values: a compiler makes vector code of that even for the oldest x86-64.
template <class Read, class Element>
bool copy_row(const std::byte* from, Element* out, std::int64_t columns) {
  using Bits = typename Read::Bits;
  if constexpr (sizeof(Element) == sizeof(Bits)) {
    std::memcpy(out, from, static_cast<std::size_t>(columns) * sizeof(Bits));
  } else {
    auto* bits = reinterpret_cast<std::byte*>(out);
    for (std::int64_t i = 0; i < columns; ++i) {
      const std::uint32_t wide = static_cast<std::uint32_t>(bits_at<Bits>(from, i)) << 16;
      std::memcpy(bits + 4 * i, &wide, sizeof(wide));
    }
  }
  return any_special<Bits>(from, columns, sizeof(Bits) == 2 ? 0x7f80U : 0x7f800000U);
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
