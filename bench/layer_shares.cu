// CUDA levels on the sizes of all presets against their dense twin, one JSON object a line.
//   layer_shares [--samples N] [--levels A,B] [--tokens N,M] [--eager] [--kernels] [SHAPE...]
// Weights and input are normal numbers made on the device, so that layers of tens of gigabytes are ready
// in a second. The first and the last tokens of every output are compared with level 3 on the same
// weights (which the tests compare with the fp64 oracle). Times are of one replayed graph of the whole
// forward, routing included, taken in turns with the twin: two plain library GEMMs, [T·K,H]x[H,2I] and
// [T·K,I]x[I,H]; levels that no graph can hold are called by a host that is idle before, and with --eager
// all are, in a row of their own; host_us is what the call takes. Before each sample 256 MiB are written
// and then read: L2 is cold and clean.
// --kernels adds the time of each kernel (CUPTI; recorded in runs of their own).
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cli/presets.h"
#include "core/check.h"
#include "cuda/backend.h"
#include "cuda/check.h"
#include "cuda/ops/gemm_cublaslt.h"
#include "device_data.cuh"
#include "model_program.cuh"
#include "moe/layer.h"
#include "timing.cuh"

namespace moe::cuda {
namespace {

struct Model {
  std::string name;
  std::int64_t hidden, intermediate, experts, top_k;
};

/// The sizes of all presets, each once, and sizes that are off every tile. Blocks are left out: a plain layer.
std::vector<Model> all_models() {
  std::vector<Model> models;
  for (const cli::Preset& preset : cli::list_presets()) {
    const Shape& shape = preset.problem.shape;
    const bool known = std::any_of(models.begin(), models.end(), [&](const Model& model) {
      return model.hidden == shape.hidden && model.intermediate == shape.intermediate &&
             model.experts == shape.experts && model.top_k == shape.top_k;
    });
    if (!known) {
      models.push_back({preset.name, shape.hidden, shape.intermediate, shape.experts, shape.top_k});
    }
  }
  models.push_back({"off-block", 1000, 360, 12, 3});
  return models;
}

/// Two library GEMMs with the arithmetic of the layer and one expert's weights.
struct DenseTwin {
  DenseTwin(CublasLt& library, const Shape& shape, cudaStream_t stream)
      : rows(shape.routed_rows()),
        x(normal_values(rows * shape.hidden, 11, 1.0F, stream)),
        inner(normal_values(rows * 2 * shape.intermediate, 12, 1.0F, stream)),
        y(static_cast<std::size_t>(rows * shape.hidden) * 2),
        weights(normal_values(2 * shape.intermediate * shape.hidden, 13, 0.02F, stream)),
        gate_up(library, {.n = 2 * shape.intermediate,
                          .k = shape.hidden,
                          .in = DType::kBF16,
                          .out = DType::kBF16}),
        down(
            library,
            {.n = shape.hidden, .k = shape.intermediate, .in = DType::kBF16, .out = DType::kBF16}) {
  }
  void queue(cudaStream_t stream) {
    gate_up.run(x.data(), weights.data(), inner.data(), rows, stream);
    down.run(inner.data(), weights.data(), y.data(), rows, stream);
  }
  std::int64_t rows;
  DeviceBuffer x, inner, y, weights;
  Matmul gate_up, down;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Options {
  int samples = 15;
  bool kernels = false;
  bool eager = false;
  std::vector<std::int64_t> tokens = {4096, 16384};
  std::vector<std::string> levels = {"persistent"};
};

void time_model(const Model& model, std::int64_t tokens, const Options& options) {
  const int samples = options.samples;
  const Problem problem{{tokens, model.hidden, model.intermediate, model.experts, model.top_k},
                        DType::kBF16};
  const Shape& shape = problem.shape;
  const Stream stream;
  const auto scale = [](std::int64_t depth) { return 1.0F / std::sqrt(static_cast<float>(depth)); };
  const std::int64_t matrix = shape.experts * shape.hidden * shape.intermediate;
  const DeviceBuffer router =
      normal_values(shape.experts * shape.hidden, 1, scale(shape.hidden), stream.get());
  const DeviceBuffer gate = normal_values(matrix, 2, scale(shape.hidden), stream.get());
  const DeviceBuffer up = normal_values(matrix, 3, scale(shape.hidden), stream.get());
  const DeviceBuffer down = normal_values(matrix, 4, scale(shape.intermediate), stream.get());
  const DeviceBuffer x_data = normal_values(tokens * shape.hidden, 5, 1.0F, stream.get());
  const DeviceBuffer y_data(x_data.size());
  const auto view = [](const DeviceBuffer& data, std::initializer_list<std::int64_t> sizes) {
    return TensorView(data.data(), DType::kBF16, sizes);
  };
  const Weights weights{view(router, {shape.experts, shape.hidden}),
                        view(gate, {shape.experts, shape.intermediate, shape.hidden}),
                        view(up, {shape.experts, shape.intermediate, shape.hidden}),
                        view(down, {shape.experts, shape.hidden, shape.intermediate})};
  const TensorView x = view(x_data, {tokens, shape.hidden});
  const TensorView y = view(y_data, {tokens, shape.hidden});

  // Reference rows: the first and the last tokens.
  const std::int64_t checked = std::min<std::int64_t>(tokens, 128);
  const DeviceBuffer expected(2 * static_cast<std::size_t>(checked * shape.hidden) * 2);
  const std::int64_t starts[2] = {0, tokens - checked};
  const auto rows_of = [&](const TensorView& all, std::int64_t first) {
    return TensorView(all.as<std::uint16_t>() + first * shape.hidden, DType::kBF16,
                      {checked, shape.hidden});
  };
  {
    Problem few = problem;
    few.shape.tokens = checked;
    Layer reference = Layer::create({.level = "memefficient",
                                     .backend = Backend::kCuda,
                                     .problem = few,
                                     .stream = stream.get()},
                                    weights);
    for (int part = 0; part < 2; ++part) {
      reference.forward(rows_of(x, starts[part]),
                        TensorView(expected.as<std::uint16_t>() + part * checked * shape.hidden,
                                   DType::kBF16, {checked, shape.hidden}));
    }
    MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  }
  const DeviceBuffer sums(2 * sizeof(double));
  const auto error = [&] {
    double worst = 0;
    for (int part = 0; part < 2; ++part) {
      const double e =
          relative_error(static_cast<const __nv_bfloat16*>(rows_of(y, starts[part]).data),
                         expected.as<__nv_bfloat16>() + part * checked * shape.hidden,
                         checked * shape.hidden, sums.as<double>(), stream.get());
      if (!(e <= worst)) worst = e;  // NaN stays
    }
    return worst;
  };

  CublasLt library;
  DenseTwin twin(library, shape, stream.get());
  twin.queue(stream.get());
  MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  const Graph twin_graph(stream.get(), [&] { twin.queue(stream.get()); });
  Timer timer(stream.get());
  for (const std::string& name : options.levels) {
    try {
      Layer layer = Layer::create({.level = name,
                                   .backend = Backend::kCuda,
                                   .problem = problem,
                                   .stream = stream.get(),
                                   .launch = Launch::kEager},  // graphs are recorded here
                                  weights);
      MOE_CUDA_CHECK(cudaMemsetAsync(y.data, 0xff, y.bytes(), stream.get()));
      layer.forward(x, y);
      const double error_before = error();
      std::unique_ptr<Graph> graph;
      // Levels 4 and 6 read the experts' row counts on the host: no graph holds them.
      if (layer.level().number == 5 || layer.level().number >= 7) {
        graph = std::make_unique<Graph>(stream.get(), [&] { layer.forward(x, y); });
      }
      const auto eager = [&] { layer.forward(x, y); };
      const auto replay = [&] { graph->launch(stream.get()); };
      const auto time = [&](const char* launch, const std::function<void()>& forward) {
        const bool host_idle = launch == std::string("eager");
        std::vector<double> mine;
        std::vector<double> dense;
        std::vector<double> shares;
        std::vector<double> host;
        for (int i = -2; i < samples; ++i) {
          const double before = timer.microseconds([&] { twin_graph.launch(stream.get()); });
          double host_us = 0;
          const double us = timer.microseconds(
              [&] {
                const auto start = std::chrono::steady_clock::now();
                forward();
                host_us = std::chrono::duration<double, std::micro>(
                              std::chrono::steady_clock::now() - start)
                              .count();
              },
              host_idle);
          if (i < 0) continue;
          mine.push_back(us);
          dense.push_back(before);
          shares.push_back(before / us);
          host.push_back(host_us);
        }
        const double error_after = error();
        std::string plan = layer.plan();
        std::replace(plan.begin(), plan.end(), '\n', ' ');
        constexpr double kTolerance = 1e-2;  // two bf16 roundings of the inner values, each way
        fmt::print(
            "{{\"shape\":\"{}\",\"problem\":\"{}\",\"level\":\"{}\",\"launch\":\"{}\","
            "\"verified\":{},\"error\":{:.2e},\"median_us\":{:.1f},\"twin_us\":{:.1f},"
            "\"twin_share\":{:.4f},\"host_us\":{:.1f},\"samples\":{},\"tflops\":{:.1f},"
            "\"prepare_ms\":{:.1f},\"plan\":\"{}\"}}\n",
            model.name, to_string(shape), name, launch,
            error_before <= kTolerance && error_after <= kTolerance,
            std::max(error_before, error_after), median(mine), median(dense), median(shares),
            median(host), samples, useful_flops({.shape = shape}) / median(mine) * 1e-6,
            layer.prepare_seconds() * 1e3, plan);
      };
      if (graph != nullptr) time("graph", replay);
      if (graph == nullptr || options.eager) time("eager", eager);
      if (options.kernels) {
        timer.flush();
        fmt::print(
            "{{\"shape\":\"{}\",\"tokens\":{},\"level\":\"{}\",\"kernels_us\":\"{}\"}}\n",
            model.name, tokens, name,
            kernel_times(graph != nullptr ? std::function<void()>(replay) : eager, stream.get()));
      }
    } catch (const Error& error) {
      fmt::print("{{\"shape\":\"{}\",\"level\":\"{}\",\"error\":\"{}\"}}\n", model.name, name,
                 error.what());
    }
    std::fflush(stdout);
  }
}

void run(Arguments arguments) {
  Options options;
  options.samples = static_cast<int>(arguments.number("--samples", options.samples));
  options.tokens = arguments.numbers("--tokens", options.tokens);
  options.levels = arguments.list("--levels", options.levels);
  options.eager = arguments.flag("--eager");
  options.kernels = arguments.flag("--kernels");
  for_wanted_models(all_models(), arguments.words(), [&](const Model& model) {
    for (const std::int64_t count : options.tokens) {
      try {
        time_model(model, count, options);
      } catch (const Error& error) {  // weights that do not fit, say
        fmt::print("{{\"shape\":\"{}\",\"tokens\":{},\"error\":\"{}\"}}\n", model.name, count,
                   error.what());
      }
    }
  });
}

}  // namespace
}  // namespace moe::cuda

int main(int argc, char** argv) {
  return moe::cuda::run_program(argc, argv, moe::cuda::run);
}
