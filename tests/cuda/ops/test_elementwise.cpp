// SwiGLU and the weight gather against loops on the host.
#include <cmath>

#include "core/rng.h"
#include "core/scalar.h"
#include "cuda/device_test.h"
#include "cuda/ops/gather.h"
#include "cuda/ops/swiglu.h"

namespace moe::cuda {
namespace {

template <class Element>
constexpr DType kTypeOf = sizeof(Element) == 4 ? DType::kF32 : DType::kBF16;

/// Normal values with the extremes that an activation meets sprinkled in.
template <class Element>
std::vector<Element> activations(std::int64_t count) {
  constexpr float kExtremes[] = {0.0F,   -0.0F,    30.0F, -30.0F, 88.0F,
                                 -88.0F, -1000.0F, 3e38F, -3e38F};
  std::vector<Element> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float value = i % 13 == 5 ? kExtremes[i / 13 % std::size(kExtremes)]
                                    : static_cast<float>(3 * random_normal(11, 0, i));
    values[i] = from_float<Element>(value);
  }
  return values;
}

double silu_of(double value) {
  return value / (1 + std::exp(-value));
}

/// One rounding to the stored type, and a few units in the last place of fp32 before it. What is
/// invisible beside any activation may be flushed to 0: silu of a very negative number.
template <class Element>
void expect_close(Element got, double want) {
  const double relative = sizeof(Element) == 4 ? 2e-6 : 0x1p-8;
  ASSERT_LE(std::abs(to_float(got) - want), relative * std::abs(want) + 1e-29)
      << "got " << to_float(got) << ", want " << want;
}

class CudaElementwise : public CudaTest {
 protected:
  template <class Element>
  void check_swiglu(std::int64_t rows, std::int64_t intermediate, std::int64_t misaligned,
                    bool in_place) {
    SCOPED_TRACE(testing::Message() << rows << " x " << intermediate << " in place " << in_place);
    std::vector<Element> gate_up = activations<Element>(rows * 2 * intermediate);
    for (std::int64_t r = 0; r < rows; ++r) {  // up: plain normal, so that products stay finite
      for (std::int64_t i = 0; i < intermediate; ++i) {
        const auto at = static_cast<std::size_t>(r * 2 * intermediate + intermediate + i);
        gate_up[at] = from_float<Element>(static_cast<float>(random_normal(12, 0, at)));
      }
    }
    const DeviceArray<Element> given(device(), gate_up, misaligned);
    const std::int64_t stride = in_place ? 2 * intermediate : intermediate;
    const DeviceArray<Element> act(device(), rows * stride, misaligned);
    Element* const target = in_place ? given.data() : act.data();
    swiglu_rows(kTypeOf<Element>, given.data(), rows, intermediate, target, stride, stream());
    const std::vector<Element> got = in_place ? given.download() : act.download();
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t i = 0; i < intermediate; ++i) {
        const auto at = static_cast<std::size_t>(r * 2 * intermediate + i);
        const double gate = to_float(gate_up[at]);
        const double up = to_float(gate_up[at + static_cast<std::size_t>(intermediate)]);
        const double want = silu_of(gate) * up;
        if (std::abs(want) > 3.3e38) continue;  // beyond fp32
        ASSERT_NO_FATAL_FAILURE(expect_close(got[static_cast<std::size_t>(r * stride + i)], want))
            << "gate " << gate << " up " << up;
      }
    }
    EXPECT_TRUE(given.intact() && act.intact());
  }
};

TEST_F(CudaElementwise, SwigluOfAnyShape) {
  for (const std::int64_t rows : {1, 3, 40}) {
    for (const std::int64_t intermediate : {1, 5, 8, 33, 96, 768, 1000, 2048, 2880}) {
      for (const bool in_place : {false, true}) {
        check_swiglu<BFloat16>(rows, intermediate, 0, in_place);
        check_swiglu<BFloat16>(rows, intermediate, 1, in_place);
        check_swiglu<float>(rows, intermediate, 0, in_place);
      }
    }
  }
}

TEST_F(CudaElementwise, SiluThenMultiply) {
  for (const std::int64_t count : {1, 7, 8, 1024, 4099}) {
    for (const std::int64_t misaligned : {0, 1}) {
      const std::vector<BFloat16> values = activations<BFloat16>(count);
      const DeviceArray<BFloat16> given(device(), values, misaligned);
      const DeviceArray<BFloat16> activated(device(), count);
      const DeviceArray<BFloat16> product(device(), count);
      silu(DType::kBF16, given.data(), count, activated.data(), stream());
      multiply(DType::kBF16, activated.data(), activated.data(), count, product.data(), stream());
      const std::vector<BFloat16> got = activated.download();
      const std::vector<BFloat16> squares = product.download();
      for (std::size_t i = 0; i < got.size(); ++i) {
        ASSERT_NO_FATAL_FAILURE(expect_close(got[i], silu_of(to_float(values[i]))));
        ASSERT_EQ(squares[i], to_bfloat16(to_float(got[i]) * to_float(got[i])));
      }
      EXPECT_TRUE(activated.intact() && product.intact());
    }
  }
}

TEST_F(CudaElementwise, GathersSlicesOfMatrices) {
  for (const std::int64_t columns : {1, 8, 33, 64, 1024}) {
    for (const std::int64_t misaligned : {0, 1}) {
      const std::int64_t experts = 3;
      const std::int64_t height = 37;
      const RowSlice slice{5, 19, columns};
      const std::int64_t stride = slice.count * columns + 16;  // a gap that must stay untouched
      std::vector<std::uint16_t> weights(static_cast<std::size_t>(experts * height * columns));
      for (std::size_t i = 0; i < weights.size(); ++i) {
        weights[i] = static_cast<std::uint16_t>(random_bits(13, 0, i));
      }
      const std::vector<std::int32_t> idx = {2, 0, 0, 1, 2};
      const auto rows = static_cast<std::int64_t>(idx.size());
      std::vector<std::uint16_t> want(static_cast<std::size_t>(rows * stride), 0xffff);
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t from =
            (idx[static_cast<std::size_t>(r)] * height + slice.first) * columns;
        std::copy_n(weights.begin() + from, slice.count * columns, want.begin() + r * stride);
      }
      const DeviceArray<std::uint16_t> given(device(), weights, misaligned);
      const DeviceArray<std::int32_t> given_idx(device(), idx);
      const DeviceArray<std::uint16_t> out(device(), rows * stride);
      gather_weights(DType::kBF16, {.data = given.data(), .stride = height * columns},
                     given_idx.data(), rows, slice, stride, out.data(), stream());
      ASSERT_EQ(out.download(), want) << columns << " columns";
      EXPECT_TRUE(out.intact());
    }
  }
}

}  // namespace
}  // namespace moe::cuda
