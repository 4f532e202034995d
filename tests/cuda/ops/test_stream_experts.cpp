// The streaming products against fp64 loops on the host, for every way of cutting the work.
#include "cuda/ops/stream_experts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "core/rng.h"
#include "core/scalar.h"
#include "cuda/device_test.h"

namespace moe::cuda {
namespace {

struct Sizes {
  std::int64_t tokens, hidden, intermediate, experts, top_k;
  std::int64_t misaligned = 0;  // elements from a 256-byte boundary
};

std::vector<BFloat16> normal(std::int64_t count, std::uint64_t stream, double scale) {
  std::vector<BFloat16> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = from_float<BFloat16>(static_cast<float>(scale * random_normal(43, stream, i)));
  }
  return values;
}

double dot(const BFloat16* a, const BFloat16* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(to_float(a[i])) * to_float(b[i]);
  return sum;
}

/// logits[T,E] and what stream_router() makes of them.
struct HostRouting {
  std::vector<float> logits, weights;
  std::vector<std::int32_t> idx, slots;
  std::vector<ActiveExpert> active;
};

/// Random choices among the first max(spread, K) experts.
HostRouting random_routing(const Sizes& sizes, std::int64_t spread) {
  HostRouting out;
  for (std::int64_t t = 0; t < sizes.tokens; ++t) {
    std::vector<float> logits;
    for (std::int64_t e = 0; e < sizes.experts; ++e) {
      const auto i = static_cast<std::uint64_t>(t * sizes.experts + e);
      const float out_of_reach = e < std::max(spread, sizes.top_k) ? 0 : -100;
      logits.push_back(static_cast<float>(random_normal(43, 9, i)) + out_of_reach);
    }
    std::vector<std::int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    const auto logit = [&](std::int32_t e) { return logits[static_cast<std::size_t>(e)]; };
    std::sort(order.begin(), order.end(), [&](auto a, auto b) { return logit(a) > logit(b); });
    order.resize(static_cast<std::size_t>(sizes.top_k));
    float sum = 0;
    for (const std::int32_t e : order) sum += std::exp(logit(e) - logit(order[0]));
    for (const std::int32_t e : order) {
      out.weights.push_back(std::exp(logit(e) - logit(order[0])) / sum);
    }
    out.idx.insert(out.idx.end(), order.begin(), order.end());
    out.logits.insert(out.logits.end(), logits.begin(), logits.end());
  }
  for (std::int32_t e = 0; e < sizes.experts; ++e) {
    ActiveExpert expert{e, static_cast<std::int32_t>(out.slots.size()), 0};
    for (std::size_t slot = 0; slot < out.idx.size(); ++slot) {
      if (out.idx[slot] == e) out.slots.push_back(static_cast<std::int32_t>(slot));
    }
    expert.tokens = static_cast<std::int32_t>(out.slots.size()) - expert.first;
    if (expert.tokens > 0) out.active.push_back(expert);
  }
  // Behind the last: an entry without tokens is skipped, whatever expert it names.
  out.active.resize(static_cast<std::size_t>(std::min(sizes.tokens * sizes.top_k, sizes.experts)),
                    ActiveExpert{-1, -1, 0});
  return out;
}

std::vector<StreamConfig> configs() {
  std::vector<StreamConfig> all;
  for (const int tiles : {1, 2}) {
    for (const int groups : {1, 2, 4, 8}) {
      all.push_back(
          {.token_tiles = tiles, .gate_up_row_groups = groups, .down_row_groups = groups});
    }
  }
  return all;
}

class CudaStreamExperts : public CudaTest {
 protected:
  void check(const Sizes& sizes, const HostRouting& routing, const std::vector<BFloat16>& x) {
    const auto [tokens, hidden, intermediate, experts, top_k, misaligned] = sizes;
    const std::int64_t matrix = hidden * intermediate;
    const std::int64_t routed = tokens * top_k;
    const std::vector<BFloat16> gate = normal(experts * matrix, 1, 0.3);
    const std::vector<BFloat16> up = normal(experts * matrix, 2, 0.3);
    const std::vector<BFloat16> down = normal(experts * matrix, 3, 0.3);
    const DeviceArray<BFloat16> given_x(device(), x, misaligned);
    const DeviceArray<BFloat16> given_gate(device(), gate, misaligned);
    const DeviceArray<BFloat16> given_up(device(), up, misaligned);
    const DeviceArray<BFloat16> given_down(device(), down, misaligned);
    const DeviceArray<float> logits(device(), routing.logits);
    const DeviceArray<std::int32_t> slots(device(), routing.slots);
    const DeviceArray<float> weights(device(), routing.weights);
    const DeviceArray<ActiveExpert> active(device(), routing.active);
    const std::int64_t stride = (intermediate + 7) / 8 * 8;
    for (const StreamConfig& config : configs()) {
      SCOPED_TRACE(testing::Message()
                   << "T=" << tokens << " H=" << hidden << " I=" << intermediate << " E=" << experts
                   << " K=" << top_k << " offset " << misaligned << ": " << to_string(config));
      const DeviceArray<BFloat16> act(device(), routed * stride);
      const DeviceArray<BFloat16> rows(device(), routed * hidden);
      StreamExperts work{.gate = given_gate.data(),
                         .up = given_up.data(),
                         .down = given_down.data(),
                         .tokens = tokens,
                         .hidden = hidden,
                         .intermediate = intermediate,
                         .experts = experts,
                         .top_k = top_k,
                         .routing = {},
                         .act = act.data(),
                         .act_stride = stride};
      work.routing.logits = logits.data();
      work.routing.slots = slots.data();
      work.routing.topk_weights = weights.data();
      work.routing.active = active.data();
      stream_gate_up(work, given_x.data(), config, stream());
      stream_down(work, rows.data(), config, stream());
      const std::vector<BFloat16> got = act.download();
      for (std::int64_t slot = 0; slot < routed; ++slot) {
        const std::int64_t e = routing.idx[static_cast<std::size_t>(slot)];
        const BFloat16* const token = x.data() + slot / top_k * hidden;
        for (std::int64_t i = 0; i < intermediate; ++i) {
          const double g = dot(token, gate.data() + (e * intermediate + i) * hidden, hidden);
          const double u = dot(token, up.data() + (e * intermediate + i) * hidden, hidden);
          expect_near(got[static_cast<std::size_t>(slot * stride + i)], g / (1 + std::exp(-g)) * u,
                      hidden, [&] { return fmt::format("act of slot {}, {}", slot, i); });
        }
      }
      // From the device's own act: each product is judged alone.
      const std::vector<BFloat16> got_rows = rows.download();
      for (std::int64_t slot = 0; slot < routed; ++slot) {
        const std::int64_t e = routing.idx[static_cast<std::size_t>(slot)];
        for (std::int64_t h = 0; h < hidden; ++h) {
          const double product = dot(got.data() + slot * stride,
                                     down.data() + (e * hidden + h) * intermediate, intermediate);
          expect_near(got_rows[static_cast<std::size_t>(slot * hidden + h)], product, intermediate,
                      [&] { return fmt::format("row of slot {}, {}", slot, h); });
        }
      }
      EXPECT_TRUE(act.intact() && rows.intact() && given_x.intact() && active.intact() &&
                  slots.intact());
      if (HasFailure()) return;
    }
  }

  template <class Where>
  static void expect_near(BFloat16 value, double want, std::int64_t depth, Where&& where) {
    const float got = to_float(value);
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got)) << where();
      return;
    }
    const double allowed =
        0x1p-7 * std::abs(want) + 16 * 0x1p-24 * static_cast<double>(depth) + 1e-5;
    EXPECT_LE(std::abs(got - want), allowed) << where() << ": " << got << " instead of " << want;
  }

  void check(const Sizes& sizes, std::int64_t spread) {
    check(sizes, random_routing(sizes, spread), normal(sizes.tokens * sizes.hidden, 0, 1));
  }
};

TEST_F(CudaStreamExperts, FewTokens) {
  check({1, 64, 96, 4, 2}, 4);
  check({4, 136, 264, 6, 3}, 6);
  check({8, 64, 48, 5, 2}, 1);  // all on two experts
  check({3, 35, 21, 9, 4}, 9);
  check({2, 64, 64, 300, 4}, 300);
  check({4, 64, 64, 200, 8, 5}, 200);
  check({9, 72, 40, 6, 2}, 6);      // the last step and block are not full
  check({17, 33, 47, 5, 5}, 5);     // element by element
  check({24, 64, 64, 8, 2, 1}, 8);  // misaligned
  check({33, 200, 72, 40, 4}, 30);
}

TEST_F(CudaStreamExperts, ManyTokensOfOneExpert) {
  for (const std::int64_t tokens : {15, 24, 25, 40, 41, 48, 56, 64})
    check({tokens, 72, 40, 5, 1}, 1);
  // More than any number of tiles holds: the weights are streamed again.
  check({65, 40, 24, 3, 1}, 1);
  check({100, 64, 40, 6, 1}, 1);
  check({130, 40, 48, 3, 2}, 1);
}

TEST_F(CudaStreamExperts, NanStaysInItsToken) {
  const Sizes sizes{12, 64, 32, 2, 1};
  std::vector<BFloat16> x = normal(sizes.tokens * sizes.hidden, 0, 1);
  x[static_cast<std::size_t>(5 * sizes.hidden + 7)] =
      from_float<BFloat16>(std::numeric_limits<float>::quiet_NaN());
  check(sizes, random_routing(sizes, 2), x);
}

TEST(StreamConfigs, FollowTheShape) {
  EXPECT_EQ(choose_stream_config({{8, 2048, 768, 128, 8}}, 132).token_tiles, 1);
  EXPECT_EQ(choose_stream_config({{9, 2048, 768, 128, 8}}, 132).token_tiles, 2);
  const auto choose = [](std::int64_t tokens) {
    return choose_stream_config({{tokens, 2048, 768, 128, 8}}, 132);
  };
  // Few active experts give few blocks: each takes fewer features, and its warps divide their depth.
  EXPECT_EQ(choose_stream_config({{2, 512, 128, 128, 1}}, 132).gate_up_row_groups, 1);
  EXPECT_LT(choose_stream_config({{2, 2048, 768, 128, 2}}, 132).down_row_groups,
            choose(64).down_row_groups);
  EXPECT_EQ(choose(64).gate_up_row_groups, kStreamWarps);
  EXPECT_EQ(choose(64).down_row_groups, kStreamWarps);
  int groups = 0;
  for (const std::int64_t tokens : {1, 4, 16, 64, 256}) {
    EXPECT_GE(choose(tokens).down_row_groups, groups) << tokens;
    groups = choose(tokens).down_row_groups;
  }
}

}  // namespace
}  // namespace moe::cuda
