// Strict readers of option values. All throw Error(kInvalidArgument) with the option and its value.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "moe/config.h"

namespace moe::cli {

/// Decimal digits only, with an optional minus sign; `least` <= value <= `most`.
[[nodiscard]] std::int64_t parse_integer(std::string_view option, std::string_view text,
                                         std::int64_t least, std::int64_t most);
/// 0 to 2^64 - 1.
[[nodiscard]] std::uint64_t parse_seed(std::string_view option, std::string_view text);
/// A finite decimal number of at least 0.
[[nodiscard]] double parse_seconds(std::string_view option, std::string_view text);
/// "1048576", "512MiB", "6GiB", "4G": G and GiB are both 2^30.
[[nodiscard]] std::uint64_t parse_bytes(std::string_view option, std::string_view text);
/// "T,H,I,E,K"
[[nodiscard]] Shape parse_thiek(std::string_view text);
/// "tokens=1,64,512", "tokens=1:4096:*2", "tokens=64:512:+64" and lists of both.
[[nodiscard]] std::vector<std::int64_t> parse_tokens_axis(std::string_view text);

[[nodiscard]] std::vector<std::string_view> split(std::string_view text, char separator);

}  // namespace moe::cli
