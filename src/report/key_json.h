// Parts that the JSON forms of comparison and history share.
#pragma once

#include <nlohmann/json.hpp>

#include "report/result_file.h"

namespace moe::report {

/// The members of the row's key, named as in a result's row.
[[nodiscard]] nlohmann::ordered_json key_json(const ResultRow& row);
/// null for what is infinite or NaN: JSON has neither.
[[nodiscard]] nlohmann::ordered_json finite_json(double value);

}  // namespace moe::report
