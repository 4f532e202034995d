// route_rows against softmax_top_k and build_permutation, which have tests of their own.
#include "cuda/ops/routing.h"

#include <limits>

#include "core/rng.h"
#include "cuda/device_test.h"
#include "cuda/ops/router.h"

namespace moe::cuda {
namespace {

class CudaRouting : public CudaTest {
 protected:
  void check(const std::vector<float>& logits, std::int64_t experts, std::int64_t top_k) {
    const std::int64_t tokens = static_cast<std::int64_t>(logits.size()) / experts;
    const std::int64_t routed = tokens * top_k;
    SCOPED_TRACE(testing::Message() << "T=" << tokens << " E=" << experts << " K=" << top_k);
    const DeviceArray<float> given(device(), logits);
    const std::int64_t scratch = permutation_scratch(routed, experts, device().facts());
    struct Result {
      DeviceArray<std::int32_t> idx;
      DeviceArray<float> weights;
      DeviceArray<std::int32_t> offsets, dst, scratch;
      [[nodiscard]] Permutation views() const {
        return {offsets.data(), dst.data(), scratch.data()};
      }
    };
    const auto result = [&] {
      return Result{DeviceArray<std::int32_t>(device(), routed),
                    DeviceArray<float>(device(), routed),
                    DeviceArray<std::int32_t>(device(), experts + 1),
                    DeviceArray<std::int32_t>(device(), routed),
                    DeviceArray<std::int32_t>(device(), scratch)};
    };
    const Result want = result();
    softmax_top_k(given.data(), tokens, experts, top_k, want.idx.data(), want.weights.data(),
                  stream());
    build_permutation(want.idx.data(), routed, experts, want.views(), device().facts(), stream());
    const Result got = result();
    for (int repeat = 0; repeat < 2; ++repeat) {  // the second call finds the first one's leftovers
      route_rows(given.data(), tokens, experts, top_k, got.idx.data(), got.weights.data(),
                 got.views(), device().facts(), stream());
      ASSERT_EQ(got.idx.download(), want.idx.download());
      ASSERT_EQ(got.weights.download(), want.weights.download());
      ASSERT_EQ(got.offsets.download(), want.offsets.download());
      ASSERT_EQ(got.dst.download(), want.dst.download());
    }
    EXPECT_TRUE(given.intact() && got.idx.intact() && got.weights.intact() &&
                got.offsets.intact() && got.dst.intact() && got.scratch.intact());
  }

  static std::vector<float> random_logits(std::int64_t tokens, std::int64_t experts) {
    std::vector<float> logits(static_cast<std::size_t>(tokens * experts));
    for (std::size_t i = 0; i < logits.size(); ++i) {
      logits[i] = static_cast<float>(random_normal(5, static_cast<std::uint64_t>(experts), i));
    }
    return logits;
  }
};

TEST_F(CudaRouting, AnyNumberOfTokensAndExperts) {
  // One block, a few small ones, all multiprocessors with one token a warp and with several.
  for (const std::int64_t tokens : {1, 7, 8, 9, 33, 300, 1057, 4224, 5000}) {
    for (const std::int64_t experts : {1, 3, 8, 40, 130, 256, 511, 1024}) {
      for (const std::int64_t top_k : {1, 2, 8, 40}) {
        if (top_k <= experts) check(random_logits(tokens, experts), experts, top_k);
      }
    }
  }
  check(random_logits(16384, 256), 256, 8);
}

TEST_F(CudaRouting, CountsPastSixteenBits) {
  check(random_logits(65535, 8), 8, 2);
  check(random_logits(65536, 8), 8, 2);
  check(std::vector<float>(70000 * 4, 1.0F), 4, 1);  // expert 0 takes all
  check(random_logits(66000, 64), 64, 6);
}

TEST_F(CudaRouting, TiesAndSkew) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const std::int64_t tokens : {5, 500, 6000}) {
    check(std::vector<float>(static_cast<std::size_t>(tokens * 256), 0.5F), 256, 8);
    check(std::vector<float>(static_cast<std::size_t>(tokens * 32), kNan), 32, 3);
    std::vector<float> coarse = random_logits(tokens, 128);
    for (std::size_t i = 0; i < coarse.size(); ++i) {
      coarse[i] = i % 128 == 127 ? 9.0F : static_cast<float>(static_cast<int>(coarse[i]));
    }
    check(coarse, 128, 8);
  }
}

}  // namespace
}  // namespace moe::cuda
