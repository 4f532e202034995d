// Text files of the repository that are part of the program.
#pragma once

#include <string_view>

namespace moe::cli {

/// The text of a file named by its path in the repository; "" when it is not embedded. Defined in a
/// generated source (cmake/EmbedFiles.cmake).
[[nodiscard]] std::string_view embedded_file(std::string_view path);

}  // namespace moe::cli
