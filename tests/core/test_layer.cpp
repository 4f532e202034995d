// Layer's contract that no level can break: argument checks, memory limits, "auto".
#include "moe/layer.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "core/workload.h"
#include "moe/error.h"

namespace moe {
namespace {

const Problem kProblem{.shape = {16, 32, 48, 4, 2}, .dtype = DType::kF32};

struct Refusal {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
  std::uint64_t bytes = 0;
};

Refusal refusal_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return {error.code(), error.what(), error.bytes_needed()};
  }
  ADD_FAILURE() << "nothing was refused";
  return {};
}

class LayerContract : public ::testing::Test {
 protected:
  OwnedWeights weights_ = make_weights(kProblem, 1);
  Tensor x_ = make_input(kProblem, 1, 0);
  Tensor y_ = Tensor(DType::kF32, {16, 32});
  LayerOptions options_{.level = "memefficient", .problem = kProblem};
};

TEST_F(LayerContract, RefusesWeightsThatDoNotMatch) {
  Weights wrong = weights_.view();
  std::swap(wrong.gate, wrong.down);
  const Refusal refusal = refusal_of([&] { Layer::create(options_, wrong); });
  EXPECT_EQ(refusal.code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(refusal.message, "weights.gate is fp32[4,32,48], but the problem needs fp32[4,48,32]");
  Weights missing = weights_.view();
  missing.up.data = nullptr;
  EXPECT_EQ(refusal_of([&] { Layer::create(options_, missing); }).code,
            ErrorCode::kInvalidArgument);
}

TEST_F(LayerContract, RefusesInputsThatDoNotMatch) {
  Layer layer = Layer::create(options_, weights_.view());
  const Tensor wide(DType::kF32, {16, 33});
  const Tensor long_x(DType::kF32, {17, 32});
  const Tensor bf16(DType::kBF16, {16, 32});
  for (const Tensor* wrong : {&wide, &long_x, &bf16}) {
    EXPECT_EQ(refusal_of([&] { layer.forward(wrong->view(), y_.view()); }).code,
              ErrorCode::kInvalidArgument);
    EXPECT_EQ(refusal_of([&] { layer.forward(x_.view(), wrong->view()); }).code,
              ErrorCode::kInvalidArgument);
  }
  EXPECT_NE(refusal_of([&] { layer.forward(x_.view(), x_.view()); }).message.find("overlap"),
            std::string::npos);
  layer.forward(x_.view(), y_.view());  // still usable after refusals
}

TEST_F(LayerContract, NoRowsIsNoWork) {
  Layer layer = Layer::create(options_, weights_.view());
  y_.as<float>()[0] = 42;
  layer.forward(x_.view().first_rows(0), y_.view().first_rows(0));
  EXPECT_EQ(y_.as<float>()[0], 42);
}

TEST_F(LayerContract, PredictsMemoryBeforeAllocating) {
  options_.workspace_limit = 1;
  const Refusal refusal = refusal_of([&] { Layer::create(options_, weights_.view()); });
  EXPECT_EQ(refusal.code, ErrorCode::kOutOfMemory);
  EXPECT_EQ(refusal.bytes, Layer::predict(options_).total());
  EXPECT_GT(refusal.bytes, 1U);
}

TEST_F(LayerContract, PredictsAGatherThatNoMachineHolds) {
  options_.level = "batched";
  options_.problem.shape = {1 << 20, 4096, 14336, 8, 2};
  // 2^21 routed rows x 4096 x 14336 x 4 bytes = 448 TiB, without making weights.
  EXPECT_GT(Layer::predict(options_).total(), std::uint64_t{448} << 40);
}

TEST_F(LayerContract, RefusesOptionsOutOfRange) {
  options_.threads = -1;
  EXPECT_NE(
      refusal_of([&] { Layer::create(options_, weights_.view()); }).message.find("threads=-1"),
      std::string::npos);
  options_.threads = 0;
  options_.tune_seconds = -1;
  EXPECT_EQ(refusal_of([&] { Layer::create(options_, weights_.view()); }).code,
            ErrorCode::kInvalidArgument);
  options_.tune_seconds = 0;
  options_.level = "fastest";
  EXPECT_EQ(refusal_of([&] { Layer::create(options_, weights_.view()); }).code,
            ErrorCode::kInvalidArgument);
}

TEST_F(LayerContract, ABackendOutsideTheBuildIsUnsupported) {
  options_.backend = Backend::kCuda;
  EXPECT_EQ(refusal_of([&] { Layer::create(options_, weights_.view()); }).code,
            ErrorCode::kUnsupported);
  options_.level = "auto";
  EXPECT_EQ(refusal_of([&] { Layer::create(options_, weights_.view()); }).code,
            ErrorCode::kUnsupported);
}

TEST_F(LayerContract, AutoTakesTheHighestLevelThatRuns) {
  options_.level = "auto";
  options_.tune_seconds = 0;
  options_.tune_cache = "off";
  const Layer layer = Layer::create(options_, weights_.view());
  int highest = -1;
  for (const LevelInfo& info : list_levels()) {
    if (info.on_cpu) highest = info.number;
  }
  EXPECT_EQ(layer.level().number, highest);
  EXPECT_EQ(layer.choice().rfind(layer.level().name + ": the highest level", 0), 0U)
      << layer.choice();
  options_.level = layer.level().name;
  EXPECT_EQ(Layer::create(options_, weights_.view()).choice(), "");
}

}  // namespace
}  // namespace moe
