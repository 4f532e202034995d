// JSON that others wrote: read strictly, quoted safely.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace moe::checkpoint {

/// More than any header, index or configuration needs; the limit of the safetensors library.
inline constexpr std::size_t kMostJsonBytes = 100'000'000;

/// Control characters as \xNN, so that a name from a file cannot drive a terminal.
[[nodiscard]] std::string printable(std::string_view text);
/// printable(text) in single quotes for a message, cut after 120 bytes.
[[nodiscard]] std::string quote_name(std::string_view text);

/// The document in `text`, which comes from `file`. Throws Error(kIo) for what is not JSON, is
/// nested deeper than 16 or has a key twice in one object.
[[nodiscard]] nlohmann::json parse_json(const std::string& file, std::string_view text);

}  // namespace moe::checkpoint
