#include "checkpoint/stored_type.h"

#include <array>
#include <limits>

namespace moe::checkpoint {
namespace {

struct Entry {
  StoredType type;
  std::string_view name;
  int bits;
};

constexpr std::array<Entry, 20> kTypes = {
    {{StoredType::kF64, "F64", 64},       {StoredType::kF32, "F32", 32},
     {StoredType::kF16, "F16", 16},       {StoredType::kBF16, "BF16", 16},
     {StoredType::kF8E4M3, "F8_E4M3", 8}, {StoredType::kF8E5M2, "F8_E5M2", 8},
     {StoredType::kF8E8M0, "F8_E8M0", 8}, {StoredType::kF6E2M3, "F6_E2M3", 6},
     {StoredType::kF6E3M2, "F6_E3M2", 6}, {StoredType::kF4, "F4", 4},
     {StoredType::kC64, "C64", 64},       {StoredType::kI64, "I64", 64},
     {StoredType::kI32, "I32", 32},       {StoredType::kI16, "I16", 16},
     {StoredType::kI8, "I8", 8},          {StoredType::kU64, "U64", 64},
     {StoredType::kU32, "U32", 32},       {StoredType::kU16, "U16", 16},
     {StoredType::kU8, "U8", 8},          {StoredType::kBool, "BOOL", 8}}};

const Entry& entry_of(StoredType type) {
  const Entry& entry = kTypes[static_cast<std::size_t>(type)];
  return entry;
}

/// (1 + mantissa / 2^mantissa_bits) * 2^(exponent - bias), or without the 1 for exponent 0.
float value_of(std::uint32_t exponent, std::uint32_t mantissa, int mantissa_bits, int bias) {
  const std::uint32_t one = exponent == 0 ? 0 : std::uint32_t{1} << mantissa_bits;
  return std::ldexp(static_cast<float>(one + mantissa),
                    static_cast<int>(exponent == 0 ? 1 : exponent) - bias - mantissa_bits);
}

}  // namespace

std::string_view name_of(StoredType type) {
  return entry_of(type).name;
}

int bits_of(StoredType type) {
  return entry_of(type).bits;
}

std::optional<StoredType> find_stored_type(std::string_view name) {
  for (const Entry& entry : kTypes) {
    if (entry.name == name) return entry.type;
  }
  return std::nullopt;
}

float float_of_f16(std::uint16_t bits) {
  const std::uint32_t exponent = (bits >> 10) & 0x1fU;
  const std::uint32_t mantissa = bits & 0x3ffU;
  const bool negative = (bits & 0x8000U) != 0;
  float value = 0;
  if (exponent == 0x1f) {
    value = mantissa == 0 ? std::numeric_limits<float>::infinity()
                          : std::numeric_limits<float>::quiet_NaN();
  } else {
    value = value_of(exponent, mantissa, 10, 15);
  }
  return negative ? -value : value;
}

float float_of_e4m3(std::uint8_t bits) {
  const std::uint32_t exponent = (bits >> 3) & 0xfU;
  const std::uint32_t mantissa = bits & 7U;
  const bool negative = (bits & 0x80U) != 0;
  const float value = exponent == 0xf && mantissa == 7 ? std::numeric_limits<float>::quiet_NaN()
                                                       : value_of(exponent, mantissa, 3, 7);
  return negative ? -value : value;
}

float float_of_e8m0(std::uint8_t bits) {
  return bits == 255 ? std::numeric_limits<float>::quiet_NaN()
                     : std::ldexp(1.0F, static_cast<int>(bits) - 127);
}

float float_of_e2m1(std::uint8_t bits) {
  const float value = value_of((bits >> 1) & 3U, bits & 1U, 1, 1);
  return (bits & 8U) != 0 ? -value : value;
}

}  // namespace moe::checkpoint
