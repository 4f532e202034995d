// moe roofline: the machine's ceilings, and what they mean for a problem.
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/parse.h"
#include "core/check.h"
#include "core/text.h"
#include "moe/bench.h"

namespace moe::cli {
namespace {

constexpr std::int64_t kMostSamples = 100000;

struct RooflineOptions {
  WorkloadOptions workload;
  std::string samples = "20";
  bool json = false;
};

std::string rate_line(const char* what, double value, const char* unit, double spread) {
  return fmt::format("  {:<17} {:10.1f} {:<8} IQR {:.1f} %\n", what, value, unit, 100 * spread);
}

std::string ceilings_text(const Ceilings& ceilings, Backend backend) {
  const bool gpu = backend == Backend::kCuda;
  std::string text = ceilings.isa;
  if (const std::optional<DeviceInfo> device = describe_device(backend)) {
    text = device->name + ", " + text;
  } else {
    text += fmt::format(", {} threads", ceilings.threads);
  }
  text += fmt::format(", {} samples, medians\n", ceilings.samples);
  text += rate_line(gpu ? "fp32 GEMM" : "fp32 multiply-add", ceilings.fp32_gflops, "GFLOP/s",
                    ceilings.fp32_spread);
  if (ceilings.bf16_gflops) {
    text += rate_line(gpu ? "bf16 GEMM" : "bf16 dot product", *ceilings.bf16_gflops, "GFLOP/s",
                      ceilings.bf16_spread);
  } else {
    text += "  bf16 dot product  none in this instruction set; the fp32 peak counts\n";
  }
  if (ceilings.fp8_gflops) {
    text += rate_line("fp8 (e4m3) GEMM", *ceilings.fp8_gflops, "GFLOP/s", ceilings.fp8_spread);
  }
  text += rate_line("memory read", ceilings.read_gbs, "GB/s", ceilings.read_spread);
  if (ceilings.copy_gbs) {
    text += rate_line("memory copy", *ceilings.copy_gbs, "GB/s", ceilings.copy_spread);
  }
  return text + "\n";
}

int roofline(const RooflineOptions& options) {
  const Workload workload = resolve(options.workload);
  const LayerOptions& layer = workload.layer;
  const auto samples =
      static_cast<int>(parse_integer("--samples", options.samples, 1, kMostSamples));
  const Ceilings ceilings = measure_ceilings(layer, samples);

  const auto present = [](const std::optional<double>& value) {
    return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
  };
  nlohmann::ordered_json json = {{"isa", ceilings.isa},
                                 {"threads", ceilings.threads},
                                 {"samples", ceilings.samples},
                                 {"fp32_gflops", ceilings.fp32_gflops},
                                 {"fp32_spread", ceilings.fp32_spread},
                                 {"bf16_gflops", present(ceilings.bf16_gflops)},
                                 {"bf16_spread", ceilings.bf16_spread},
                                 {"fp8_gflops", present(ceilings.fp8_gflops)},
                                 {"fp8_spread", ceilings.fp8_spread},
                                 {"read_gbs", ceilings.read_gbs},
                                 {"read_spread", ceilings.read_spread},
                                 {"copy_gbs", present(ceilings.copy_gbs)},
                                 {"copy_spread", ceilings.copy_spread},
                                 {"roofs", nlohmann::ordered_json::array()}};
  std::string text = ceilings_text(ceilings, layer.backend);
  // All experts active: what routing really touches is only known from a run.
  for (const std::int64_t tokens : workload.tokens) {
    Problem problem = layer.problem;
    problem.shape.tokens = tokens;
    const std::int64_t active = std::min(problem.shape.experts, problem.shape.routed_rows());
    const Roof roof = roof_of(problem, active, ceilings);
    text +=
        fmt::format("  {} {}: {:.3g} GFLOP, {} to move, at least {}, {} bound\n",
                    name_of(problem.dtype), to_string(problem.shape), useful_flops(problem) / 1e9,
                    format_bytes(static_cast<std::uint64_t>(minimum_bytes(problem, active))),
                    format_microseconds(roof.microseconds), name_of(roof.bound));
    json["roofs"].push_back({{"tokens", tokens},
                             {"dtype", name_of(problem.dtype)},
                             {"active_experts", active},
                             {"flops", useful_flops(problem)},
                             {"bytes", minimum_bytes(problem, active)},
                             {"roof_us", roof.microseconds},
                             {"bound", name_of(roof.bound)}});
  }
  write_stdout(options.json ? json.dump(2) + "\n" : text);
  return 0;
}

}  // namespace

Command add_roofline(CLI::App& app) {
  auto options = std::make_shared<RooflineOptions>();
  CLI::App* command = app.add_subcommand("roofline", "Measure the machine's ceilings");
  options->workload.add_to(*command);
  command->add_option("--samples", options->samples);
  command->add_flag("--json", options->json);
  return {command, [options] { return roofline(*options); }};
}

}  // namespace moe::cli
