// Every CUDA level on awkward shapes, both types and skewed routing, against the fp64 oracle.
#include <cstring>
#include <map>
#include <optional>
#include <stdexcept>

#include "core/workload.h"
#include "cuda/device_test.h"
#include "moe/error.h"
#include "moe/verify.h"
#include "temporary_folder.h"

namespace moe::cuda {
namespace {

struct Case {
  const char* name;
  Shape shape;
  const char* skew = "uniform";
};

// T=1; T<E; K=E; K=1; odd sizes; empty experts; one expert with all rows; more rows than a chunk of
// level 3 and a block of the sort; widths that no 16-byte vector divides.
const Case kCases[] = {
    {"one_token", {1, 64, 128, 4, 2}},
    {"one_of_everything", {1, 1, 1, 1, 1}},
    {"fewer_tokens_than_experts", {5, 128, 64, 64, 8}},
    {"all_experts", {33, 96, 160, 5, 5}},
    {"one_choice", {130, 256, 128, 16, 1}},
    {"off_tile", {127, 200, 312, 7, 3}},
    {"odd_sizes", {65, 33, 47, 3, 2}},
    {"odd_hidden", {17, 65, 64, 8, 2}},
    {"odd_intermediate", {17, 64, 97, 8, 2}},
    {"one_expert_takes_all", {200, 128, 256, 8, 2}, "one-expert"},
    {"one_expert_one_choice", {129, 128, 128, 8, 1}, "one-expert"},
    {"zipf", {300, 256, 192, 40, 4}, "zipf:2.5"},
    {"many_experts", {300, 128, 64, 256, 8}},
    {"most_experts", {40, 64, 64, 1024, 22}},
    {"several_chunks", {1300, 64, 96, 8, 2}},
    {"wide", {24, 2048, 768, 16, 8}},
};

std::vector<LevelInfo> levels_and_variants() {
  std::vector<LevelInfo> all = list_levels();
  all.insert(all.end(), list_variants().begin(), list_variants().end());
  return all;
}

/// Only the tensor-core levels refuse anything, and only fp32; FP8 also rows that cuBLASLt has no
/// kernel for; CUTLASS's where the build has none; and level 9 many tokens.
bool may_refuse(const LevelInfo& level, const Problem& problem, const Error& error) {
  if (error.code() != ErrorCode::kUnsupported) return false;
  const bool fp8 = level.name.starts_with("grouped_fp8");
  if ((level.number >= 7 || fp8) && problem.dtype == DType::kF32) return true;
  if (fp8 && (problem.shape.hidden % 16 != 0 || problem.shape.intermediate % 16 != 0)) return true;
  if (level.name == "streaming" && problem.shape.tokens > 256) return true;
  return level.name == "grouped_gemm" &&
         std::string(error.what()).find("no CUTLASS") != std::string::npos;
}

class CudaLevels : public CudaTest, public ::testing::WithParamInterface<std::tuple<Case, DType>> {
 protected:
  TensorView place(const TensorView& host, std::int64_t offset = 0) {
    const std::size_t shift = static_cast<std::size_t>(offset) * size_of(host.dtype);
    buffers_.emplace_back(host.bytes() + shift);
    TensorView view = host;
    view.data = buffers_.back().as<std::byte>() + shift;
    device().copy_from_host(view.data, host.data, host.bytes());
    return view;
  }
  Weights place(const Weights& host, std::int64_t offset = 0) {
    return {place(host.router, offset), place(host.gate, offset), place(host.up, offset),
            place(host.down, offset)};
  }

  /// y of one forward into poisoned memory with a poisoned row behind it.
  Tensor forward(Layer& layer, const TensorView& x) {
    const std::int64_t hidden = layer.problem().shape.hidden;
    Tensor y(x.dtype, {x.dim(0) + 1, hidden});
    poison(y.view());
    const TensorView on_device = place(y.view());
    layer.forward(x, on_device.first_rows(x.dim(0)));
    Tensor got(x.dtype, {x.dim(0) + 1, hidden});
    device().copy_to_host(got.view().data, on_device.data, got.view().bytes());
    const std::size_t written = got.view().first_rows(x.dim(0)).bytes();
    EXPECT_EQ(std::memcmp(got.as<std::byte>() + written, y.as<std::byte>() + written,
                          got.view().bytes() - written),
              0)
        << "written behind y";
    return got;
  }

  test::TemporaryFolder folder_;  // compiled kernels, so that one shape compiles once
  std::vector<DeviceBuffer> buffers_;
};

TEST_P(CudaLevels, AgreeWithTheOracle) {
  const auto& [test, dtype] = GetParam();
  const Problem problem{test.shape, dtype};
  const Skew skew = Skew::parse(test.skew);
  const OwnedWeights weights = make_weights(problem, 31, skew);
  const Tensor inputs[2] = {make_input(problem, 31, 0, skew), make_input(problem, 31, 1, skew)};
  std::map<Operands, std::vector<Oracle>> oracles;
  for (const std::int64_t offset : {0, 1}) {  // elements from a 256-byte boundary
    const Weights on_device = place(weights.view(), offset);
    const TensorView x[2] = {place(inputs[0].view(), offset), place(inputs[1].view(), offset)};
    for (const LevelInfo& level : levels_and_variants()) {
      if (!level.on_cuda) continue;
      SCOPED_TRACE(testing::Message() << level.name << " offset " << offset);
      std::optional<Layer> created;
      try {
        created = Layer::create({.level = level.name,
                                 .backend = Backend::kCuda,
                                 .problem = problem,
                                 .tune_seconds = 0,
                                 .tune_cache = folder_.path()},
                                on_device);
      } catch (const Error& error) {
        ASSERT_TRUE(may_refuse(level, problem, error)) << error.what();
        continue;
      }
      Layer& layer = *created;
      std::vector<Oracle>& answers = oracles[layer.operands()];
      for (const Tensor& input : inputs) {
        if (answers.size() == 2) break;
        answers.emplace_back(problem, weights.view(), input.view(),
                             OracleOptions{.operands = layer.operands()});
      }
      Tensor first;
      for (const int input : {0, 1, 0}) {
        const Tensor y = forward(layer, x[input]);
        const Comparison comparison = answers[static_cast<std::size_t>(input)].compare(
            y.view().first_rows(test.shape.tokens));
        ASSERT_TRUE(comparison.passed) << "input " << input << ": " << comparison.describe();
        if (first.view().data == nullptr) first = y;
        if (input == 0) {
          ASSERT_EQ(std::memcmp(first.view().data, y.view().data, y.view().bytes()), 0)
              << "input 0 again: other bits";
        }
      }
      if (test.shape.tokens > 1) {
        const Tensor y = forward(layer, x[0].first_rows(test.shape.tokens / 2));
        const Comparison comparison =
            answers[0].compare(y.view().first_rows(test.shape.tokens / 2));
        ASSERT_TRUE(comparison.passed) << "first half: " << comparison.describe();
      }
      forward(layer, x[0].first_rows(0));
    }
    buffers_.clear();
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudaLevels,
                         ::testing::Combine(::testing::ValuesIn(kCases),
                                            ::testing::Values(DType::kF32, DType::kBF16)),
                         [](const auto& parameter) {
                           return std::string(std::get<0>(parameter.param).name) + "_" +
                                  std::string(name_of(std::get<1>(parameter.param)));
                         });

class CudaLevelTraces : public CudaTest {};

TEST_F(CudaLevelTraces, NoTwoLevelsDoTheSameAndHigherOnesDoNotAllocate) {
  const Problem problem{{32, 64, 64, 4, 2}, DType::kBF16};
  const OwnedWeights host = make_weights(problem, 1);
  std::vector<DeviceBuffer> buffers;
  const auto place = [&](const TensorView& tensor) {
    buffers.emplace_back(tensor.bytes());
    TensorView view = tensor;
    view.data = buffers.back().data();
    device().copy_from_host(view.data, tensor.data, tensor.bytes());
    return view;
  };
  const Weights weights{place(host.router.view()), place(host.gate.view()), place(host.up.view()),
                        place(host.down.view())};
  const TensorView x = place(make_input(problem, 1, 0).view());
  const TensorView y = place(make_input(problem, 1, 1).view());
  std::vector<std::vector<TraceEvent>> traces;
  for (const LevelInfo& level : levels_and_variants()) {
    if (!level.on_cuda) continue;
    std::optional<Layer> created;
    try {
      created = Layer::create({.level = level.name,
                               .backend = Backend::kCuda,
                               .problem = problem,
                               .tune_seconds = 0,
                               .tune_cache = "off"},
                              weights);
    } catch (const Error& error) {
      ASSERT_TRUE(may_refuse(level, problem, error)) << error.what();
      continue;
    }
    Layer& layer = *created;
    std::vector<TraceEvent> trace = layer.trace(x, y);
    std::uint64_t allocated = 0;
    for (const TraceEvent& event : trace) allocated += event.op == "alloc" ? event.bytes : 0;
    EXPECT_EQ(allocated > 0, level.number < 3) << level.name;
    EXPECT_LE(allocated, layer.memory().transient) << level.name;
    for (const auto& other : traces) EXPECT_FALSE(trace == other) << level.name;
    traces.push_back(std::move(trace));
  }
  EXPECT_FALSE(traces.empty());
}

}  // namespace
}  // namespace moe::cuda
