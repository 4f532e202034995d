// Level 8 where its blocks cooperate and where its products overlap: that needs more rows and experts than
// the shapes of other tests have.
#include "cuda/levels/level_test.h"
#include "cuda/ops/fingerprint.h"
#include "moe/error.h"
#include "moe/verify.h"

namespace moe::cuda {
namespace {

class CudaPersistentLevel : public CudaLevelTest {
 protected:
  void SetUp() override {
    CudaLevelTest::SetUp();
    if (IsSkipped()) return;
    try {
      static_cast<void>(Layer::predict({.level = "persistent",
                                        .backend = Backend::kCuda,
                                        .problem = {{1, 8, 8, 1, 1}, DType::kBF16}}));
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnsupported) throw;
      GTEST_SKIP() << error.what();
    }
  }
  void check(const Problem& problem, const char* planned);
};

/// The oracle's answer and the same bits every time, from a layer whose plan has `planned` in it. Also
/// for fewer tokens than it is made for, and experts with more than one tile or none.
void CudaPersistentLevel::check(const Problem& problem, const char* planned) {
  const OwnedWeights host = make_weights(problem, 7);
  const Weights weights = place(host);
  const Stream stream(unsigned{cudaStreamNonBlocking});
  Layer layer = Layer::create({.level = "persistent",
                               .backend = Backend::kCuda,
                               .problem = problem,
                               .stream = stream.get()},
                              weights);
  ASSERT_NE(layer.plan().find(planned), std::string::npos) << layer.plan();
  struct Case {
    std::int64_t tokens;
    const char* skew;
  };
  for (const Case& c :
       {Case{problem.shape.tokens, "uniform"}, Case{1001, "zipf:1"}, Case{700, "one-expert"}}) {
    SCOPED_TRACE(testing::Message() << c.tokens << " tokens, " << c.skew);
    Problem part = problem;
    part.shape.tokens = c.tokens;
    const Tensor input = make_input(part, 7, 0, Skew::parse(c.skew));
    const TensorView x = place(input.view());
    const TensorView y = place(make_input(part, 7, 1).view());
    MOE_CUDA_CHECK(cudaMemset(y.data, 0xff, y.bytes()));
    MOE_CUDA_CHECK(cudaDeviceSynchronize());
    layer.forward(x, y);
    MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
    const Tensor got = download(y);
    const Comparison comparison = Oracle(part, host.view(), input.view()).compare(got.view());
    ASSERT_TRUE(comparison.passed) << comparison.describe();

    constexpr int kForwards = 500;
    const DeviceBuffer sums(kForwards * sizeof(std::uint64_t));
    for (int i = 0; i < kForwards; ++i) {
      layer.forward(x, y);
      fingerprint(y.data, y.bytes(), sums.as<std::uint64_t>() + i, stream.get());
    }
    MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
    std::vector<std::uint64_t> prints(kForwards);
    device().copy_to_host(prints.data(), sums.data(), sums.size());
    for (int i = 1; i < kForwards; ++i) {
      ASSERT_EQ(prints[static_cast<std::size_t>(i)], prints[0]) << "forward " << i;
    }
  }
}

TEST_F(CudaPersistentLevel, CooperatingBlocks) {
  // 200 rows an expert; an odd number of feature blocks in the first product, and half a block in the
  // second.
  check({{6400, 320, 192, 128, 4}, DType::kBF16}, "cooperative");
}

TEST_F(CudaPersistentLevel, TheSecondProductBesideTheFirst) {
  // 100 and 200 rows an expert, and 640 items.
  check({{3200, 1280, 64, 128, 4}, DType::kBF16}, "begun on finished row tiles");
  check({{6400, 1280, 64, 128, 4}, DType::kBF16}, "begun on finished row tiles");
}

}  // namespace
}  // namespace moe::cuda
