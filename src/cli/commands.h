// One function per command: declares its options on `app` and returns what to do when it was called.
#pragma once

#include <CLI/App.hpp>
#include <functional>
#include <string>
#include <vector>

namespace moe::cli {

/// Runs a parsed command; returns the exit code. May throw Error.
using Action = std::function<int()>;

struct Command {
  CLI::App* app = nullptr;
  Action run;
};

[[nodiscard]] Command add_bench_run(CLI::App& bench);
[[nodiscard]] Command add_bench_list(CLI::App& bench);
[[nodiscard]] Command add_bench_compare(CLI::App& bench);
[[nodiscard]] Command add_bench_history(CLI::App& bench);
[[nodiscard]] Command add_verify(CLI::App& app);
[[nodiscard]] Command add_presets_list(CLI::App& presets);
[[nodiscard]] Command add_presets_show(CLI::App& presets);
[[nodiscard]] Command add_presets_import(CLI::App& presets);
[[nodiscard]] Command add_inspect(CLI::App& app);
[[nodiscard]] Command add_route_gen(CLI::App& route);
[[nodiscard]] Command add_route_stats(CLI::App& route);
[[nodiscard]] Command add_route_convert(CLI::App& route);
[[nodiscard]] Command add_report(CLI::App& app);
[[nodiscard]] Command add_explain(CLI::App& app);
[[nodiscard]] Command add_tune(CLI::App& app);
[[nodiscard]] Command add_roofline(CLI::App& app);
[[nodiscard]] Command add_doctor(CLI::App& app);

}  // namespace moe::cli
