// Element types of the safetensors format, and the values of those that weights are stored in.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string_view>

namespace moe::checkpoint {

enum class StoredType : std::uint8_t {
  kF64,
  kF32,
  kF16,
  kBF16,
  kF8E4M3,
  kF8E5M2,
  kF8E8M0,
  kF6E2M3,
  kF6E3M2,
  kF4,
  kC64,
  kI64,
  kI32,
  kI16,
  kI8,
  kU64,
  kU32,
  kU16,
  kU8,
  kBool,
};

[[nodiscard]] std::string_view name_of(StoredType type);  ///< as in a header: "BF16", "F8_E4M3"
[[nodiscard]] int bits_of(StoredType type);               ///< per element
[[nodiscard]] std::optional<StoredType> find_stored_type(std::string_view name);

/// IEEE half precision.
[[nodiscard]] float float_of_f16(std::uint16_t bits);
/// 4 exponent bits of bias 7, 3 mantissa bits, no infinity, NaN = 0x7f and 0xff (Micikevicius et al.
/// 2022, arXiv:2209.05433).
[[nodiscard]] float float_of_e4m3(std::uint8_t bits);
/// 2^(bits - 127); NaN for 255 (OCP Microscaling Formats, v1.0).
[[nodiscard]] float float_of_e8m0(std::uint8_t bits);
/// The low four bits: sign, 2 exponent bits of bias 1, 1 mantissa bit; 0 to 6 (same document).
[[nodiscard]] float float_of_e2m1(std::uint8_t bits);

}  // namespace moe::checkpoint
