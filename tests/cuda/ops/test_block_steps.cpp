// What the blocks of real models add to routing, permuting, activating and combining, against loops on
// the host.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/rng.h"
#include "core/scalar.h"
#include "cuda/device_test.h"
#include "cuda/ops/activation.h"
#include "cuda/ops/router.h"
#include "cuda/ops/routing.h"
#include "reference/reference.h"

namespace moe::cuda {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

template <class Element>
constexpr DType kTypeOf = sizeof(Element) == 4 ? DType::kF32 : DType::kBF16;

template <class Element>
std::vector<Element> normal(std::int64_t count, std::uint64_t stream, double scale = 1) {
  std::vector<Element> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = from_float<Element>(static_cast<float>(scale * random_normal(31, stream, i)));
  }
  return values;
}

/// One rounding to the stored type, and a few units in the last place of fp32 before it.
template <class Element>
double tolerance(double want) {
  return (sizeof(Element) == 4 ? 4e-6 : 0x1p-8) * std::abs(want) + 1e-6;
}

class CudaBlockSteps : public CudaTest {
 protected:
  struct Sorted {
    DeviceArray<std::int32_t> idx;
    DeviceArray<float> weights;
    DeviceArray<std::int32_t> offsets, dst, scratch;
    [[nodiscard]] Permutation views() const { return {offsets.data(), dst.data(), scratch.data()}; }
    [[nodiscard]] bool intact() const {
      return idx.intact() && weights.intact() && offsets.intact() && dst.intact() &&
             scratch.intact();
    }
  };
  Sorted sorted(std::int64_t routed, std::int64_t experts) {
    return {DeviceArray<std::int32_t>(device(), routed), DeviceArray<float>(device(), routed),
            DeviceArray<std::int32_t>(device(), experts + 1),
            DeviceArray<std::int32_t>(device(), routed),
            DeviceArray<std::int32_t>(device(),
                                      permutation_scratch(routed, experts, device().facts()))};
  }

  /// The routed experts' slots are those without a shared expert, its parts follow, and the rows are
  /// sorted as build_permutation() sorts them.
  void check_shared(const char* router, std::int64_t tokens, std::int64_t experts,
                    std::int64_t top_k, int parts, bool with_switch) {
    SCOPED_TRACE(testing::Message() << router << " T=" << tokens << " E=" << experts
                                    << " K=" << top_k << " P=" << parts);
    const RouterRule rule = RouterRule::of(parse_router(router), {});
    const DeviceArray<float> logits(device(), normal<float>(tokens * experts, 1));
    const std::vector<float> factors = normal<float>(tokens, 2);
    const DeviceArray<float> switch_weights(device(), factors);
    const SharedSlots shared{parts, with_switch ? switch_weights.data() : nullptr};
    const std::int64_t slots = top_k + parts;
    const DeviceArray<std::int32_t> alone_idx(device(), tokens * top_k);
    const DeviceArray<float> alone_weights(device(), tokens * top_k);
    choose_experts(rule, logits.data(), tokens, experts, top_k, alone_idx.data(),
                   alone_weights.data(), stream());
    const std::vector<std::int32_t> routed_idx = alone_idx.download();
    const std::vector<float> routed_weights = alone_weights.download();
    std::vector<std::int32_t> want_idx;
    std::vector<float> want_weights;
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t k = 0; k < slots; ++k) {
        const auto at = static_cast<std::size_t>(t * top_k + k);
        want_idx.push_back(k < top_k ? routed_idx[at]
                                     : static_cast<std::int32_t>(experts + k - top_k));
        want_weights.push_back(k < top_k     ? routed_weights[at]
                               : with_switch ? factors[static_cast<std::size_t>(t)]
                                             : 1.0F);
      }
    }
    const Sorted chosen = sorted(tokens * slots, experts + parts);
    choose_experts(rule, logits.data(), tokens, experts, top_k, chosen.idx.data(),
                   chosen.weights.data(), stream(), shared);
    ASSERT_EQ(chosen.idx.download(), want_idx);
    ASSERT_EQ(chosen.weights.download(), want_weights);
    build_permutation(chosen.idx.data(), tokens * slots, experts + parts, chosen.views(),
                      device().facts(), stream());
    const Sorted got = sorted(tokens * slots, experts + parts);
    route_rows(logits.data(), tokens, experts, top_k, got.idx.data(), got.weights.data(),
               got.views(), device().facts(), stream(), rule, shared);
    ASSERT_EQ(got.idx.download(), want_idx);
    ASSERT_EQ(got.weights.download(), want_weights);
    ASSERT_EQ(got.offsets.download(), chosen.offsets.download());
    ASSERT_EQ(got.dst.download(), chosen.dst.download());
    EXPECT_TRUE(got.intact() && chosen.intact());
  }

  template <class Element>
  void check_activation(const char* name, std::int64_t intermediate, std::int64_t width,
                        bool biased, std::int64_t misaligned) {
    SCOPED_TRACE(testing::Message() << name << " I=" << intermediate << " of " << width
                                    << " biased " << biased << " offset " << misaligned);
    const Activation activation = parse_activation(name);
    const std::int64_t matrices = activation.gated() ? 2 : 1;
    // Rows of six experts, the last two of a shared one, some without rows.
    const std::vector<std::int32_t> offsets = {0, 3, 3, 40, 41, 41, 47};
    constexpr std::int64_t kExperts = 4;
    const std::int64_t rows = offsets.back();
    std::vector<Element> values = normal<Element>(rows * matrices * width, 3, 2);
    values[0] = from_float<Element>(kNan);
    const std::vector<float> gate_bias = normal<float>(kExperts * intermediate, 4);
    const std::vector<float> up_bias = normal<float>(kExperts * intermediate, 5);
    const DeviceArray<float> on_gate_bias(device(), gate_bias, misaligned);
    const DeviceArray<float> on_up_bias(device(), up_bias, misaligned);
    const DeviceArray<std::int32_t> on_offsets(device(), offsets);
    ActivationBias bias;
    if (biased) {
      bias = {.gate = activation.gated() ? on_gate_bias.data() : nullptr,
              .up = on_up_bias.data(),
              .expert_offsets = on_offsets.data(),
              .experts = 6,
              .biased = kExperts,
              .columns = intermediate};
    }
    const DeviceArray<Element> in(device(), values, misaligned);
    // In two pieces: the second begins within an expert.
    for (const auto& [first, count] : {std::pair<std::int64_t, std::int64_t>{0, 17}, {17, 30}}) {
      Element* const at = in.data() + first * matrices * width;
      activate_rows(activation, bias,
                    {.dtype = kTypeOf<Element>,
                     .gate_up = at,
                     .first_row = first,
                     .rows = count,
                     .width = width,
                     .act = at,
                     .act_stride = matrices * width},
                    stream());
    }
    const std::vector<Element> got = in.download();
    EXPECT_TRUE(in.intact());
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto expert =
          std::upper_bound(offsets.begin(), offsets.end(), row) - offsets.begin() - 1;
      for (std::int64_t i = 0; i < width; ++i) {
        const auto add = [&](const std::vector<float>& from) {
          return biased && expert < kExperts && i < intermediate
                     ? static_cast<double>(
                           from[static_cast<std::size_t>(expert * intermediate + i)])
                     : 0.0;
        };
        const auto at = static_cast<std::size_t>(row * matrices * width + i);
        const double up =
            to_float(values[at + static_cast<std::size_t>((matrices - 1) * width)]) + add(up_bias);
        const double gate = activation.gated() ? to_float(values[at]) + add(gate_bias) : 0;
        if (std::isnan(gate) || std::isnan(up)) {
          ASSERT_TRUE(std::isnan(to_float(got[at])));
          continue;
        }
        const double want = reference::activation_value(activation, gate, up).value;
        ASSERT_LE(std::abs(to_float(got[at]) - want), tolerance<Element>(want))
            << "row " << row << " column " << i << " gate " << gate << " up " << up;
      }
    }
  }

  template <class Element>
  void check_rows(std::int64_t tokens, std::int64_t top_k, std::int64_t hidden,
                  std::int64_t misaligned) {
    SCOPED_TRACE(testing::Message() << "T=" << tokens << " K=" << top_k << " H=" << hidden);
    constexpr std::int64_t kExperts = 7;  // of which the last two have no bias
    constexpr std::int64_t kBiased = 5;
    std::vector<std::int32_t> idx(static_cast<std::size_t>(tokens * top_k));
    for (std::size_t i = 0; i < idx.size(); ++i) {
      idx[i] = static_cast<std::int32_t>(random_bits(6, 0, i) % (kExperts + 2)) - 2;
      idx[i] = std::max(idx[i], -1);
    }
    for (std::int64_t k = 0; k < top_k; ++k)
      idx[static_cast<std::size_t>(k)] = -1;  // all of token 0
    const std::vector<float> weights = normal<float>(tokens * top_k, 7);
    const std::vector<Element> x = normal<Element>(tokens * hidden, 8);
    const std::vector<float> bias = normal<float>(kBiased * hidden, 9);
    const Sorted at = sorted(tokens * top_k, kExperts);
    device().copy_from_host(at.idx.data(), idx.data(), idx.size() * sizeof(idx[0]));
    device().copy_from_host(at.weights.data(), weights.data(), weights.size() * sizeof(float));
    build_permutation(at.idx.data(), tokens * top_k, kExperts, at.views(), device().facts(),
                      stream());
    const std::vector<std::int32_t> dst = at.dst.download();
    // Rows that nothing owns keep their NaN.
    const DeviceArray<Element> on_x(device(), x, misaligned);
    const DeviceArray<Element> copied(device(), tokens * top_k * hidden);
    const DeviceArray<Element> scaled(device(), tokens * top_k * hidden);
    permute_rows(on_x.data(), at.dst.data(), tokens, top_k,
                 hidden * static_cast<std::int64_t>(sizeof(Element)), copied.data(), stream(),
                 Slots::kSome);
    permute_scaled_rows(kTypeOf<Element>, on_x.data(), at.dst.data(), at.weights.data(), tokens,
                        top_k, hidden, scaled.data(), stream());
    const DeviceArray<float> on_bias(device(), bias, misaligned);
    const DeviceArray<Element> y(device(), tokens * hidden, misaligned);
    const DeviceArray<Element> y_of_ones(device(), tokens * hidden);
    unpermute_rows(kTypeOf<Element>, copied.data(), at.dst.data(), at.weights.data(), tokens, top_k,
                   hidden, y.data(), stream(),
                   {.topk_idx = at.idx.data(), .row_bias = on_bias.data(), .biased = kBiased});
    unpermute_rows(kTypeOf<Element>, scaled.data(), at.dst.data(), nullptr, tokens, top_k, hidden,
                   y_of_ones.data(), stream(), {.topk_idx = at.idx.data()});
    const std::vector<Element> got_copied = copied.download();
    const std::vector<Element> got_scaled = scaled.download();
    const std::vector<Element> got_y = y.download();
    const std::vector<Element> got_ones = y_of_ones.download();
    EXPECT_TRUE(at.intact() && copied.intact() && scaled.intact() && y.intact() &&
                y_of_ones.intact());
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t h = 0; h < hidden; ++h) {
        const float value = to_float(x[static_cast<std::size_t>(t * hidden + h)]);
        float sum = 0;
        float ones = 0;
        double size = 0;
        for (std::int64_t k = 0; k < top_k; ++k) {
          const auto slot = static_cast<std::size_t>(t * top_k + k);
          const std::int32_t expert = idx[slot];
          ASSERT_EQ(dst[slot] < 0, expert < 0);
          if (expert < 0) continue;
          const auto row = static_cast<std::size_t>(dst[slot] * hidden + h);
          ASSERT_EQ(to_float(got_copied[row]), value);
          ASSERT_EQ(to_float(got_scaled[row]),
                    to_float(from_float<Element>(weights[slot] * value)));
          const float added =
              expert < kBiased ? bias[static_cast<std::size_t>(expert * hidden + h)] : 0.0F;
          sum += weights[slot] * (value + added);
          ones += to_float(got_scaled[row]);
          size +=
              static_cast<double>(std::abs(weights[slot]) * (std::abs(value) + std::abs(added)));
        }
        const auto out = static_cast<std::size_t>(t * hidden + h);
        ASSERT_LE(std::abs(to_float(got_y[out]) - sum), tolerance<Element>(sum) + 1e-6 * size)
            << "token " << t << " column " << h;
        ASSERT_LE(std::abs(to_float(got_ones[out]) - ones), tolerance<Element>(ones) + 1e-6 * size);
        if (t == 0) ASSERT_EQ(to_float(got_y[out]), 0);
      }
    }
  }
};

TEST_F(CudaBlockSteps, TheSharedExpertsPartsFollowTheChosenOnes) {
  for (const char* router : {"softmax", "sigmoid,scale=2.5", "sparsemixer"}) {
    for (const std::int64_t tokens : {1, 9, 300, 4230}) {
      check_shared(router, tokens, 12, 3, 1, false);
      check_shared(router, tokens, 256, 8, 2, true);
    }
  }
  check_shared("softmax", 70000, 8, 2, 3, true);  // counts past sixteen bits
  check_shared("softmax", 40, 984, 40, 40, false);
  check_shared("softmax,raw", 65, 1000, 22, 24, true);
}

TEST_F(CudaBlockSteps, GivenRoutesAreTakenAndChecked) {
  constexpr std::int64_t kExperts = 11;
  for (const std::int64_t tokens : {1, 33, 3000}) {
    for (const int parts : {0, 2}) {
      constexpr std::int64_t kTopK = 3;
      constexpr std::int32_t kOdd[] = {-1,
                                       -7,
                                       11,
                                       12,
                                       std::numeric_limits<std::int32_t>::max(),
                                       std::numeric_limits<std::int32_t>::min()};
      std::vector<std::int32_t> given(static_cast<std::size_t>(tokens * kTopK));
      std::vector<float> weights = normal<float>(tokens * kTopK, 11);
      for (std::size_t i = 0; i < given.size(); ++i) {
        // Often the expert of the slot before.
        given[i] =
            i % 3 == 1 ? given[i - 1] : static_cast<std::int32_t>(random_bits(12, 0, i) % kExperts);
        if (i % 5 == 4) {
          given[i] = kOdd[i / 5 % std::size(kOdd)];
          weights[i] = kNan;
        }
      }
      const DeviceArray<std::int32_t> on_given(device(), given);
      const DeviceArray<float> on_weights(device(), weights);
      const std::int64_t slots = kTopK + parts;
      const Sorted got = sorted(tokens * slots, kExperts + parts);
      take_routes({on_given.data(), on_weights.data()}, tokens, kExperts, kTopK, got.idx.data(),
                  got.weights.data(), stream(), {parts, nullptr});
      build_permutation(got.idx.data(), tokens * slots, kExperts + parts, got.views(),
                        device().facts(), stream());
      std::vector<std::int32_t> want_idx;
      std::vector<float> want_weights;
      for (std::int64_t t = 0; t < tokens; ++t) {
        for (std::int64_t k = 0; k < slots; ++k) {
          const auto at = static_cast<std::size_t>(t * kTopK + k);
          const bool shared = k >= kTopK;
          const bool used = shared || (given[at] >= 0 && given[at] < kExperts);
          want_idx.push_back(shared ? static_cast<std::int32_t>(kExperts + k - kTopK)
                             : used ? given[at]
                                    : -1);
          want_weights.push_back(shared ? 1.0F : used ? weights[at] : 0.0F);
        }
      }
      ASSERT_EQ(got.idx.download(), want_idx);
      ASSERT_EQ(got.weights.download(), want_weights);
      std::vector<std::int32_t> offsets(kExperts + static_cast<std::size_t>(parts) + 1);
      for (const std::int32_t expert : want_idx) {
        if (expert >= 0) ++offsets[static_cast<std::size_t>(expert) + 1];
      }
      for (std::size_t e = 1; e < offsets.size(); ++e) offsets[e] += offsets[e - 1];
      ASSERT_EQ(got.offsets.download(), offsets);
      std::vector<std::int32_t> want_dst;
      for (const std::int32_t expert : want_idx) {
        want_dst.push_back(expert < 0 ? -1 : offsets[static_cast<std::size_t>(expert)]++);
      }
      ASSERT_EQ(got.dst.download(), want_dst);
      EXPECT_TRUE(got.intact());
    }
  }
}

TEST_F(CudaBlockSteps, TheSwitchIsASigmoid) {
  for (const std::int64_t hidden : {1, 33, 72, 2048}) {
    for (const std::int64_t misaligned : {0, 1}) {
      const std::int64_t tokens = 19;
      const std::vector<BFloat16> x = normal<BFloat16>(tokens * hidden, 13);
      const std::vector<BFloat16> w =
          normal<BFloat16>(hidden, 14, 1 / std::sqrt(static_cast<double>(hidden)));
      const DeviceArray<BFloat16> on_x(device(), x, misaligned);
      const DeviceArray<BFloat16> on_w(device(), w);
      const DeviceArray<float> out(device(), tokens);
      shared_switch_weights(DType::kBF16, on_x.data(), on_w.data(), tokens, hidden, out.data(),
                            stream());
      const std::vector<float> got = out.download();
      for (std::int64_t t = 0; t < tokens; ++t) {
        double sum = 0;
        for (std::int64_t h = 0; h < hidden; ++h) {
          sum += static_cast<double>(to_float(x[static_cast<std::size_t>(t * hidden + h)])) *
                 to_float(w[static_cast<std::size_t>(h)]);
        }
        ASSERT_NEAR(got[static_cast<std::size_t>(t)], 1 / (1 + std::exp(-sum)), 1e-5);
      }
      EXPECT_TRUE(out.intact());
    }
  }
}

TEST_F(CudaBlockSteps, EveryActivationWithAndWithoutBiases) {
  for (const char* name : {"swiglu", "swiglu,alpha=1.702,limit=2,up=1", "geglu", "relu2"}) {
    for (const bool biased : {false, true}) {
      for (const std::int64_t misaligned : {0, 1}) {
        check_activation<BFloat16>(name, 40, 40, biased, misaligned);
        check_activation<BFloat16>(name, 37, 40, biased, misaligned);  // as level 7 pads
        check_activation<float>(name, 36, 36, biased, misaligned);
        check_activation<float>(name, 5, 5, biased, misaligned);
        check_activation<BFloat16>(name, 520, 520, biased, misaligned);
      }
    }
    // So wide that a thread takes several rows, within an expert and beyond it.
    check_activation<BFloat16>(name, 40003, 40003, true, 0);
  }
  check_activation<BFloat16>("swiglu,alpha=1.702,limit=2,up=1", 159998, 160000, true, 0);
}

TEST_F(CudaBlockSteps, RowsOfSomeSlotsScaledBiasedAndSummed) {
  for (const std::int64_t top_k : {1, 2, 3, 9}) {
    for (const std::int64_t hidden : {1, 36, 72, 1000}) {
      check_rows<BFloat16>(33, top_k, hidden, 0);
      check_rows<BFloat16>(5, top_k, hidden, 1);
      check_rows<float>(17, top_k, hidden, 0);
    }
  }
}

}  // namespace
}  // namespace moe::cuda
