// stream_router against loops and a sort on the host.
#include "cuda/ops/stream_router.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/rng.h"
#include "core/scalar.h"
#include "cuda/device_test.h"

namespace moe::cuda {
namespace {

struct Sizes {
  std::int64_t tokens, hidden, experts, top_k;
  std::int64_t misaligned = 0;  // elements from a 256-byte boundary
};

std::vector<BFloat16> normal(std::int64_t count, std::uint64_t stream) {
  std::vector<BFloat16> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = from_float<BFloat16>(static_cast<float>(random_normal(41, stream, i)));
  }
  return values;
}

class CudaStreamRouter : public CudaTest {
 protected:
  /// Everything the router writes for these inputs, checked. `ties`: experts of equal rows.
  void check(const Sizes& sizes, const std::vector<BFloat16>& x,
             const std::vector<BFloat16>& router) {
    const auto [tokens, hidden, experts, top_k, misaligned] = sizes;
    SCOPED_TRACE(testing::Message() << "T=" << tokens << " H=" << hidden << " E=" << experts
                                    << " K=" << top_k << " offset " << misaligned);
    const std::int64_t routed = tokens * top_k;
    const DeviceArray<BFloat16> given_x(device(), x, misaligned);
    const DeviceArray<BFloat16> given_router(device(), router, misaligned);
    const DeviceArray<float> logits(device(), tokens * experts);
    const DeviceArray<std::int32_t> idx(device(), routed);
    const DeviceArray<float> weights(device(), routed);
    const DeviceArray<std::int32_t> slots(device(), routed);
    const DeviceArray<ActiveExpert> active(device(), std::min(routed, experts));
    const DeviceArray<unsigned> arrivals(device(), std::vector<unsigned>(kStreamArrivals, 0));
    for (int call = 0; call < 2; ++call) {  // the second finds what the first left
      stream_router(given_x.data(), given_router.data(), tokens, hidden, experts, top_k,
                    {.logits = logits.data(),
                     .topk_idx = idx.data(),
                     .topk_weights = weights.data(),
                     .slots = slots.data(),
                     .active = active.data(),
                     .arrivals = arrivals.data()},
                    stream());
    }
    ASSERT_EQ(arrivals.download(), std::vector<unsigned>(kStreamArrivals, 0));
    EXPECT_TRUE(logits.intact() && idx.intact() && weights.intact() && slots.intact() &&
                active.intact() && arrivals.intact());
    const std::vector<float> got_logits = logits.download();
    check_logits(sizes, x, router, got_logits);
    const std::vector<std::int32_t> got_idx = idx.download();
    check_choices(sizes, got_logits, got_idx, weights.download());
    check_lists(sizes, got_idx, slots.download(), active.download());
  }

  static void check_logits(const Sizes& sizes, const std::vector<BFloat16>& x,
                           const std::vector<BFloat16>& router, const std::vector<float>& got) {
    for (std::int64_t t = 0; t < sizes.tokens; ++t) {
      for (std::int64_t e = 0; e < sizes.experts; ++e) {
        double want = 0;
        for (std::int64_t h = 0; h < sizes.hidden; ++h) {
          want += static_cast<double>(to_float(x[static_cast<std::size_t>(t * sizes.hidden + h)])) *
                  to_float(router[static_cast<std::size_t>(e * sizes.hidden + h)]);
        }
        const float value = got[static_cast<std::size_t>(t * sizes.experts + e)];
        if (std::isnan(want)) {
          ASSERT_TRUE(std::isnan(value)) << "token " << t << " expert " << e;
          continue;
        }
        ASSERT_LE(std::abs(value - want), 4 * 0x1p-24 * static_cast<double>(sizes.hidden) + 1e-6)
            << "token " << t << " expert " << e;
      }
    }
  }

  /// From the device's own logits, so that rounding does not decide.
  static void check_choices(const Sizes& sizes, const std::vector<float>& logits,
                            const std::vector<std::int32_t>& idx,
                            const std::vector<float>& weights) {
    for (std::int64_t t = 0; t < sizes.tokens; ++t) {
      const auto rank = [&](std::int32_t e) {
        const float logit = logits[static_cast<std::size_t>(t * sizes.experts + e)];
        return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
      };
      std::vector<std::int32_t> order(static_cast<std::size_t>(sizes.experts));
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](std::int32_t a, std::int32_t b) { return rank(a) > rank(b); });
      const auto weigh = [&](std::int32_t e) {
        return rank(e) == rank(order[0]) ? 1.0
                                         : std::exp(static_cast<double>(rank(e)) - rank(order[0]));
      };
      double sum = 0;
      for (std::int64_t k = 0; k < sizes.top_k; ++k)
        sum += weigh(order[static_cast<std::size_t>(k)]);
      for (std::int64_t k = 0; k < sizes.top_k; ++k) {
        const auto slot = static_cast<std::size_t>(t * sizes.top_k + k);
        const std::int32_t expert = order[static_cast<std::size_t>(k)];
        ASSERT_EQ(idx[slot], expert) << "token " << t << " slot " << k;
        ASSERT_NEAR(weights[slot], weigh(expert) / sum, 1e-6) << "token " << t << " slot " << k;
      }
    }
  }

  static void check_lists(const Sizes& sizes, const std::vector<std::int32_t>& idx,
                          const std::vector<std::int32_t>& slots,
                          const std::vector<ActiveExpert>& active) {
    std::size_t many = 0;  // those with more than eight tokens come before the others
    for (std::int32_t e = 0; e < sizes.experts; ++e) {
      if (std::count(idx.begin(), idx.end(), e) > 8) ++many;
    }
    std::size_t entry_of_many = 0;
    std::size_t entry_of_few = many;
    std::int32_t first = 0;
    for (std::int32_t e = 0; e < sizes.experts; ++e) {
      std::vector<std::int32_t> want;
      for (std::size_t slot = 0; slot < idx.size(); ++slot) {
        if (idx[slot] == e) want.push_back(static_cast<std::int32_t>(slot));
      }
      if (want.empty()) continue;
      const std::size_t entry = want.size() > 8 ? entry_of_many++ : entry_of_few++;
      ASSERT_LT(entry, active.size());
      ASSERT_EQ(active[entry].expert, e);
      ASSERT_EQ(active[entry].first, first);
      ASSERT_EQ(active[entry].tokens, static_cast<std::int32_t>(want.size()));
      const auto begin = slots.begin() + first;
      ASSERT_EQ(std::vector<std::int32_t>(begin, begin + active[entry].tokens), want);
      first += active[entry].tokens;
    }
    for (std::size_t entry = entry_of_few; entry < active.size(); ++entry) {
      ASSERT_EQ(active[entry].tokens, 0) << "entry " << entry;
    }
  }

  void check(const Sizes& sizes) {
    check(sizes, normal(sizes.tokens * sizes.hidden, 0), normal(sizes.experts * sizes.hidden, 1));
  }
};

TEST_F(CudaStreamRouter, AnySizes) {
  for (const std::int64_t tokens : {1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 64, 100, 255, 256}) {
    check({tokens, 64, 16, 4});
    check({tokens, 200, 8, 2});    // the last step is not full
    check({tokens, 33, 7, 3, 1});  // element by element
  }
  for (const std::int64_t experts :
       {1, 2, 8, 9, 31, 32, 33, 64, 100, 128, 129, 256, 257, 512, 1024}) {
    check({5, 96, experts, std::min<std::int64_t>(experts, 8)});
    check({40, 72, experts, 1});
  }
  check({3, 64, 40, 40});  // every expert, more than a warp has lanes
  check({256, 40, 64, 22});
  check({1, 1, 1, 1, 1});
  check({1, 7168, 256, 8});
  check({17, 2880, 128, 4});
  check({64, 64, 16, 4, 3});
}

TEST_F(CudaStreamRouter, TiesGoToTheLowestExpert) {
  const Sizes sizes{20, 64, 48, 6};
  const std::vector<BFloat16> one = normal(sizes.hidden, 3);
  std::vector<BFloat16> router;
  for (std::int64_t e = 0; e < sizes.experts; ++e)
    router.insert(router.end(), one.begin(), one.end());
  check(sizes, normal(sizes.tokens * sizes.hidden, 4), router);
}

TEST_F(CudaStreamRouter, NanStaysInItsToken) {
  const Sizes sizes{19, 96, 24, 3};
  std::vector<BFloat16> x = normal(sizes.tokens * sizes.hidden, 5);
  x[static_cast<std::size_t>(11 * sizes.hidden + 50)] =
      from_float<BFloat16>(std::numeric_limits<float>::quiet_NaN());
  check(sizes, x, normal(sizes.experts * sizes.hidden, 6));
}

}  // namespace
}  // namespace moe::cuda
