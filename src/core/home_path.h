// Paths as results name them: they are read, and committed, on other machines.
#pragma once

#include <string>

namespace moe {

/// `text` with "~" wherever it names a path below the user's home folder ($HOME, unset or "/": unchanged).
[[nodiscard]] std::string with_home_as_tilde(const std::string& text);

}  // namespace moe
