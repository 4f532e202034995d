// From a run-time dtype to a compile-time element type, in one place.
#pragma once

#include "core/scalar.h"
#include "moe/config.h"

namespace moe {

/// Calls body.operator()<float>() or body.operator()<BFloat16>().
template <class Body>
decltype(auto) with_element_type(DType dtype, Body&& body) {
  if (dtype == DType::kF32) return body.template operator()<float>();
  return body.template operator()<BFloat16>();
}

}  // namespace moe
