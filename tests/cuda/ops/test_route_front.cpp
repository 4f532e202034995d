// route_front_sm90 against the kernels that it replaces: a library product, route_rows() and
// build_row_tiles(). Values are such that every sum is exact, so that both have the same logits.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/rng.h"
#include "core/scalar.h"
#include "cuda/device_test.h"
#include "cuda/ops/gemm_cublaslt.h"
#include "cuda/ops/route_front_sm90.h"
#include "cuda/ops/routing.h"
#include "cuda/ops/tile_order.h"

namespace moe::cuda {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kLargestTile = 48;

class CudaRouteFront : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    if (device().facts().major != 9) GTEST_SKIP() << "kernels for sm_90a";
  }

  /// Multiples of 1/8 up to 1: products are multiples of 1/64, and sums of thousands are exact.
  static std::vector<float> eighths(std::int64_t count, std::uint64_t stream) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double value = std::clamp(random_normal(11, stream, i) * 0.4, -1.0, 1.0);
      values[i] = static_cast<float>(std::round(value * 8) / 8);
    }
    return values;
  }
  static std::vector<BFloat16> rounded(const std::vector<float>& values) {
    std::vector<BFloat16> bits(values.size());
    std::transform(values.begin(), values.end(), bits.begin(), from_float<BFloat16>);
    return bits;
  }

  struct Result {
    DeviceArray<std::int32_t> idx;
    DeviceArray<float> weights;
    DeviceArray<std::int32_t> offsets, dst, scratch, token, count, tickets, ready, finished;
    DeviceArray<std::int32_t> tiles;  // six numbers each
    Result(CudaDevice& device, const Shape& shape)
        : idx(device, shape.routed_rows()),
          weights(device, shape.routed_rows()),
          offsets(device, shape.experts + 1),
          dst(device, shape.routed_rows()),
          scratch(device,
                  std::max(permutation_scratch(shape.routed_rows(), shape.experts, device.facts()),
                           RouteFront::scratch(shape, device.facts()))),
          token(device, shape.routed_rows()),
          count(device, RowTiles::kCounts),
          tickets(device, RowTiles::kTickets),
          ready(device, most(shape)),
          finished(device, most(shape)),
          tiles(device, most(shape) * 6) {}
    static std::int64_t most(const Shape& shape) {
      return most_row_tiles(shape.routed_rows(), shape.experts, kLargestTile);
    }
    [[nodiscard]] Permutation permutation() const {
      return {offsets.data(), dst.data(), scratch.data()};
    }
    [[nodiscard]] RowTiles row_tiles() const {
      return {.tiles = reinterpret_cast<RowTile*>(tiles.data()),
              .count = count.data(),
              .tickets = tickets.data(),
              .ready = ready.data(),
              .row_to_token = token.data(),
              .finished = finished.data()};
    }
    [[nodiscard]] bool intact() const {
      return idx.intact() && weights.intact() && offsets.intact() && dst.intact() &&
             scratch.intact() && token.intact() && count.intact() && tickets.intact() &&
             ready.intact() && finished.intact() && tiles.intact();
    }
  };

  static void expect_equal(const Result& got, const Result& want) {
    ASSERT_EQ(got.idx.download(), want.idx.download());
    ASSERT_EQ(got.weights.download(), want.weights.download());
    ASSERT_EQ(got.offsets.download(), want.offsets.download());
    ASSERT_EQ(got.dst.download(), want.dst.download());
    ASSERT_EQ(got.token.download(), want.token.download());
    ASSERT_EQ(got.count.download(), want.count.download());
    ASSERT_EQ(got.tickets.download(), want.tickets.download());
    ASSERT_EQ(got.tiles.download(), want.tiles.download());
    ASSERT_EQ(got.ready.download(), want.ready.download());
    ASSERT_EQ(got.finished.download(), want.finished.download());
  }

  void check(const Shape& shape, const std::vector<float>& x, const std::vector<float>& router,
             const RouterRule& rule = {}) {
    SCOPED_TRACE(to_string(shape));
    const DeviceArray<BFloat16> device_x(device(), rounded(x));
    const DeviceArray<BFloat16> device_router(device(), rounded(router));
    const DeviceArray<float> logits(device(), shape.tokens * shape.experts);
    CublasLt library;
    Matmul product(library,
                   {.n = shape.experts, .k = shape.hidden, .in = DType::kBF16, .out = DType::kF32});
    product.run(device_x.data(), device_router.data(), logits.data(), shape.tokens, stream());
    const Result want(device(), shape);
    route_rows(logits.data(), shape.tokens, shape.experts, shape.top_k, want.idx.data(),
               want.weights.data(), want.permutation(), device().facts(), stream(), rule);
    build_row_tiles({.expert_offsets = want.offsets.data(),
                     .experts = shape.experts,
                     .dst_row = want.dst.data(),
                     .routed = shape.routed_rows(),
                     .top_k = shape.top_k,
                     .largest_tile = kLargestTile},
                    want.row_tiles(), stream());

    RouteFront front(shape, rule, device_router.data(), device().facts());
    ASSERT_TRUE(front.takes(device_x.data(), shape.tokens));
    SCOPED_TRACE(to_string(front.plan(shape.tokens)));
    const Result got(device(), shape);
    for (int repeat = 0; repeat < 2; ++repeat) {  // the second call finds the first one's leftovers
      front.run({.x = device_x.data(),
                 .tokens = shape.tokens,
                 .topk_idx = got.idx.data(),
                 .topk_weights = got.weights.data(),
                 .permutation = got.permutation(),
                 .row_tiles = got.row_tiles(),
                 .largest_tile = kLargestTile},
                stream());
      expect_equal(got, want);
      if (HasFatalFailure()) return;
    }
    EXPECT_TRUE(got.intact() && device_x.intact() && device_router.intact());
  }
  void check(const Shape& shape, const RouterRule& rule = {}) {
    check(shape, eighths(shape.tokens * shape.hidden, 1), eighths(shape.experts * shape.hidden, 2),
          rule);
  }
};

TEST_F(CudaRouteFront, AnyNumberOfTokensAndExperts) {
  for (const std::int64_t tokens : {1, 2, 31, 33, 100, 300, 1057, 4096, 5000}) {
    for (const std::int64_t experts : {1, 3, 8, 40, 64, 128, 200, 256}) {
      for (const std::int64_t top_k : {1, 8}) {
        if (top_k <= experts) check({tokens, 520, 8, experts, top_k});
      }
    }
  }
}

/// Small enough for the sanitizers (tools/cuda_run.sh).
TEST_F(CudaRouteFront, FewTokens) {
  check({1, 520, 8, 8, 2});
  check({70, 1032, 8, 128, 8});
  check({300, 72, 8, 256, 8});
}

TEST_F(CudaRouteFront, AnyHiddenSizeAndTopK) {
  for (const std::int64_t hidden : {8, 64, 72, 128, 1000, 2880}) {
    check({257, hidden, 8, 128, 4});
    check({1000, hidden, 8, 8, 2});
  }
  check({100, 2048, 8, 256, 256});
  check({100, 2048, 8, 40, 33});
  check({1, 7168, 8, 256, 8});
  check({64, 7168, 8, 256, 8});
  check({2048, 2048, 8, 128, 8});
  check({8192, 256, 8, 128, 8});
  check({16384, 256, 8, 256, 8});
}

TEST_F(CudaRouteFront, TiesSkewAndWhatIsNoNumber) {
  for (const std::int64_t tokens : {5, 500, 4096}) {
    const Shape shape{tokens, 128, 8, 128, 8};
    const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
    std::vector<float> x = eighths(tokens * shape.hidden, 3);
    std::vector<float> router = eighths(shape.experts * shape.hidden, 4);
    const std::vector<float> zeros(x.size(), 0.0F);
    check(shape, zeros, router);  // all logits are equal
    const std::vector<float> nans(x.size(), kNan);
    check(shape, nans, router);
    for (float& value : x) value = std::abs(value);
    std::fill(router.begin() + 77 * shape.hidden, router.begin() + 78 * shape.hidden, 1.0F);
    check(shape, x, router);  // every token takes expert 77
    // One expert that is NaN for all, tokens that are, and infinite ones of both signs.
    router[size(3 * shape.hidden + 5)] = kNan;
    x[size((tokens - 1) * shape.hidden)] = kNan;
    x[size(2 * shape.hidden + 9)] = kInfinity;
    x[size(3 * shape.hidden + 11)] = -kInfinity;
    check(shape, x, router);
  }
}

TEST_F(CudaRouteFront, AnyRule) {
  for (const char* router : {"softmax,raw", "softmax,raw,groups=8/3,scale=16",
                             "sigmoid,selection-bias,groups=8/4,scale=2.5", "softmax,bias",
                             "sqrtsoftplus,selection-bias,scale=1.5", "sparsemixer"}) {
    SCOPED_TRACE(router);
    for (const std::int64_t experts : {8, 64, 128, 256}) {
      std::vector<float> biases = eighths(experts, 5);
      const DeviceArray<float> bias(device(), biases);
      const TensorView view(bias.data(), DType::kF32, {experts});
      const RouterRule rule =
          RouterRule::of(parse_router(router), {.router_bias = view, .selection_bias = view});
      check({1057, 520, 8, experts, 2}, rule);
      if (experts >= 64) check({4096, 256, 8, experts, 8}, rule);
    }
  }
}

TEST_F(CudaRouteFront, SaysWhatItDoesNotTake) {
  const DeviceArray<BFloat16> data(device(), 300 * 64);
  const auto front = [&](std::int64_t hidden, std::int64_t experts) {
    return RouteFront({64, hidden, 8, experts, 1}, {}, data.data(), device().facts());
  };
  EXPECT_TRUE(front(64, 256).takes(data.data(), 64));
  EXPECT_FALSE(front(64, 256).takes(data.data() + 1, 64));
  EXPECT_FALSE(front(64, 257).takes(data.data(), 64));
  EXPECT_FALSE(front(60, 256).takes(data.data(), 64));
  EXPECT_FALSE(
      front(64, 256).takes(data.data(), std::int64_t{128} * device().facts().multiprocessors + 1));
}

}  // namespace

// Of an H200 of which not every group of multiprocessors has room for four clusters of four.
constexpr FrontMachine kMachine{.clusters = {132, 66, 30, 14}};

TEST(RouteFrontPlan, FillsTheDevice) {
  EXPECT_EQ(plan_front(4096, 2048, 128, kMachine), (FrontPlan{64, 2, 64}));
  EXPECT_EQ(plan_front(16384, 2048, 128, kMachine), (FrontPlan{128, 1, 128}));
  EXPECT_EQ(plan_front(8192, 7168, 256, kMachine), (FrontPlan{128, 2, 64}));
}

TEST(RouteFrontPlan, AllItsBlocksAreResident) {
  for (std::int64_t tokens = 1; tokens <= 16896; tokens += 97) {
    for (const std::int64_t hidden : {8, 64, 128, 2048, 7168}) {
      const FrontPlan plan = plan_front(tokens, hidden, 128, kMachine);
      ASSERT_GT(plan.clusters, 0) << tokens;
      ASSERT_GE(std::int64_t{plan.clusters} * plan.tile_tokens, tokens);
      ASSERT_LE(std::int64_t{plan.splits - 1} * 64, hidden);
      for (std::size_t i = 0; i < kMachine.clusters.size(); ++i) {
        if (FrontMachine::kSplits[i] == plan.splits) {
          ASSERT_LE(plan.clusters, kMachine.clusters[i]);
        }
      }
    }
  }
  EXPECT_EQ(plan_front(16897, 2048, 128, kMachine).clusters, 0);
  EXPECT_EQ(plan_front(64, 2048, 257, kMachine).clusters, 0);
}

}  // namespace moe::cuda
