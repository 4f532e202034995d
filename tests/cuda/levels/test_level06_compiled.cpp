// Level 6 and its caches: a warm start compiles and times nothing and gives the same bits, files that
// are no good are said once and replaced, and what was chosen by timing computes the layer.
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "core/cache_file.h"
#include "core/workload.h"
#include "cuda/device_test.h"
#include "cuda/nvrtc.h"
#include "moe/verify.h"
#include "temporary_folder.h"

namespace moe::cuda {
namespace {

namespace fs = std::filesystem;

class CudaCompiled : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    if (!nvrtc_unavailable().empty()) GTEST_SKIP() << nvrtc_unavailable();
  }
  void place(const Problem& problem) {
    problem_ = problem;
    host_weights_ = make_weights(problem, 3);
    host_x_ = make_input(problem, 3, 0);
    const OwnedWeights& w = *host_weights_;
    weights_ = {upload(w.router.view()), upload(w.gate.view()), upload(w.up.view()),
                upload(w.down.view())};
    x_ = upload(host_x_->view());
    y_ = upload(host_x_->view());
    oracle_.emplace(problem, w.view(), host_x_->view());
  }
  TensorView upload(const TensorView& host) {
    buffers_.emplace_back(host.bytes());
    TensorView view = host;
    view.data = buffers_.back().data();
    device().copy_from_host(view.data, host.data, host.bytes());
    return view;
  }
  Layer create(double seconds) {
    return Layer::create({.level = "compiled",
                          .backend = Backend::kCuda,
                          .problem = problem_,
                          .tune_seconds = seconds,
                          .tune_cache = folder_.path()},
                         weights_);
  }
  /// y of the first `rows` rows, compared with the oracle.
  std::vector<std::byte> verified(Layer& layer, std::int64_t rows) {
    Tensor y(problem_.dtype, {rows, problem_.shape.hidden});
    poison(y.view());
    device().copy_from_host(y_.data, y.view().data, y.view().bytes());
    layer.forward(x_.first_rows(rows), y_.first_rows(rows));
    device().copy_to_host(y.view().data, y_.data, y.view().bytes());
    const Comparison comparison = oracle_->compare(y.view());
    EXPECT_TRUE(comparison.passed) << rows << " rows: " << comparison.describe();
    const auto* bytes = y.as<const std::byte>();
    return {bytes, bytes + y.view().bytes()};
  }
  [[nodiscard]] std::string choices_file() const {
    for (const auto& entry : fs::directory_iterator(folder_.path())) {
      if (entry.path().extension() == ".json") return entry.path().string();
    }
    ADD_FAILURE() << "no choices in " << folder_.path();
    return {};
  }
  static bool says(const Layer& layer, const std::string& text) {
    return layer.plan().find(text) != std::string::npos;
  }

  test::TemporaryFolder folder_;
  Problem problem_;
  std::optional<OwnedWeights> host_weights_;
  std::optional<Tensor> host_x_;
  Weights weights_;
  TensorView x_, y_;
  std::optional<Oracle> oracle_;
  std::vector<DeviceBuffer> buffers_;
};

TEST_F(CudaCompiled, AWarmStartMakesNothingAndGivesTheSameBits) {
  place({{600, 256, 192, 8, 2}, DType::kBF16});
  Layer cold = create(20);
  EXPECT_TRUE(says(cold, "choices timed now")) << cold.plan();
  EXPECT_TRUE(says(cold, "cold start")) << cold.plan();
  const std::string file = choices_file();
  const std::string kept = *read_whole(file);
  EXPECT_TRUE(nlohmann::json::parse(kept).at("content").at("complete").get<bool>());
  const std::uint64_t compilations = nvrtc_compilations();
  Layer warm = create(20);
  EXPECT_EQ(nvrtc_compilations(), compilations);
  EXPECT_TRUE(says(warm, "choices read from " + file)) << warm.plan();
  EXPECT_TRUE(says(warm, "warm start")) << warm.plan();
  EXPECT_TRUE(says(warm, "the cold one that made the choices took")) << warm.plan();
  EXPECT_EQ(read_whole(file), kept);
  for (const std::int64_t rows : {600, 599, 150, 31, 1}) {
    const std::vector<std::byte> first = verified(cold, rows);
    EXPECT_EQ(verified(warm, rows), first) << rows;
    EXPECT_EQ(verified(cold, rows), first) << rows << ", again";
  }
}

TEST_F(CudaCompiled, TunedValuesOfBothTypes) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const Shape& shape : {Shape{300, 128, 64, 32, 4}, Shape{65, 33, 47, 3, 2}}) {
      place({shape, dtype});
      Layer layer = create(5);
      verified(layer, shape.tokens);
      verified(layer, 1);
    }
  }
}

TEST_F(CudaCompiled, BadFilesAreNamedIgnoredAndReplaced) {
  place({{64, 64, 64, 4, 2}, DType::kBF16});
  create(5);
  const std::string file = choices_file();
  nlohmann::json foreign = nlohmann::json::parse(*read_whole(file));
  foreign["key"]["device"] = "another";
  for (const std::string& text : {std::string("damage"), foreign.dump()}) {
    std::ofstream(file, std::ios::binary) << text;
    Layer layer = create(5);
    const std::string plan = layer.plan();
    const std::size_t said = plan.find(file + " was not used");
    EXPECT_NE(said, std::string::npos) << plan;
    EXPECT_EQ(plan.find("was not used", said + file.size() + 5), std::string::npos) << plan;
    EXPECT_TRUE(says(layer, "choices timed now")) << plan;
    verified(layer, 64);
    EXPECT_TRUE(says(create(5), "choices read from")) << plan;
  }
}

TEST_F(CudaCompiled, MoreTimeGoesOnWhereLittleEnded) {
  place({{512, 256, 128, 8, 2}, DType::kBF16});
  EXPECT_TRUE(says(create(1e-6), "not all of them"));
  EXPECT_TRUE(says(create(1e-6), "choices read from"));
  EXPECT_TRUE(says(create(20), "choices timed now"));
  EXPECT_TRUE(says(create(1e-6), "choices read from"));
}

TEST_F(CudaCompiled, WithoutTimeItRunsAndSaysSo) {
  place({{64, 64, 64, 4, 2}, DType::kBF16});
  Layer layer = create(0);
  EXPECT_TRUE(says(layer, "choices not timed")) << layer.plan();
  verified(layer, 64);
}

}  // namespace
}  // namespace moe::cuda
