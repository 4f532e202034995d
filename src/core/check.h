// MOE_CHECK: argument and invariant checks that live in Release builds too.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <utility>

#include "moe/error.h"

namespace moe {

template <class... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace moe

/// Throws Error(kInvalidArgument) with the formatted message unless `condition` holds. A condition
/// that compares with NaN is false, so NaN fails.
#define MOE_CHECK(condition, ...)                                   \
  do {                                                              \
    if (!(condition)) {                                             \
      ::moe::fail(::moe::ErrorCode::kInvalidArgument, __VA_ARGS__); \
    }                                                               \
  } while (false)

/// The same for what only a bug in this library can break.
#define MOE_INTERNAL_CHECK(condition, ...)                   \
  do {                                                       \
    if (!(condition)) {                                      \
      ::moe::fail(::moe::ErrorCode::kInternal, __VA_ARGS__); \
    }                                                        \
  } while (false)
