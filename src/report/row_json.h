// One result row as JSON: the fields, their order and their meaning are schema/result.schema.json.
#pragma once

#include <nlohmann/json.hpp>

#include "report/report.h"

namespace moe::report {

/// All fields, always in the same order. What was not measured is null.
[[nodiscard]] nlohmann::ordered_json row_json(const Report& report, const ReportRow& row);

}  // namespace moe::report
