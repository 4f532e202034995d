// The whole command line.
#pragma once

#include <string>
#include <vector>

namespace moe::cli {

/// Parses and runs; returns the exit code. Throws Error for what the user got wrong.
int run_app(int argc, char** argv);

/// Long names of the options that `command` ("moe bench run") takes, beside --help; so that the
/// tests can compare them with its help text.
[[nodiscard]] std::vector<std::string> option_names(const std::string& command);

}  // namespace moe::cli
