// The whole command line.
#pragma once

namespace moe::cli {

/// Parses and runs; returns the exit code. Throws Error for what the user got wrong.
int run_app(int argc, char** argv);

}  // namespace moe::cli
