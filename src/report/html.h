// Results as one HTML file that needs nothing else: no network, no scripts.
#pragma once

#include <string>
#include <vector>

#include "report/result_file.h"

namespace moe::report {

/// A section per file: environment, ladder of each problem, sweep over tokens where there are several,
/// roofline, load of the experts, error against tolerance, and every row with the command that
/// measures it again. Throws kInvalidArgument when no file has a row.
[[nodiscard]] std::string render_html(const std::vector<ResultFile>& files);

}  // namespace moe::report
