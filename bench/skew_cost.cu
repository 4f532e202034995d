// What skewed routing costs level 8: the same layer and rows under routes that are drawn skewed and
// uniform, one JSON object a line.
//   skew_cost [--samples N] [--tokens LIST] [--skew S] [--tune SECONDS] [--kernels] [MODEL...]
// Routes are given (--router given), so that both have exactly T·K rows and neither has a router. Both are
// replayed graphs of whole forwards and take turns; before each sample 256 MiB are written and then read:
// L2 is cold and clean. With --tune a second layer, tuned under the skew, is timed on the skewed routes, too,
// and its plan and all candidates printed; with --kernels the time of each kernel. The first tokens' outputs
// under skew are compared with level 3.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "core/statistics.h"
#include "core/workload.h"
#include "cuda/backend.h"
#include "cuda/check.h"
#include "device_data.cuh"
#include "device_weights.cuh"
#include "model_program.cuh"
#include "moe/layer.h"
#include "timing.cuh"

namespace moe::cuda {
namespace {

struct Model {
  const char* name;
  std::int64_t hidden, intermediate, experts, top_k;
};
constexpr Model kModels[] = {{"qwen3-30b-a3b", 2048, 768, 128, 8},
                             {"olmoe-1b-7b", 2048, 1024, 64, 8},
                             {"mixtral-8x7b", 4096, 14336, 8, 2},
                             {"gpt-oss-120b", 2880, 2880, 128, 4},
                             {"lab", 1024, 2048, 8, 2}};

/// Routes on the device.
struct PlacedRoutes {
  PlacedRoutes(const Shape& shape, const std::string& skew)
      : trace(draw_routes(shape, 9, Skew::parse(skew))),
        experts(trace.indices.size() * sizeof(std::int32_t)),
        weights(trace.weights.size() * sizeof(float)) {
    MOE_CUDA_CHECK(
        cudaMemcpy(experts.data(), trace.indices.data(), experts.size(), cudaMemcpyHostToDevice));
    MOE_CUDA_CHECK(
        cudaMemcpy(weights.data(), trace.weights.data(), weights.size(), cudaMemcpyHostToDevice));
  }
  [[nodiscard]] Routes view() const { return {experts.as<std::int32_t>(), weights.as<float>()}; }
  /// Of the busiest expert over the mean.
  [[nodiscard]] double peak() const {
    std::vector<double> rows(static_cast<std::size_t>(trace.experts));
    for (const std::int32_t expert : trace.indices) ++rows[static_cast<std::size_t>(expert)];
    return *std::max_element(rows.begin(), rows.end()) * static_cast<double>(rows.size()) /
           static_cast<double>(trace.indices.size());
  }
  RouteTrace trace;
  DeviceBuffer experts;
  DeviceBuffer weights;
};

struct Options {
  int samples = 25;
  std::string skew = "zipf:1";
  double tune_seconds = 0;
  bool kernels = false;
  std::vector<std::int64_t> tokens = {4096, 16384};
};

void time_model(const Model& model, std::int64_t tokens, const Options& options) {
  const int samples = options.samples;
  const std::string& skew = options.skew;
  Problem problem{{tokens, model.hidden, model.intermediate, model.experts, model.top_k},
                  DType::kBF16};
  problem.router = parse_router("given");
  const Stream stream;
  const MadeWeights weights(problem, stream.get());
  const DeviceBuffer x_data = normal_values(tokens * model.hidden, 5, 1.0F, stream.get());
  const DeviceBuffer y_data(x_data.size());
  const TensorView x(x_data.data(), DType::kBF16, {tokens, model.hidden});
  const TensorView y(y_data.data(), DType::kBF16, {tokens, model.hidden});
  const PlacedRoutes uniform(problem.shape, "uniform");
  const PlacedRoutes skewed(problem.shape, skew);
  const auto create = [&](const char* level, const Problem& of, double seconds = 0) {
    return Layer::create({.level = level,
                          .backend = Backend::kCuda,
                          .problem = of,
                          .tune_seconds = seconds,
                          .tune_cache = "off",
                          .tune_skew = seconds > 0 ? skew : "uniform",
                          .stream = stream.get()},
                         weights.of(of));
  };
  const std::int64_t checked = std::min<std::int64_t>(tokens, 128);
  const DeviceBuffer expected(static_cast<std::size_t>(checked * model.hidden) * 2);
  {
    Problem few = problem;
    few.shape.tokens = checked;
    create("memefficient", few)
        .forward(x.first_rows(checked),
                 TensorView(expected.data(), DType::kBF16, {checked, model.hidden}), skewed.view());
    MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  }
  Layer layer = create("persistent", problem);
  const Graph even(stream.get(), [&] { layer.forward(x, y, uniform.view()); });
  const Graph uneven(stream.get(), [&] { layer.forward(x, y, skewed.view()); });
  Layer tuned = create("persistent", problem, options.tune_seconds);
  const Graph best(stream.get(), [&] { tuned.forward(x, y, skewed.view()); });
  Timer timer(stream.get());
  std::vector<double> uniform_us;
  std::vector<double> skewed_us;
  std::vector<double> tuned_us;
  for (int i = -3; i < samples; ++i) {
    const double first = timer.microseconds([&] { even.launch(stream.get()); });
    const double second = timer.microseconds([&] { uneven.launch(stream.get()); });
    const double third = timer.microseconds([&] { best.launch(stream.get()); });
    if (i < 0) continue;
    uniform_us.push_back(first);
    skewed_us.push_back(second);
    tuned_us.push_back(third);
  }
  const DeviceBuffer sums(2 * sizeof(double));
  const double error = relative_error(y_data.as<__nv_bfloat16>(), expected.as<__nv_bfloat16>(),
                                      checked * model.hidden, sums.as<double>(), stream.get());
  constexpr double kTolerance = 1e-2;  // two bf16 roundings of the inner values, each way
  const MedianRatio ratio = median_ratio(skewed_us, uniform_us);
  fmt::print(
      "{{\"shape\":\"{}\",\"problem\":\"{}\",\"skew\":\"{}\",\"level\":\"persistent\","
      "\"verified\":{},\"error\":{:.2e},\"samples\":{},\"busiest_over_mean\":{:.2f},"
      "\"uniform_us\":{:.1f},\"skewed_us\":{:.1f},\"ratio\":{:.4f},\"ratio_95\":[{:.4f},{:.4f}]}}"
      "\n",
      model.name, to_string(problem.shape), skew, error <= kTolerance, error, samples,
      skewed.peak(), median(uniform_us), median(skewed_us), ratio.ratio, ratio.low, ratio.high);
  if (options.kernels) {
    for (const auto& [graph, name] : {std::pair{&even, "uniform"}, {&uneven, skew.c_str()}}) {
      timer.flush();
      fmt::print("{{\"shape\":\"{}\",\"tokens\":{},\"routing\":\"{}\",\"kernels_us\":\"{}\"}}\n",
                 model.name, tokens, name,
                 kernel_times([&] { graph->launch(stream.get()); }, stream.get()));
    }
  }
  if (options.tune_seconds > 0) {
    const std::vector<TunedChoice> choices = tuned.tuned();
    fmt::print("{{\"shape\":\"{}\",\"tokens\":{},\"tuned_us\":{:.1f},\"plan\":\"{}\"}}\n",
               model.name, tokens, median(tuned_us), choices.front().chosen);
    for (const TimedCandidate& candidate : choices.front().timings) {
      fmt::print(
          "{{\"shape\":\"{}\",\"tokens\":{},\"candidate\":\"{}\",\"median_us\":{:.1f},\"rounds\":{}"
          "}}\n",
          model.name, tokens, candidate.name, candidate.median_us, candidate.rounds);
    }
  }
  std::fflush(stdout);
}

void run(Arguments arguments) {
  Options options;
  options.samples = static_cast<int>(arguments.number("--samples", options.samples));
  options.tokens = arguments.numbers("--tokens", options.tokens);
  options.skew = arguments.text("--skew", options.skew);
  options.tune_seconds = static_cast<double>(arguments.number("--tune", 0, 0));
  options.kernels = arguments.flag("--kernels");
  for_wanted_models(kModels, arguments.words(), [&](const Model& model) {
    for (const std::int64_t count : options.tokens) time_model(model, count, options);
  });
}

}  // namespace
}  // namespace moe::cuda

int main(int argc, char** argv) {
  return moe::cuda::run_program(argc, argv, moe::cuda::run);
}
