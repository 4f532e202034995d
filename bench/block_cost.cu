// What the blocks of real models cost a level (8 unless another is named): the layer with a model's block
// against the layer of the same sizes without (softmax router, SwiGLU, no biases, no shared expert), one JSON
// object a line.
//   block_cost [--level NAME] [--samples N] [--tokens LIST] [--kernels] [MODEL...]
// Both are replayed graphs of whole forwards on the same routed weights, made on the device, and take
// turns within a run; before each sample 256 MiB are written and then read: L2 is cold and clean.
// --kernels adds the time of each kernel, recorded in runs of their own. A shared expert is more work: rates
// are by useful_flops() of either problem. The first tokens' outputs of the block are compared with level 3
// on the same weights (which the tests compare with the fp64 oracle).
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "core/statistics.h"
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
  const char* block;
};
constexpr Model kModels[] = {
    {"gpt-oss-120b", 2880, 2880, 128, 4,
     "--router softmax,bias --activation swiglu,alpha=1.702,limit=7,up=1 --expert-bias"},
    {"qwen3-30b-a3b", 2048, 768, 128, 8, "--activation swiglu,limit=10"},
    {"deepseek-v3", 7168, 2048, 256, 8,
     "--router sigmoid,selection-bias,groups=8/4,scale=2.5 --shared 2048"},
    {"qwen3-next-80b", 2048, 512, 512, 10, "--shared 512,switch"},
    {"nemotron-3-nano-30b", 2688, 1856, 128, 6,
     "--router sigmoid,selection-bias,scale=2.5 --activation relu2 --shared 3712"},
    {"gemma-4-26b-a4b", 2816, 704, 128, 8, "--activation geglu --shared 2112"},
    {"llama4-scout", 5120, 8192, 16, 1, "--router sigmoid,raw,on-input --shared 8192"},
    {"off-block", 1000, 360, 12, 3,
     "--activation swiglu,alpha=1.702,limit=7,up=1 --expert-bias --shared 500,switch"}};

void time_model(const Model& model, const std::string& level, std::int64_t tokens, int samples,
                bool kernels) {
  const Problem plain{{tokens, model.hidden, model.intermediate, model.experts, model.top_k},
                      DType::kBF16};
  Problem block = plain;
  set_block_options(block, model.block);
  const Stream stream;
  // Without a gate the block lacks a matrix that the plain layer has.
  Problem all = block;
  if (!block.activation.gated()) all.activation = {};
  const MadeWeights weights(all, stream.get());
  const DeviceBuffer x_data = normal_values(tokens * model.hidden, 5, 1.0F, stream.get());
  const DeviceBuffer y_data(x_data.size());
  const TensorView x(x_data.data(), DType::kBF16, {tokens, model.hidden});
  const TensorView y(y_data.data(), DType::kBF16, {tokens, model.hidden});
  const auto create = [&](const std::string& name, const Problem& problem) {
    return Layer::create({.level = name,
                          .backend = Backend::kCuda,
                          .problem = problem,
                          .tune_seconds = 0,
                          .tune_cache = "off",
                          .stream = stream.get()},
                         weights.of(problem));
  };
  const std::int64_t checked = std::min<std::int64_t>(tokens, 128);
  const DeviceBuffer expected(static_cast<std::size_t>(checked * model.hidden) * 2);
  {
    Problem few = block;
    few.shape.tokens = checked;
    create("memefficient", few)
        .forward(x.first_rows(checked),
                 TensorView(expected.data(), DType::kBF16, {checked, model.hidden}));
    MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  }
  Layer without = create(level, plain);
  Layer with = create(level, block);
  const Graph plain_graph(stream.get(), [&] { without.forward(x, y); });
  const Graph block_graph(stream.get(), [&] { with.forward(x, y); });
  Timer timer(stream.get());
  std::vector<double> plain_us;
  std::vector<double> block_us;
  for (int i = -3; i < samples; ++i) {
    const double first = timer.microseconds([&] { plain_graph.launch(stream.get()); });
    const double second = timer.microseconds([&] { block_graph.launch(stream.get()); });
    if (i < 0) continue;
    plain_us.push_back(first);
    block_us.push_back(second);
  }
  const DeviceBuffer sums(2 * sizeof(double));
  const double error = relative_error(y_data.as<__nv_bfloat16>(), expected.as<__nv_bfloat16>(),
                                      checked * model.hidden, sums.as<double>(), stream.get());
  constexpr double kTolerance = 1e-2;  // two bf16 roundings of the inner values, each way
  const auto rate = [](const Problem& problem, const std::vector<double>& us) {
    return useful_flops(problem) / median(us) * 1e-6;
  };
  const MedianRatio ratio = median_ratio(block_us, plain_us);
  const double flops = useful_flops(block) / useful_flops(plain);
  fmt::print(
      "{{\"shape\":\"{}\",\"problem\":\"{}\",\"block\":\"{}\",\"level\":\"{}\","
      "\"verified\":{},\"error\":{:.2e},\"samples\":{},\"plain_us\":{:.1f},\"block_us\":{:.1f},"
      "\"plain_tflops\":{:.1f},\"block_tflops\":{:.1f},\"time_ratio\":{:.4f},"
      "\"time_ratio_95\":[{:.4f},{:.4f}],\"flops_ratio\":{:.4f},\"rate_ratio\":{:.4f}}}\n",
      model.name, to_string(plain.shape), model.block, level, error <= kTolerance, error, samples,
      median(plain_us), median(block_us), rate(plain, plain_us), rate(block, block_us), ratio.ratio,
      ratio.low, ratio.high, flops, flops / ratio.ratio);
  if (kernels) {
    for (const auto& [graph, name] : {std::pair{&plain_graph, "plain"}, {&block_graph, "block"}}) {
      timer.flush();
      fmt::print("{{\"shape\":\"{}\",\"tokens\":{},\"layer\":\"{}\",\"kernels_us\":\"{}\"}}\n",
                 model.name, tokens, name,
                 kernel_times([&] { graph->launch(stream.get()); }, stream.get()));
    }
  }
  std::fflush(stdout);
}

void run(Arguments arguments) {
  const std::string level = arguments.text("--level", "persistent");
  const auto samples = static_cast<int>(arguments.number("--samples", 25));
  const std::vector<std::int64_t> tokens = arguments.numbers("--tokens", {4096, 16384});
  const bool kernels = arguments.flag("--kernels");
  for_wanted_models(kModels, arguments.words(), [&](const Model& model) {
    for (const std::int64_t count : tokens) time_model(model, level, count, samples, kernels);
  });
}

}  // namespace
}  // namespace moe::cuda

int main(int argc, char** argv) {
  return moe::cuda::run_program(argc, argv, moe::cuda::run);
}
