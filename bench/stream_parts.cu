// Where level 9's time goes: graphs of its first kernel, of its first two and so on, one JSON object a line.
//   stream_parts [--samples N] [--tokens LIST] [SHAPE...]
// A shape whose name ends in +block has its model's router, activation, biases and shared expert; without
// it the layer is plain. Weights and input are normal numbers made on the device, biases are zero. Times are
// of one replayed graph, L2 cold and clean, in turns: the difference of two is what a kernel adds. `floor_us`
// is bytes of the active experts' weights at the measured read rate and an empty kernel. Values are the
// tests' business; the output of each shape is only compared with that of level 3 on the same weights.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/expert_set.h"
#include "core/statistics.h"
#include "core/weight_tensors.h"
#include "cuda/backend.h"
#include "cuda/check.h"
#include "cuda/graph.h"
#include "cuda/ops/permute.h"
#include "cuda/ops/stream_experts.h"
#include "cuda/ops/stream_router.h"
#include "cuda/ops/stream_token.h"
#include "cuda/stopwatch.h"
#include "device_data.cuh"
#include "model_program.cuh"
#include "moe/layer.h"

namespace moe::cuda {
namespace {

struct Model {
  const char* name;
  std::int64_t hidden, intermediate, experts, top_k;
  const char* block = "";
};
constexpr Model kModels[] = {
    {"qwen3-30b-a3b", 2048, 768, 128, 8},
    {"olmoe-1b-7b", 2048, 1024, 64, 8},
    {"olmoe-1b-7b+block", 2048, 1024, 64, 8, "--router softmax,raw"},
    {"gpt-oss-120b", 2880, 2880, 128, 4},
    {"gpt-oss-120b+block", 2880, 2880, 128, 4,
     "--router softmax,bias --activation swiglu,alpha=1.702,limit=7,up=1 --expert-bias"},
    {"mixtral-8x7b", 4096, 14336, 8, 2},
    {"deepseek-v3", 7168, 2048, 256, 8},
    {"deepseek-v3+block", 7168, 2048, 256, 8,
     "--router sigmoid,selection-bias,groups=8/4,scale=2.5 --shared 2048"},
    {"llama4-scout", 5120, 8192, 16, 1},
    {"llama4-scout+block", 5120, 8192, 16, 1, "--router sigmoid,raw,on-input --shared 8192"},
    {"qwen3-next-80b", 2048, 512, 512, 10},
    {"qwen3-next-80b+block", 2048, 512, 512, 10, "--shared 512,switch"},
    {"off-block", 1000, 360, 12, 3}};

/// The kernels of a forward, in order.
struct Part {
  std::string name;
  std::function<void()> queue;
};

class StreamedLayer {
 public:
  StreamedLayer(CudaDevice& device, Stopwatch& stopwatch, const Model& model, std::int64_t tokens)
      : device_(device), stopwatch_(stopwatch), model_(model), tokens_(tokens) {
    problem_ = {.shape = {tokens, model.hidden, model.intermediate, model.experts, model.top_k},
                .dtype = DType::kBF16};
    set_block_options(problem_, model.block);
    const Shape with_shared = with_shared_slots(problem_);
    const std::int64_t matrix = model.experts * model.hidden * model.intermediate;
    const std::int64_t routed = with_shared.routed_rows();
    const auto scale = [](std::int64_t depth) { return 1 / std::sqrt(static_cast<float>(depth)); };
    x_ = normal(tokens * model.hidden, 1);
    router_ = normal(model.experts * model.hidden, scale(model.hidden));
    gate_ = normal(matrix, scale(model.hidden));
    up_ = normal(matrix, scale(model.hidden));
    down_ = normal(matrix, scale(model.intermediate));
    weights_ = {view(router_, {model.experts, model.hidden}),
                view(gate_, {model.experts, model.intermediate, model.hidden}),
                view(up_, {model.experts, model.intermediate, model.hidden}),
                view(down_, {model.experts, model.hidden, model.intermediate})};
    for (const WeightTensor& tensor : weight_tensors(problem_)) {
      TensorView& missing = weights_.*tensor.view;
      if (missing.data != nullptr) continue;
      missing = tensor.expected;
      if (missing.dtype == DType::kBF16) {
        others_.push_back(normal(missing.elements(), scale(missing.dim(1))));
      } else {
        others_.emplace_back(missing.bytes());
        MOE_CUDA_CHECK(cudaMemsetAsync(others_.back().data(), 0, missing.bytes(), device.stream()));
      }
      missing.data = others_.back().data();
    }
    block_ = StreamBlock::of(problem_, weights_);
    y_ = DeviceBuffer(bytes(tokens * model.hidden));
    expected_ = DeviceBuffer(bytes(tokens * model.hidden));
    logits_ = DeviceBuffer(static_cast<std::size_t>(tokens * model.experts) * sizeof(float));
    switch_logits_ = DeviceBuffer(static_cast<std::size_t>(tokens) * sizeof(float));
    idx_ = DeviceBuffer(static_cast<std::size_t>(routed) * sizeof(std::int32_t));
    topk_weights_ = DeviceBuffer(static_cast<std::size_t>(routed) * sizeof(float));
    choices_ = DeviceBuffer(static_cast<std::size_t>(with_shared.top_k) * sizeof(std::uint64_t));
    slots_ = DeviceBuffer(static_cast<std::size_t>(routed) * sizeof(std::int32_t));
    active_ = DeviceBuffer(static_cast<std::size_t>(std::min(routed, with_shared.experts)) *
                           sizeof(ActiveExpert));
    arrivals_ = DeviceBuffer(kStreamArrivals * sizeof(unsigned));
    MOE_CUDA_CHECK(cudaMemsetAsync(arrivals_.data(), 0, arrivals_.size(), device.stream()));
    stride_ = (model.intermediate + 7) / 8 * 8;
    act_ = DeviceBuffer(bytes(routed * stride_));
    rows_ = DeviceBuffer(bytes(routed * model.hidden));
  }

  void run(int samples) {
    const std::vector<Part> parts = tokens_ == 1 ? parts_of_one() : parts_of_more();
    std::vector<GraphExec> graphs;
    graphs.emplace_back(device_.stream(), [&] { launch_empty(device_.stream()); });
    for (std::size_t upto = 1; upto <= parts.size(); ++upto) {
      const auto queue = [&] {
        for (std::size_t i = 0; i < upto; ++i) parts[i].queue();
      };
      queue();
      graphs.emplace_back(device_.stream(), queue);
    }
    const double error = relative_error();
    std::vector<std::vector<double>> times(graphs.size());
    std::vector<double> read;
    for (int sample = 0; sample < samples; ++sample) {
      for (std::size_t i = 0; i < graphs.size(); ++i) {
        const std::size_t turn = (i + static_cast<std::size_t>(sample)) % graphs.size();
        graphs[turn].launch(device_.stream());
        times[turn].push_back(
            1e3 * stopwatch_.milliseconds([&] { graphs[turn].launch(device_.stream()); },
                                          {Cache::kCold, Launch::kGraph}));
      }
      read.push_back(read_rate());
    }
    const std::int64_t active = active_experts();
    const double weights =
        3.0 * static_cast<double>(model_.hidden) * 2 *
        static_cast<double>(active * model_.intermediate + problem_.shared_intermediate);
    const double empty = median(times.front());
    std::string text;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      text += fmt::format("\"{}_us\": {:.1f}, ", parts[i].name, median(times[i + 1]));
    }
    fmt::print(
        "{{\"preset\": \"{}\", \"tokens\": {}, \"active_experts\": {}, \"empty_us\": {:.2f}, "
        "{}\"floor_us\": "
        "{:.1f}, \"read_gbs\": {:.0f}, \"samples\": {}, \"relative_error\": {:.1e}, \"plan\": "
        "\"{}\"}}\n",
        model_.name, tokens_, active, empty, text, weights / (median(read) * 1e3) + empty,
        median(read), samples, error, plan_);
    std::fflush(stdout);
  }

 private:
  static std::size_t bytes(std::int64_t elements) {
    return static_cast<std::size_t>(elements) * sizeof(__nv_bfloat16);
  }
  DeviceBuffer normal(std::int64_t count, float deviation) {
    DeviceBuffer buffer(bytes(count + count % 2));
    fill_normal_kernel<<<1024, 256, 0, device_.stream()>>>(
        buffer.as<__nv_bfloat16>(), (count + 1) / 2, static_cast<std::uint64_t>(++seed_) << 40,
        deviation);
    MOE_CUDA_CHECK_LAUNCH("fill_normal_kernel");
    return buffer;
  }

  [[nodiscard]] StreamRouting routing() const {
    return {.logits = logits_.as<float>(),
            .switch_logits = switch_logits_.as<float>(),
            .topk_idx = idx_.as<std::int32_t>(),
            .topk_weights = topk_weights_.as<float>(),
            .slots = slots_.as<std::int32_t>(),
            .active = active_.as<ActiveExpert>(),
            .arrivals = arrivals_.as<unsigned>()};
  }

  std::vector<Part> parts_of_one() {
    const TokenLayer layer{.router = router_.data(),
                           .gate = gate_.data(),
                           .up = up_.data(),
                           .down = down_.data(),
                           .hidden = model_.hidden,
                           .intermediate = model_.intermediate,
                           .experts = model_.experts,
                           .top_k = model_.top_k,
                           .logits = logits_.as<float>(),
                           .switch_logit = switch_logits_.as<float>(),
                           .choices = choices_.as<std::uint64_t>(),
                           .act = act_.data(),
                           .act_stride = stride_,
                           .block = block_};
    const TokenConfig config = choose_token_config(problem_, device_.facts().multiprocessors);
    const cudaStream_t stream = device_.stream();
    plan_ = to_string(config);
    return {{"router", [=, this] { token_router(layer, x_.data(), stream); }},
            {"router_gate_up", [=, this] { token_gate_up(layer, x_.data(), config, stream); }},
            {"all", [=, this] { token_down(layer, y_.data(), config, stream); }}};
  }
  std::vector<Part> parts_of_more() {
    const StreamExperts experts{.gate = gate_.data(),
                                .up = up_.data(),
                                .down = down_.data(),
                                .tokens = tokens_,
                                .hidden = model_.hidden,
                                .intermediate = model_.intermediate,
                                .experts = model_.experts,
                                .top_k = model_.top_k,
                                .routing = routing(),
                                .act = act_.data(),
                                .act_stride = stride_,
                                .block = block_};
    const StreamConfig config = choose_stream_config(problem_, device_.facts().multiprocessors);
    const std::int64_t slots = model_.top_k + block_.parts;
    const bool on_input = block_.weight_on_input;
    const cudaStream_t stream = device_.stream();
    plan_ = to_string(config);
    return {
        {"router",
         [=, this] {
           stream_router(x_.data(), router_.data(), tokens_, model_.hidden, model_.experts,
                         model_.top_k, routing(), stream, block_);
         }},
        {"router_gate_up", [=, this] { stream_gate_up(experts, x_.data(), config, stream); }},
        {"router_gate_up_down", [=, this] { stream_down(experts, rows_.data(), config, stream); }},
        {"all", [=, this] {
           unpermute_rows(DType::kBF16, rows_.data(), nullptr,
                          on_input ? nullptr : topk_weights_.as<float>(), tokens_, slots,
                          model_.hidden, y_.data(), stream,
                          {.topk_idx = on_input ? idx_.as<std::int32_t>() : nullptr});
         }}};
  }

  /// Of y, which the parts have written, against level 3.
  double relative_error() {
    device_.synchronise();  // create() reads the weights on a stream of its own
    Layer layer = Layer::create(
        {.level = "memefficient", .backend = Backend::kCuda, .problem = problem_}, weights_);
    layer.forward(view(x_, {tokens_, model_.hidden}), view(expected_, {tokens_, model_.hidden}));
    const DeviceBuffer sums(2 * sizeof(double));
    MOE_CUDA_CHECK(cudaMemsetAsync(sums.data(), 0, sums.size(), device_.stream()));
    difference_kernel<<<64, 256, 0, device_.stream()>>>(y_.as<__nv_bfloat16>(),
                                                        expected_.as<__nv_bfloat16>(),
                                                        tokens_ * model_.hidden, sums.as<double>());
    MOE_CUDA_CHECK_LAUNCH("difference_kernel");
    double host[2] = {};
    device_.copy_to_host(host, sums.data(), sums.size());
    const double error = std::sqrt(host[0] / host[1]);
    MOE_CHECK(error < 0.02, "{} at {} tokens: relative error {}", model_.name, tokens_, error);
    return error;
  }
  static TensorView view(const DeviceBuffer& buffer, std::initializer_list<std::int64_t> sizes) {
    return {buffer.data(), DType::kBF16, sizes};
  }

  /// Of the routed experts. One token has its K; the list of more is the router's.
  std::int64_t active_experts() {
    if (tokens_ == 1) return model_.top_k;
    std::vector<ActiveExpert> list(active_.size() / sizeof(ActiveExpert));
    device_.copy_to_host(list.data(), active_.data(), active_.size());
    return std::count_if(list.begin(), list.end(), [&](const ActiveExpert& entry) {
      return entry.tokens > 0 && entry.expert < model_.experts;
    });
  }

  double read_rate() {
    constexpr std::size_t kBytes = std::size_t{1} << 30;
    if (memory_.data() == nullptr) {
      memory_ = DeviceBuffer(kBytes);
      MOE_CUDA_CHECK(cudaMemsetAsync(memory_.data(), 0x3f, kBytes, device_.stream()));
      sink_ = DeviceBuffer(sizeof(unsigned));
    }
    const double ms = stopwatch_.milliseconds(
        [&] { read_memory(memory_.data(), kBytes, sink_.as<unsigned>(), device_.stream()); },
        {Cache::kHot, Launch::kGraph});
    return static_cast<double>(kBytes) / ms / 1e6;
  }

  CudaDevice& device_;
  Stopwatch& stopwatch_;
  const Model& model_;
  std::int64_t tokens_;
  int seed_ = 0;
  std::int64_t stride_ = 0;
  std::string plan_;
  DeviceBuffer x_, router_, gate_, up_, down_, y_, expected_;
  Problem problem_;
  Weights weights_;
  StreamBlock block_;
  std::vector<DeviceBuffer> others_;  // what only blocks have
  DeviceBuffer logits_, switch_logits_, idx_, topk_weights_, choices_, slots_, active_, arrivals_,
      act_, rows_;
  DeviceBuffer memory_, sink_;
};

void run(Arguments arguments) {
  const auto samples = static_cast<int>(arguments.number("--samples", 41));
  const std::vector<std::int64_t> tokens = arguments.numbers("--tokens", {1});
  for_wanted_models(kModels, arguments.words(), [&](const Model& model) {
    CudaDevice device{LayerOptions()};
    Stopwatch stopwatch(device);
    for (const std::int64_t count : tokens) {
      StreamedLayer(device, stopwatch, model, count).run(samples);
    }
  });
}

}  // namespace
}  // namespace moe::cuda

int main(int argc, char** argv) {
  return moe::cuda::run_program(argc, argv, moe::cuda::run);
}
