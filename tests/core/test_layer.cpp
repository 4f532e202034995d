// Layer's contract that no level can break: argument checks, memory limits, "auto".
#include "moe/layer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "core/check.h"
#include "core/memory.h"
#include "core/workload.h"
#include "moe/error.h"
#include "moe/verify.h"

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

TEST_F(LayerContract, WorksInTheCallersWorkspace) {
  Layer own = Layer::create(options_, weights_.view());
  own.forward(x_.view(), y_.view());
  const std::uint64_t needed = Layer::predict(options_).workspace;
  ASSERT_GT(needed, 0U);
  const HostBuffer memory(needed + kWorkspaceAlignment);
  auto* begin = memory.as<std::byte>();
  std::memset(begin, 0xff, memory.size());
  options_.workspace = begin;
  options_.workspace_bytes = needed;
  // What the caller brings is not counted against what the layer may take.
  options_.workspace_limit = std::max<std::uint64_t>(1, Layer::predict(options_).total() - needed);
  Layer layer = Layer::create(options_, weights_.view());
  Tensor y(DType::kF32, {16, 32});
  layer.forward(x_.view(), y.view());
  EXPECT_EQ(std::memcmp(y.view().data, y_.view().data, y.view().bytes()), 0);
  const auto touched =
      std::count_if(begin, begin + needed, [](std::byte byte) { return byte != std::byte{0xff}; });
  EXPECT_GT(touched, 0) << "the arena is somewhere else";
  EXPECT_TRUE(std::all_of(begin + needed, begin + memory.size(), [](std::byte byte) {
    return byte == std::byte{0xff};
  })) << "written beyond workspace_bytes";
}

TEST_F(LayerContract, RefusesAWorkspaceThatIsTooSmallOrNotAligned) {
  const std::uint64_t needed = Layer::predict(options_).workspace;
  const HostBuffer memory(needed + kWorkspaceAlignment);
  options_.workspace = memory.data();
  options_.workspace_bytes = needed - 1;
  const Refusal refusal = refusal_of([&] { Layer::create(options_, weights_.view()); });
  EXPECT_EQ(refusal.code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(refusal.message,
            fmt::format("workspace of {} bytes is too small: level memefficient needs {} bytes "
                        "(T=16 H=32 I=48 E=4 K=2)",
                        needed - 1, needed));
  options_.workspace = memory.as<std::byte>() + 8;
  options_.workspace_bytes = needed;
  EXPECT_NE(refusal_of([&] {
              Layer::create(options_, weights_.view());
            }).message.find("must be aligned to 256 bytes"),
            std::string::npos);
}

TEST_F(LayerContract, TuningSaysWhatItDoesAndStopsWhenCancelled) {
  options_.level = "compiled";
  options_.problem.shape = {512, 256, 256, 4, 2};
  options_.tune_seconds = 60;
  options_.tune_cache = "off";
  const OwnedWeights weights = make_weights(options_.problem, 1);
  std::vector<std::string> said;
  std::promise<void> tuning;
  std::atomic<bool> cancel{false};
  options_.cancel = &cancel;
  options_.progress = [&](const std::string& text) {
    said.push_back(text);
    if (said.size() == 2) tuning.set_value();
  };
  std::thread other([&, began = tuning.get_future()]() mutable {
    began.wait();
    cancel = true;
  });
  const auto start = std::chrono::steady_clock::now();
  const Refusal refusal = refusal_of([&] { Layer::create(options_, weights.view()); });
  const auto took = std::chrono::steady_clock::now() - start;
  other.join();
  EXPECT_EQ(refusal.code, ErrorCode::kCancelled);
  EXPECT_EQ(refusal.message, "creating level compiled was cancelled");
  EXPECT_LT(took, std::chrono::seconds(20)) << "tuning had 60 s";
  ASSERT_GE(said.size(), 2U);
  EXPECT_EQ(said[0], "preparing level compiled");
  EXPECT_EQ(said[1].rfind("tuning ", 0), 0U) << said[1];
  // Set before create(): nothing is prepared.
  said.clear();
  EXPECT_EQ(refusal_of([&] { Layer::create(options_, weights.view()); }).code,
            ErrorCode::kCancelled);
  EXPECT_TRUE(said.empty());
}

TEST_F(LayerContract, ThreadsWithALayerEachComputeTheSame) {
  // Several layers at once over shared weights, of every level: no state behind them is shared.
  options_.threads = 1;
  options_.tune_seconds = 0;
  options_.tune_cache = "off";
  for (const LevelInfo& info : list_levels()) {
    options_.level = info.name;
    std::vector<Tensor> outputs(4);
    std::vector<std::string> reasons(outputs.size());
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      threads.emplace_back([&, i] {
        try {
          Layer layer = Layer::create(options_, weights_.view());
          outputs[i] = Tensor(DType::kF32, {16, 32});
          for (int repeat = 0; repeat < 20; ++repeat) {
            poison(outputs[i].view());
            layer.forward(x_.view(), outputs[i].view());
          }
        } catch (const Error& error) {
          reasons[i] = error.what();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const std::string& reason : reasons) EXPECT_EQ(reason, reasons[0]) << info.name;
    if (!reasons[0].empty()) continue;
    Layer alone = Layer::create(options_, weights_.view());
    alone.forward(x_.view(), y_.view());
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      EXPECT_EQ(std::memcmp(outputs[i].view().data, y_.view().data, y_.view().bytes()), 0)
          << info.name << ", thread " << i;
    }
  }
}

}  // namespace
}  // namespace moe
