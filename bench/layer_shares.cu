// CUDA levels on the sizes of all presets against their dense twin, one JSON object a line.
//   layer_shares [--samples N] [--levels A,B] [--tokens N,M] [--eager] [--kernels] [--untuned] [SHAPE...]
// Weights and input are normal numbers made on the device, so that layers of tens of gigabytes are ready
// in a second. The first and the last tokens of every output are compared with level 3 on the same
// weights (which the tests compare with the fp64 oracle). Times are of one replayed graph of the whole
// forward, routing included. The levels and the twin, two plain library GEMMs, [T·K,H]x[H,2I] and
// [T·K,I]x[I,H], take turns: each round has a sample of each. Levels that do not fit beside the others have
// rounds of their own, with the twin. Levels that no graph can hold are called by a host that is idle before,
// and with --eager all are, in a row of their own; host_us is what the call takes. over_previous is the time of
// the level named before over this one's, in the same rounds, with its 95 % interval. Before each sample
// 256 MiB are written and then read: L2 is cold and clean. Three inputs, with routes of their own, take turns from
// round to round; outputs of all are compared, before and after the timing.
// --untuned: levels take what their rules choose.
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
#include "core/home_path.h"
#include "core/statistics.h"
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

constexpr int kInputs = 3;

/// The larger error; NaN, once there, stays.
double worse(double before, double now) {
  return std::isnan(before) || now <= before ? before : now;
}

/// A level with its graph, where one can hold it, and what was measured of it.
struct Contestant {
  std::string name;
  Layer layer;
  std::unique_ptr<Graph> graph = nullptr;
  double error = 0;  // the largest; NaN stays

  struct Series {
    const char* launch;
    std::vector<double> us = {};
    std::vector<double> shares = {};  // of the twin, round by round
    std::vector<double> host = {};
  };
  std::vector<Series> series = {};

  void forward(bool replays, const TensorView& x, const TensorView& y, cudaStream_t stream) {
    if (replays) {
      graph->launch(stream);
    } else {
      layer.forward(x, y);
    }
  }
  void note_error(double one) { error = worse(error, one); }
};

struct Options {
  int samples = 15;
  bool kernels = false;
  bool eager = false;
  bool untuned = false;
  std::vector<std::int64_t> tokens = {4096, 16384};
  std::vector<std::string> levels = {"persistent"};
};

/// A row for each way in which the level was launched.
void print_rows(const Model& model, const Shape& shape, const Contestant& one,
                const Contestant* previous, const std::vector<double>& twin_us) {
  std::string plan = with_home_as_tilde(one.layer.plan());
  std::replace(plan.begin(), plan.end(), '\n', ' ');
  constexpr double kTolerance = 1e-2;  // two bf16 roundings of the inner values, each way
  for (const Contestant::Series& series : one.series) {
    std::string over_previous;
    if (previous != nullptr) {
      const MedianRatio gain = median_ratio(previous->series.front().us, series.us);
      over_previous = fmt::format(
          "\"previous\":\"{}\",\"over_previous\":{:.4f},\"over_previous_95\":[{:.4f},{:.4f}],",
          previous->name, gain.ratio, gain.low, gain.high);
    }
    fmt::print(
        "{{\"shape\":\"{}\",\"problem\":\"{}\",\"level\":\"{}\",\"launch\":\"{}\","
        "\"verified\":{},\"error\":{:.2e},\"median_us\":{:.1f},\"quartiles_us\":[{:.1f},{:.1f}],"
        "\"twin_us\":{:.1f},"
        "\"twin_share\":{:.4f},{}\"host_us\":{:.1f},\"samples\":{},\"tflops\":{:.1f},"
        "\"prepare_ms\":{:.1f},\"plan\":\"{}\"}}\n",
        model.name, to_string(shape), one.name, series.launch, one.error <= kTolerance, one.error,
        median(series.us), quantile(series.us, 0.25), quantile(series.us, 0.75), median(twin_us),
        median(series.shares), over_previous, median(series.host), series.us.size(),
        useful_flops({.shape = shape}) / median(series.us) * 1e-6,
        one.layer.prepare_seconds() * 1e3, plan);
  }
}

void print_error(const Model& model, std::int64_t tokens, const std::string& level,
                 const Error& failure) {
  fmt::print("{{\"shape\":\"{}\",\"tokens\":{},\"level\":\"{}\",\"error\":\"{}\"}}\n", model.name,
             tokens, level, failure.what());
  std::fflush(stdout);
}

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
  std::vector<DeviceBuffer> inputs;
  for (int i = 0; i < kInputs; ++i) {
    inputs.push_back(normal_values(tokens * shape.hidden, 5 + 16 * i, 1.0F, stream.get()));
  }
  const DeviceBuffer x_data(inputs.front().size());
  const DeviceBuffer y_data(x_data.size());
  const auto load = [&](int input) {
    MOE_CUDA_CHECK(cudaMemcpyAsync(x_data.data(), inputs[static_cast<std::size_t>(input)].data(),
                                   x_data.size(), cudaMemcpyDeviceToDevice, stream.get()));
  };
  const auto view = [](const DeviceBuffer& data, std::initializer_list<std::int64_t> sizes) {
    return TensorView(data.data(), DType::kBF16, sizes);
  };
  const Weights weights{view(router, {shape.experts, shape.hidden}),
                        view(gate, {shape.experts, shape.intermediate, shape.hidden}),
                        view(up, {shape.experts, shape.intermediate, shape.hidden}),
                        view(down, {shape.experts, shape.hidden, shape.intermediate})};
  const TensorView x = view(x_data, {tokens, shape.hidden});
  const TensorView y = view(y_data, {tokens, shape.hidden});

  // Reference rows: the first and the last tokens of each input.
  const std::int64_t checked = std::min<std::int64_t>(tokens, 128);
  const DeviceBuffer expected(kInputs * 2 * static_cast<std::size_t>(checked * shape.hidden) * 2);
  const std::int64_t starts[2] = {0, tokens - checked};
  const auto expected_rows = [&](int input, int part) {
    return expected.as<__nv_bfloat16>() + (input * 2 + part) * checked * shape.hidden;
  };
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
    for (int input = 0; input < kInputs; ++input) {
      load(input);
      for (int part = 0; part < 2; ++part) {
        reference.forward(
            rows_of(x, starts[part]),
            TensorView(expected_rows(input, part), DType::kBF16, {checked, shape.hidden}));
      }
    }
    MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  }
  const DeviceBuffer sums(2 * sizeof(double));
  const auto error = [&](int input) {
    double worst = 0;
    for (int part = 0; part < 2; ++part) {
      const double e = relative_error(
          static_cast<const __nv_bfloat16*>(rows_of(y, starts[part]).data),
          expected_rows(input, part), checked * shape.hidden, sums.as<double>(), stream.get());
      worst = worse(worst, e);
    }
    return worst;
  };

  CublasLt library;
  DenseTwin twin(library, shape, stream.get());
  twin.queue(stream.get());
  MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  const Graph twin_graph(stream.get(), [&] { twin.queue(stream.get()); });
  Timer timer(stream.get());
  const auto checked_forwards = [&](Contestant& one) {
    for (int input = 0; input < kInputs; ++input) {
      load(input);
      MOE_CUDA_CHECK(cudaMemsetAsync(y.data, 0xff, y.bytes(), stream.get()));
      one.forward(one.graph != nullptr, x, y, stream.get());
      one.note_error(error(input));
    }
  };
  const auto add = [&](std::vector<Contestant>& to, const std::string& name) {
    Contestant one{.name = name,
                   .layer = Layer::create({.level = name,
                                           .backend = Backend::kCuda,
                                           .problem = problem,
                                           .tune_seconds = options.untuned ? 0.0 : 5.0,
                                           .tune_cache = options.untuned ? "off" : "",
                                           .stream = stream.get(),
                                           .launch = Launch::kEager},  // graphs are recorded here
                                          weights)};
    checked_forwards(one);
    // Levels 4 and 6 read the experts' row counts on the host: no graph holds them.
    if (one.layer.level().number == 5 || one.layer.level().number >= 7) {
      one.graph = std::make_unique<Graph>(stream.get(), [&] { one.layer.forward(x, y); });
      one.series.push_back({.launch = "graph"});
    }
    if (one.graph == nullptr || options.eager) one.series.push_back({.launch = "eager"});
    to.push_back(std::move(one));
  };
  std::vector<double> twin_us;
  const auto race = [&](std::vector<Contestant>& contestants) {
    for (int i = -2; i < samples; ++i) {
      load((i + kInputs) % kInputs);
      const double dense = timer.microseconds([&] { twin_graph.launch(stream.get()); });
      twin_us.push_back(dense);
      for (Contestant& one : contestants) {
        for (Contestant::Series& series : one.series) {
          const bool replays = series.launch == std::string("graph");
          double host_us = 0;
          const double us = timer.microseconds(
              [&] {
                const auto start = std::chrono::steady_clock::now();
                one.forward(replays, x, y, stream.get());
                host_us = std::chrono::duration<double, std::micro>(
                              std::chrono::steady_clock::now() - start)
                              .count();
              },
              !replays);
          if (i < 0) continue;
          series.us.push_back(us);
          series.shares.push_back(dense / us);
          series.host.push_back(host_us);
        }
      }
      if (i < 0) twin_us.clear();
    }
    for (Contestant& one : contestants) checked_forwards(one);
    const Contestant* previous = nullptr;
    for (Contestant& one : contestants) {
      print_rows(model, shape, one, previous, twin_us);
      if (options.kernels) {
        timer.flush();
        const auto forward = [&] { one.forward(one.graph != nullptr, x, y, stream.get()); };
        fmt::print("{{\"shape\":\"{}\",\"tokens\":{},\"level\":\"{}\",\"kernels_us\":\"{}\"}}\n",
                   model.name, tokens, one.name, kernel_times(forward, stream.get()));
      }
      previous = &one;
    }
    std::fflush(stdout);
    twin_us.clear();
  };

  std::vector<std::string> alone;
  {
    std::vector<Contestant> together;
    for (const std::string& name : options.levels) {
      try {
        add(together, name);
      } catch (const Error& failure) {
        if (failure.code() == ErrorCode::kOutOfMemory && !together.empty()) {
          alone.push_back(name);
        } else {
          print_error(model, tokens, name, failure);
        }
      }
    }
    race(together);
  }
  for (const std::string& name : alone) {
    try {
      std::vector<Contestant> one;
      add(one, name);
      race(one);
    } catch (const Error& failure) {
      print_error(model, tokens, name, failure);
    }
  }
}

void run(Arguments arguments) {
  Options options;
  options.samples = static_cast<int>(arguments.number("--samples", options.samples));
  options.tokens = arguments.numbers("--tokens", options.tokens);
  options.levels = arguments.list("--levels", options.levels);
  options.untuned = arguments.flag("--untuned");
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
