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

int roofline(const RooflineOptions& options) {
  const Workload workload = resolve(options.workload);
  const LayerOptions& layer = workload.layer;
  if (layer.backend != Backend::kCpu) {
    fail(ErrorCode::kUnsupported, "roofline has no probes for {}", name_of(layer.backend));
  }
  const auto samples =
      static_cast<int>(parse_integer("--samples", options.samples, 1, kMostSamples));
  const Ceilings ceilings = measure_ceilings(layer.isa, layer.threads, samples);

  nlohmann::ordered_json json = {
      {"isa", ceilings.isa},
      {"threads", ceilings.threads},
      {"samples", ceilings.samples},
      {"fp32_gflops", ceilings.fp32_gflops},
      {"fp32_spread", ceilings.fp32_spread},
      {"bf16_gflops", ceilings.bf16_gflops ? nlohmann::ordered_json(*ceilings.bf16_gflops)
                                           : nlohmann::ordered_json(nullptr)},
      {"read_gbs", ceilings.read_gbs},
      {"read_spread", ceilings.read_spread},
      {"roofs", nlohmann::ordered_json::array()}};
  const auto spread = [](double value) { return fmt::format("IQR {:.1f} %", 100 * value); };
  std::string text = fmt::format(
      "{}, {} threads, {} samples, medians\n"
      "  fp32 multiply-add  {:8.1f} GFLOP/s  {}\n",
      ceilings.isa, ceilings.threads, ceilings.samples, ceilings.fp32_gflops,
      spread(ceilings.fp32_spread));
  if (ceilings.bf16_gflops) {
    text += fmt::format("  bf16 dot product   {:8.1f} GFLOP/s  {}\n", *ceilings.bf16_gflops,
                        spread(ceilings.bf16_spread));
  } else {
    text += "  bf16 dot product   none in this instruction set; the fp32 peak counts\n";
  }
  text += fmt::format("  memory read        {:8.1f} GB/s     {}\n\n", ceilings.read_gbs,
                      spread(ceilings.read_spread));

  // All experts active: what routing really touches is only known from a run.
  for (const std::int64_t tokens : workload.tokens) {
    Problem problem = layer.problem;
    problem.shape.tokens = tokens;
    const std::int64_t active = std::min(problem.shape.experts, problem.shape.routed_rows());
    const Roof roof = roof_of(problem, active, ceilings);
    text += fmt::format("  {} {}: {:.3g} GFLOP, {} to move, at least {}, {} bound\n",
                        name_of(problem.dtype), to_string(problem.shape),
                        useful_flops(problem.shape) / 1e9,
                        format_bytes(static_cast<std::uint64_t>(minimum_bytes(problem, active))),
                        format_microseconds(roof.microseconds), name_of(roof.bound));
    json["roofs"].push_back({{"tokens", tokens},
                             {"dtype", name_of(problem.dtype)},
                             {"active_experts", active},
                             {"flops", useful_flops(problem.shape)},
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
