// What a problem is to a cache of timings.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "moe/config.h"

namespace moe {

/// Everything of a problem that decides how fast it is, but for the tokens: timings are kept by their
/// number.
[[nodiscard]] nlohmann::json key_without_tokens(const Problem& problem);
/// "bf16-h2048-i768-e128-k8-0123456789abcdef", the last part being of the whole key.
[[nodiscard]] std::string file_stem(const Problem& problem);

}  // namespace moe
