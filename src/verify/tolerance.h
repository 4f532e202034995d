// How many standard deviations of rounding error a row of y may be off.
#pragma once

#include "moe/config.h"

namespace moe {

/// 3·(1 + 1/sqrt(min(H, I))): the error of a long row is an average over min(H, I) independent
/// roundings and hardly varies; the error of a row of one element is a single draw.
[[nodiscard]] double allowed_deviations(const Shape& shape);

}  // namespace moe
