// The device sources that NVRTC compiles: files of this repository, part of the library.
#pragma once

#include <string_view>

namespace moe::cuda {

/// The text of a file named by its path in the repository ("src/cuda/device/warp.cuh"); "" when it is
/// not embedded. Defined in a generated source (cmake/EmbedFiles.cmake).
[[nodiscard]] std::string_view embedded_file(std::string_view path);

}  // namespace moe::cuda
