// Text helpers of the error messages and tables.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moe {

/// The candidate with the smallest edit distance to `name`; "" when there is none.
[[nodiscard]] std::string nearest_match(std::string_view name,
                                        const std::vector<std::string>& candidates);
/// "4.00 GiB", "96 B"
[[nodiscard]] std::string format_bytes(std::uint64_t bytes);
/// "1.23 ms", "45.6 us", "2.10 s"
[[nodiscard]] std::string format_microseconds(double microseconds);

}  // namespace moe
