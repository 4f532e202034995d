// Times the CUDA levels and their kernels with CUDA events, one JSON object a line on stdout.
//   cuda_timings [ops] [routers] [front] [SHAPE...]     SHAPE = name of kShapes; nothing = everything
// Every level is compared with the fp64 oracle on the buffers that are timed, before and after.
// cache "cold": 256 MiB are written and then read before each sample, so that L2 holds nothing of use
// and no dirty lines, whose write-back the first kernel would pay for. launch "graph": one captured
// graph between two events; "eager": forward called by a host that is idle before it.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "arguments.h"
#include "core/rng.h"
#include "core/workload.h"
#include "cuda/backend.h"
#include "cuda/check.h"
#include "cuda/ops/gemm_cublaslt.h"
#include "cuda/ops/permute.h"
#include "cuda/ops/route_front_sm90.h"
#include "cuda/ops/router.h"
#include "cuda/ops/routing.h"
#include "cuda/ops/swiglu.h"
#include "cuda/ops/tile_order.h"
#include "device_data.cuh"
#include "moe/error.h"
#include "moe/verify.h"

namespace moe::cuda {
namespace {

struct NamedShape {
  const char* name;
  Shape shape;
  std::vector<std::string> levels;
};
const std::vector<NamedShape> kShapes = {
    {"lab-2k",
     {2048, 1024, 2048, 8, 2},
     {"naive", "naive_masked", "batched", "fused", "memefficient", "grouped", "graphs"}},
    {"lab-8k",
     {8192, 1024, 2048, 8, 2},
     {"naive", "naive_masked", "batched", "fused", "memefficient", "grouped", "graphs"}},
    {"mixtral-4k", {4096, 4096, 14336, 8, 2}, {"grouped", "graphs"}},
    {"qwen3-16k", {16384, 2048, 768, 128, 8}, {"grouped", "graphs"}},
    {"lab-1", {1, 1024, 2048, 8, 2}, {"grouped", "graphs"}},
    {"lab-8", {8, 1024, 2048, 8, 2}, {"grouped", "graphs"}},
    {"lab-64", {64, 1024, 2048, 8, 2}, {"memefficient", "grouped", "graphs"}},
    {"lab-256", {256, 1024, 2048, 8, 2}, {"grouped", "graphs"}},
    {"qwen3-64", {64, 2048, 768, 128, 8}, {"grouped", "graphs"}}};

template <class... Values>
void print(fmt::format_string<Values...> format, Values&&... values) {
  std::fputs((fmt::format(format, std::forward<Values>(values)...) + "\n").c_str(), stdout);
  std::fflush(stdout);
}

__global__ void empty_kernel() {}

struct Times {
  double median_us = 0;
  double iqr_us = 0;
  int samples = 0;
};

Times summarise(std::vector<double> microseconds) {
  std::sort(microseconds.begin(), microseconds.end());
  const std::size_t n = microseconds.size();
  return {microseconds[n / 2], microseconds[n * 3 / 4] - microseconds[n / 4], static_cast<int>(n)};
}

class Graph {
 public:
  Graph(cudaStream_t stream, const std::function<void()>& queue) : stream_(stream) {
    cudaGraph_t graph = nullptr;
    MOE_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    queue();
    MOE_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
    MOE_CUDA_CHECK(cudaGraphInstantiate(&graph_, graph, 0));
    MOE_CUDA_CHECK(cudaGraphDestroy(graph));
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() { MOE_CUDA_CHECK_NOTHROW(cudaGraphExecDestroy(graph_)); }
  void launch() const { MOE_CUDA_CHECK(cudaGraphLaunch(graph_, stream_)); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t graph_ = nullptr;
};

class Timer {
 public:
  explicit Timer(cudaStream_t stream) : stream_(stream), flush_(kFlush), sink_(sizeof(unsigned)) {}

  /// One sample of `work`. Eager: the host waits for the flush first.
  double sample(const std::function<void()>& work, bool cold, bool eager) {
    if (cold) {
      MOE_CUDA_CHECK(cudaMemsetAsync(flush_.data(), 0, kFlush / 2, stream_));
      read_kernel<<<1024, 256, 0, stream_>>>(
          reinterpret_cast<const uint4*>(flush_.as<std::byte>() + kFlush / 2),
          static_cast<std::int64_t>(kFlush / 2 / sizeof(uint4)), sink_.as<unsigned>());
      MOE_CUDA_CHECK_LAUNCH("read_kernel");
    }
    if (eager) MOE_CUDA_CHECK(cudaStreamSynchronize(stream_));
    start_.record(stream_);
    work();
    end_.record(stream_);
    end_.wait();
    return end_.milliseconds_since(start_) * 1e3;
  }
  /// Queued by a host that is idle before, cold.
  Times eager(const std::function<void()>& work, int samples = 31) {
    std::vector<double> times;
    for (int i = -3; i < samples; ++i) {
      const double us = sample(work, true, true);
      if (i >= 0) times.push_back(us);
    }
    return summarise(std::move(times));
  }
  Times graph(const std::function<void()>& queue, bool cold, int samples = 31) {
    const Graph graph(stream_, queue);
    std::vector<double> times;
    for (int i = -3; i < samples; ++i) {
      const double us = sample([&] { graph.launch(); }, cold, false);
      if (i >= 0) times.push_back(us);
    }
    return summarise(std::move(times));
  }

 private:
  static constexpr std::size_t kFlush = std::size_t{512} << 20;
  cudaStream_t stream_;
  DeviceBuffer flush_;
  DeviceBuffer sink_;
  Event start_;
  Event end_;
};

/// `bytes` read and written by `queue` against a plain copy that moves as many, cold, in one run.
void time_against_copy(Timer& timer, cudaStream_t stream, const std::string& name, double bytes,
                       const std::function<void()>& queue) {
  const auto half = static_cast<std::size_t>(bytes / 2) / 256 * 256;
  const DeviceBuffer from(half);
  const DeviceBuffer to(half);
  const Times copy = timer.graph(
      [&] {
        MOE_CUDA_CHECK(
            cudaMemcpyAsync(to.data(), from.data(), half, cudaMemcpyDeviceToDevice, stream));
      },
      true);
  const Times mine = timer.graph(queue, true);
  print(R"({{"op":"{}","bytes":{},"median_us":{:.2f},"iqr_us":{:.2f},"tb_per_s":{:.3f},)"
        R"("copy_us":{:.2f},"share_of_copy":{:.3f}}})",
        name, static_cast<std::int64_t>(bytes), mine.median_us, mine.iqr_us,
        bytes / mine.median_us * 1e-6, copy.median_us, copy.median_us / mine.median_us);
}

/// What level 4's host read of the counts costs: the device is idle from the copy of expert_offsets
/// until the host has seen it and launched what comes next.
void time_host_read(Timer& timer, cudaStream_t stream, const DeviceBuffer& offsets) {
  const PinnedBuffer on_host(offsets.size());
  const auto forward = [&](bool reads) {
    return timer.eager([&, reads] {
      empty_kernel<<<1, 32, 0, stream>>>();
      if (reads) {
        MOE_CUDA_CHECK(cudaMemcpyAsync(on_host.as<void>(), offsets.data(), offsets.size(),
                                       cudaMemcpyDeviceToHost, stream));
        MOE_CUDA_CHECK(cudaStreamSynchronize(stream));
      }
      empty_kernel<<<1, 32, 0, stream>>>();
    });
  };
  const Times with = forward(true);
  const Times without = forward(false);
  print(R"({{"op":"host read of the counts","bytes":{},"with_us":{:.2f},"without_us":{:.2f}}})",
        offsets.size(), with.median_us, without.median_us);
}

/// Every router from logits to choices and rows by expert, beside the default one.
void time_routers(CudaDevice& device) {
  constexpr std::int64_t kTokens = 16384;
  constexpr std::int64_t kExperts = 256;
  constexpr std::int64_t kTopK = 8;
  constexpr const char* kRouters[] = {"softmax",
                                      "softmax,bias",
                                      "softmax,raw",
                                      "softmax,raw,groups=8/3,scale=16",
                                      "sigmoid,raw",
                                      "sigmoid,selection-bias",
                                      "sigmoid,selection-bias,groups=8/4,scale=2.5",
                                      "sqrtsoftplus,selection-bias,scale=1.5",
                                      "sparsemixer"};
  Timer timer(device.stream());
  std::vector<float> logits(kTokens * kExperts);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    logits[i] = static_cast<float>(random_normal(1, 0, i) * 1.28);
  }
  const DeviceBuffer device_logits(logits.size() * sizeof(float));
  device.copy_from_host(device_logits.data(), logits.data(), device_logits.size());
  const DeviceBuffer biases(kExperts * sizeof(float));
  for (float& value : logits) value *= 0.1F;
  device.copy_from_host(biases.data(), logits.data(), biases.size());
  const DeviceBuffer idx(kTokens * kTopK * sizeof(std::int32_t));
  const DeviceBuffer weights(kTokens * kTopK * sizeof(float));
  const DeviceBuffer offsets((kExperts + 1) * sizeof(std::int32_t));
  const DeviceBuffer dst(kTokens * kTopK * sizeof(std::int32_t));
  const DeviceBuffer counts(
      static_cast<std::size_t>(permutation_scratch(kTokens * kTopK, kExperts, device.facts())) *
      sizeof(std::int32_t));
  const Permutation permutation{offsets.as<std::int32_t>(), dst.as<std::int32_t>(),
                                counts.as<std::int32_t>()};
  const TensorView bias(biases.data(), DType::kF32, {kExperts});
  const Weights given{.router_bias = bias, .selection_bias = bias};
  for (const char* router : kRouters) {
    const RouterRule rule = RouterRule::of(parse_router(router), given);
    const auto choose = [&] {
      choose_experts(rule, device_logits.as<float>(), kTokens, kExperts, kTopK,
                     idx.as<std::int32_t>(), weights.as<float>(), device.stream());
    };
    const auto route = [&] {
      route_rows(device_logits.as<float>(), kTokens, kExperts, kTopK, idx.as<std::int32_t>(),
                 weights.as<float>(), permutation, device.facts(), device.stream(), rule);
    };
    for (const bool cold : {true, false}) {
      const double choose_us = timer.graph(choose, cold).median_us;
      const double route_us = timer.graph(route, cold).median_us;
      print(R"({{"op":"router","router":"{}","tokens":{},"experts":{},"top_k":{},"cache":"{}",)"
            R"("choose_experts_us":{:.2f},"route_rows_us":{:.2f}}})",
            router, kTokens, kExperts, kTopK, cold ? "cold" : "hot", choose_us, route_us);
    }
  }
}

/// From x to row tiles: the library's product, route_rows() and build_row_tiles() against one kernel.
void time_front(CudaDevice& device) {
  struct Case {
    std::int64_t tokens, hidden, experts, top_k;
  };
  constexpr Case kCases[] = {{4096, 1024, 8, 2},    {4096, 2048, 64, 8},   {4096, 2048, 128, 8},
                             {4096, 2880, 128, 4},  {4096, 7168, 256, 8},  {16384, 1024, 8, 2},
                             {16384, 2048, 128, 8}, {16384, 2048, 256, 8}, {16384, 7168, 256, 8}};
  constexpr int kLargestTile = 192;
  const cudaStream_t stream = device.stream();
  Timer timer(stream);
  for (const Case& c : kCases) {
    const Shape shape{c.tokens, c.hidden, 64, c.experts, c.top_k};
    const DeviceBuffer x = normal_values(c.tokens * c.hidden, 1, 1.0F, stream);
    const DeviceBuffer router = normal_values(c.experts * c.hidden, 2, 0.02F, stream);
    const auto numbers = [](std::int64_t count) {
      return DeviceBuffer(static_cast<std::size_t>(count) * sizeof(std::int32_t));
    };
    const std::int64_t most = most_row_tiles(shape.routed_rows(), c.experts, kLargestTile);
    const DeviceBuffer logits = numbers(c.tokens * c.experts);
    const DeviceBuffer idx = numbers(shape.routed_rows());
    const DeviceBuffer weights = numbers(shape.routed_rows());
    const DeviceBuffer dst = numbers(shape.routed_rows());
    const DeviceBuffer token = numbers(shape.routed_rows());
    const DeviceBuffer offsets = numbers(c.experts + 1);
    const DeviceBuffer scratch =
        numbers(std::max(permutation_scratch(shape.routed_rows(), c.experts, device.facts()),
                         RouteFront::scratch(shape, device.facts())));
    const DeviceBuffer tiles(static_cast<std::size_t>(most) * sizeof(RowTile));
    const DeviceBuffer ready = numbers(most);
    const DeviceBuffer finished = numbers(most);
    const DeviceBuffer counters = numbers(RowTiles::kCounts + RowTiles::kTickets);
    const Permutation permutation{offsets.as<std::int32_t>(), dst.as<std::int32_t>(),
                                  scratch.as<std::int32_t>()};
    const RowTiles row_tiles{.tiles = tiles.as<RowTile>(),
                             .count = counters.as<std::int32_t>(),
                             .tickets = counters.as<std::int32_t>() + RowTiles::kCounts,
                             .ready = ready.as<std::int32_t>(),
                             .row_to_token = token.as<std::int32_t>(),
                             .finished = finished.as<std::int32_t>()};
    CublasLt library;
    Matmul matmul(library, {.n = c.experts, .k = c.hidden, .in = DType::kBF16, .out = DType::kF32});
    matmul.choose_up_to(c.tokens);
    RouteFront front(shape, {}, router.data(), device.facts());
    if (!front.takes(x.data(), c.tokens)) continue;
    const auto product = [&] {
      matmul.run(x.data(), router.data(), logits.data(), c.tokens, stream);
    };
    const auto sort = [&] {
      route_rows(logits.as<float>(), c.tokens, c.experts, c.top_k, idx.as<std::int32_t>(),
                 weights.as<float>(), permutation, device.facts(), stream);
      build_row_tiles({.expert_offsets = offsets.as<std::int32_t>(),
                       .experts = c.experts,
                       .dst_row = dst.as<std::int32_t>(),
                       .routed = shape.routed_rows(),
                       .top_k = c.top_k,
                       .largest_tile = kLargestTile},
                      row_tiles, stream);
    };
    const auto chain = [&] {
      product();
      sort();
    };
    const auto one = [&] {
      front.run({.x = x.data(),
                 .tokens = c.tokens,
                 .topk_idx = idx.as<std::int32_t>(),
                 .topk_weights = weights.as<float>(),
                 .permutation = permutation,
                 .row_tiles = row_tiles,
                 .largest_tile = kLargestTile},
                stream);
    };
    print(R"({{"op":"front","tokens":{},"hidden":{},"experts":{},"top_k":{},"plan":"{}",)"
          R"("product_us":{:.2f},"logits_to_tiles_us":{:.2f},"chain_us":{:.2f},"front_us":{:.2f},)"
          R"("chain_eager_us":{:.2f},"front_eager_us":{:.2f}}})",
          c.tokens, c.hidden, c.experts, c.top_k, to_string(front.plan(c.tokens)),
          timer.graph(product, true).median_us, timer.graph(sort, true).median_us,
          timer.graph(chain, true).median_us, timer.graph(one, true).median_us,
          timer.eager(chain).median_us, timer.eager(one).median_us);
  }
}

void time_ops(CudaDevice& device) {
  const cudaStream_t stream = device.stream();
  Timer timer(stream);
  const Times empty = timer.graph([&] { empty_kernel<<<1, 32, 0, stream>>>(); }, true);
  print(R"({{"op":"empty kernel","median_us":{:.2f}}})", empty.median_us);

  constexpr std::int64_t kExperts = 256;
  constexpr std::int64_t kTopK = 8;
  constexpr std::int64_t kMostTokens = 16384;
  std::vector<float> logits(kMostTokens * kExperts);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    logits[i] = static_cast<float>(random_normal(1, 0, i));
  }
  const DeviceBuffer device_logits(logits.size() * sizeof(float));
  device.copy_from_host(device_logits.data(), logits.data(), device_logits.size());
  const DeviceBuffer idx(kMostTokens * kTopK * sizeof(std::int32_t));
  const DeviceBuffer weights(kMostTokens * kTopK * sizeof(float));
  const DeviceBuffer offsets((kExperts + 1) * sizeof(std::int32_t));
  const DeviceBuffer dst(kMostTokens * kTopK * sizeof(std::int32_t));
  const DeviceBuffer counts(
      static_cast<std::size_t>(permutation_scratch(kMostTokens * kTopK, kExperts, device.facts())) *
      sizeof(std::int32_t));
  const Permutation permutation{offsets.as<std::int32_t>(), dst.as<std::int32_t>(),
                                counts.as<std::int32_t>()};
  for (const std::int64_t tokens :
       {std::int64_t{64}, std::int64_t{256}, std::int64_t{2048}, kMostTokens}) {
    const auto top_k = [&] {
      softmax_top_k(device_logits.as<float>(), tokens, kExperts, kTopK, idx.as<std::int32_t>(),
                    weights.as<float>(), stream);
    };
    const auto sort = [&] {
      build_permutation(idx.as<std::int32_t>(), tokens * kTopK, kExperts, permutation,
                        device.facts(), stream);
    };
    for (const bool cold : {true, false}) {
      const Times first = timer.graph(top_k, cold);
      const Times second = timer.graph(sort, cold);
      const Times one = timer.graph(
          [&] {
            route_rows(device_logits.as<float>(), tokens, kExperts, kTopK, idx.as<std::int32_t>(),
                       weights.as<float>(), permutation, device.facts(), stream);
          },
          cold);
      print(R"({{"op":"routing","tokens":{},"experts":{},"top_k":{},"cache":"{}",)"
            R"("softmax_top_k_us":{:.2f},"build_permutation_us":{:.2f},"route_rows_us":{:.2f}}})",
            tokens, kExperts, kTopK, cold ? "cold" : "hot", first.median_us, second.median_us,
            one.median_us);
    }
  }

  time_host_read(timer, stream, offsets);

  struct Move {
    std::int64_t hidden, intermediate;
  };
  for (const auto& [hidden, intermediate] : {Move{2048, 768}, Move{4096, 2048}}) {
    const std::int64_t rows = kMostTokens * kTopK;
    const auto bytes_of = [](std::int64_t count) { return static_cast<std::size_t>(count) * 2; };
    const DeviceBuffer x(bytes_of(kMostTokens * hidden));
    const DeviceBuffer by_expert(bytes_of(rows * hidden));
    const DeviceBuffer gate_up(bytes_of(rows * 2 * intermediate));
    MOE_CUDA_CHECK(cudaMemsetAsync(x.data(), 0x3f, x.size(), stream));
    MOE_CUDA_CHECK(cudaMemsetAsync(gate_up.data(), 0x3f, gate_up.size(), stream));
    const double token_bytes = static_cast<double>(bytes_of(kMostTokens * hidden));
    const std::string at =
        fmt::format(" T={} H={} I={} K={}", kMostTokens, hidden, intermediate, kTopK);
    time_against_copy(timer, stream, "permute" + at, token_bytes * (1 + kTopK), [&] {
      permute_rows(x.data(), permutation.dst_row, kMostTokens, kTopK, hidden * 2, by_expert.data(),
                   stream);
    });
    time_against_copy(timer, stream, "combine" + at, token_bytes * (1 + kTopK), [&] {
      unpermute_rows(DType::kBF16, by_expert.data(), permutation.dst_row, weights.as<float>(),
                     kMostTokens, kTopK, hidden, x.data(), stream);
    });
    time_against_copy(timer, stream, "swiglu" + at,
                      3.0 * static_cast<double>(bytes_of(rows * intermediate)), [&] {
                        swiglu_rows(DType::kBF16, gate_up.data(), rows, intermediate,
                                    gate_up.data(), 2 * intermediate, stream);
                      });
  }
}

/// Two plain GEMMs with the arithmetic of the layer and one expert's weights.
struct DenseTwin {
  DenseTwin(CublasLt& library, const Problem& problem, CudaDevice& device)
      : rows(problem.shape.routed_rows()),
        x(bytes(rows * problem.shape.hidden)),
        inner(bytes(rows * 2 * problem.shape.intermediate)),
        y(bytes(rows * problem.shape.hidden)),
        weights(bytes(2 * problem.shape.intermediate * problem.shape.hidden)),
        gate_up(library, {.n = 2 * problem.shape.intermediate,
                          .k = problem.shape.hidden,
                          .in = problem.dtype,
                          .out = problem.dtype}),
        down(library, {.n = problem.shape.hidden,
                       .k = problem.shape.intermediate,
                       .in = problem.dtype,
                       .out = problem.dtype}) {
    // Normal data: on zeros the clocks, and so the rates, are higher.
    for (const DeviceBuffer* buffer : {&x, &weights}) {
      const Problem filler{{static_cast<std::int64_t>(buffer->size() / 2 / 64), 64, 1, 1, 1},
                           problem.dtype};
      device.copy_from_host(buffer->data(), make_input(filler, 5, 0).view().data,
                            static_cast<std::size_t>(filler.shape.tokens) * 128);
    }
  }
  static std::size_t bytes(std::int64_t count) { return static_cast<std::size_t>(count) * 2; }
  void queue(cudaStream_t stream) {
    gate_up.run(x.data(), weights.data(), inner.data(), rows, stream);
    down.run(inner.data(), weights.data(), y.data(), rows, stream);
  }
  std::int64_t rows;
  DeviceBuffer x, inner, y, weights;
  Matmul gate_up, down;
};

void time_shape(CudaDevice& device, const NamedShape& named) {
  const Problem problem{named.shape, DType::kBF16};
  const OwnedWeights host = make_weights(problem, 1);
  const Tensor host_x = make_input(problem, 1, 0);
  const Oracle oracle(problem, host.view(), host_x.view());
  std::vector<DeviceBuffer> buffers;
  const auto place = [&](const TensorView& tensor) {
    buffers.emplace_back(tensor.bytes());
    TensorView view = tensor;
    view.data = buffers.back().data();
    device.copy_from_host(view.data, tensor.data, tensor.bytes());
    return view;
  };
  const Weights weights{place(host.router.view()), place(host.gate.view()), place(host.up.view()),
                        place(host.down.view())};
  const TensorView x = place(host_x.view());
  const TensorView y = place(host_x.view());
  const Tensor got(y.dtype, {y.dim(0), y.dim(1)});
  const auto compare = [&] {
    device.copy_to_host(got.view().data, y.data, y.bytes());
    return oracle.compare(got.view());
  };

  const Stream stream;
  Timer timer(stream.get());
  CublasLt library;
  DenseTwin twin(library, problem, device);
  twin.queue(stream.get());
  const Graph twin_graph(stream.get(), [&] { twin.queue(stream.get()); });
  for (const std::string& name : named.levels) {
    std::optional<Layer> layer;
    try {
      layer.emplace(Layer::create({.level = name,
                                   .backend = Backend::kCuda,
                                   .problem = problem,
                                   .stream = stream.get(),
                                   .launch = Launch::kEager},
                                  weights));
      const auto forward = [&] { layer->forward(x, y); };
      MOE_CUDA_CHECK(cudaMemset(y.data, 0xff, y.bytes()));
      const double first_us = timer.sample(forward, true, true);
      const Comparison before = compare();
      const int samples = first_us > 5e4 ? 3 : 25;
      std::vector<double> mine;
      std::vector<double> hot;
      std::vector<double> dense;
      for (int i = -1; i < samples; ++i) {
        const double dense_us = timer.sample([&] { twin_graph.launch(); }, true, false);
        const double us = timer.sample(forward, true, true);
        const double hot_us = timer.sample(forward, false, true);
        if (i < 0) continue;
        mine.push_back(us);
        hot.push_back(hot_us);
        dense.push_back(dense_us);
      }
      const Comparison after = compare();
      const Times times = summarise(mine);
      const Times twin_times = summarise(dense);
      print(R"({{"shape":"{}","problem":"{}","level":"{}","launch":"eager","verified":{},)"
            R"("tolerance_used":{:.3f},"median_us":{:.1f},"iqr_us":{:.1f},"hot_us":{:.1f},)"
            R"("samples":{},"twin_us":{:.1f},"twin_iqr_us":{:.1f},"twin_fraction":{:.3f},)"
            R"("tflops":{:.1f},"first_us":{:.0f},"prepare_ms":{:.1f},"workspace_bytes":{},)"
            R"("transient_bytes":{},"prepared_bytes":{}}})",
            named.name, to_string(problem.shape), name, before.passed && after.passed,
            std::max(before.tolerance_used, after.tolerance_used), times.median_us, times.iqr_us,
            summarise(hot).median_us, times.samples, twin_times.median_us, twin_times.iqr_us,
            twin_times.median_us / times.median_us, useful_flops(problem) / times.median_us * 1e-6,
            first_us, layer->prepare_seconds() * 1e3, layer->memory().workspace,
            layer->memory().transient, layer->memory().prepared);
    } catch (const Error& error) {
      print(R"({{"shape":"{}","level":"{}","error":"{}"}})", named.name, name, error.what());
    }
  }
}

int run(const std::vector<std::string>& wanted) {
  const auto chosen = [&](const std::string& name) {
    return wanted.empty() || std::find(wanted.begin(), wanted.end(), name) != wanted.end();
  };
  CudaDevice device{LayerOptions()};
  if (!device.unavailable().empty()) {
    std::fprintf(stderr, "%s\n", device.unavailable().c_str());
    return 1;
  }
  const DeviceFacts& facts = device.facts();
  print(R"({{"device":"{}","multiprocessors":{},"l2_bytes":{},"memory_bytes":{},)"
        R"("driver":{},"runtime":{},"library":"{}"}})",
        facts.name, facts.multiprocessors, facts.l2_bytes, facts.memory_bytes, facts.driver_version,
        facts.runtime_version, cublaslt_version());
  if (chosen("ops")) time_ops(device);
  if (chosen("routers")) time_routers(device);
  if (chosen("front")) time_front(device);
  for (const NamedShape& shape : kShapes) {
    if (chosen(shape.name)) time_shape(device, shape);
  }
  return 0;
}

}  // namespace
}  // namespace moe::cuda

int main(int argc, char** argv) {
  try {
    return moe::cuda::run(moe::Arguments(argc, argv).words());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
