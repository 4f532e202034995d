// Errors the library throws. The library never prints and never exits.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace moe {

enum class ErrorCode {
  kInvalidArgument,  // the caller passed something that cannot work: a shape, a name, a tensor
  kUnsupported,      // valid, but this level, build or machine cannot run it
  kOutOfMemory,      // predicted before anything was allocated; bytes_needed() says how much
  kCuda,             // a CUDA call failed
  kCancelled,        // LayerOptions::cancel was set
  kIo,               // a file is missing, unreadable, truncated or cannot be written
  kInternal,         // a bug in this library
};

/// The one exception type of the library. what() is one sentence that contains the offending
/// values.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message, std::uint64_t bytes_needed = 0)
      : std::runtime_error(message), code_(code), bytes_needed_(bytes_needed) {}

  [[nodiscard]] ErrorCode code() const noexcept { return code_; }
  /// Bytes that the refused work needs; 0 unless code() is kOutOfMemory.
  [[nodiscard]] std::uint64_t bytes_needed() const noexcept { return bytes_needed_; }

 private:
  ErrorCode code_;
  std::uint64_t bytes_needed_;
};

}  // namespace moe
