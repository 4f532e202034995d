// e4m3 quantisation against a search over all 256 values of the format.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/rng.h"
#include "core/scalar.h"
#include "cuda/device_test.h"
#include "cuda/ops/quantize_fp8.h"

namespace moe::cuda {
namespace {

/// Value of an e4m3: sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinities.
double e4m3_value(unsigned bits) {
  const unsigned exponent = bits >> 3 & 15U;
  const unsigned mantissa = bits & 7U;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<double>::quiet_NaN();
  const double magnitude = exponent == 0
                               ? std::ldexp(mantissa, -9)
                               : std::ldexp(8 + mantissa, static_cast<int>(exponent) - 10);
  return (bits & 128U) != 0 ? -magnitude : magnitude;
}

/// Distance from `value` to the nearest finite e4m3.
double nearest_distance(double value) {
  double best = std::numeric_limits<double>::infinity();
  for (unsigned bits = 0; bits < 256; ++bits) {
    const double distance = std::abs(e4m3_value(bits) - value);
    if (distance < best) best = distance;
  }
  return best;
}

class CudaQuantizeFp8 : public CudaTest {
 protected:
  template <class Element>
  void check(std::int64_t rows, std::int64_t columns, std::int64_t stride, std::int64_t offset,
             float deviation) {
    SCOPED_TRACE(testing::Message()
                 << rows << " x " << columns << " stride " << stride << " offset " << offset
                 << " of " << sizeof(Element) << " bytes");
    constexpr DType kType = sizeof(Element) == 4 ? DType::kF32 : DType::kBF16;
    std::vector<Element> values(static_cast<std::size_t>(rows * stride));
    float largest = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto value = static_cast<float>(deviation * random_normal(3, 0, i));
      values[i] = from_float<Element>(value);
      // What lies between rows is larger and must not count.
      const bool inside = static_cast<std::int64_t>(i) % stride < columns;
      if (!inside) values[i] = from_float<Element>(1e6F);
      if (inside) largest = std::max(largest, std::abs(to_float(values[i])));
    }
    const DeviceArray<Element> data(device(), values, offset);
    const DeviceArray<float> most(device(), 1);
    const DeviceArray<float> scale(device(), 1);
    const DeviceArray<unsigned char> out(device(), rows * columns, 0);
    largest_magnitude(kType, data.data(), rows, columns, stride, most.data(), stream());
    quantize_e4m3(kType, data.data(), rows, columns, stride, most.data(), out.data(), scale.data(),
                  stream());
    ASSERT_EQ(most.download()[0], largest);
    const double factor = largest == 0 ? 1 : 448.0 / largest;
    ASSERT_NEAR(scale.download()[0] * factor, 1, 1e-6);
    const std::vector<unsigned char> got = out.download();
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < columns; ++c) {
        const double want = to_float(values[static_cast<std::size_t>(r * stride + c)]) * factor;
        const double value = e4m3_value(got[static_cast<std::size_t>(r * columns + c)]);
        ASSERT_LE(std::abs(value - want), nearest_distance(want) + 1e-5 * std::abs(want))
            << "row " << r << " column " << c;
      }
    }
    EXPECT_TRUE(data.intact() && out.intact() && scale.intact() && most.intact());
  }
};

TEST_F(CudaQuantizeFp8, RoundsToTheNearestOnAnyLayout) {
  check<BFloat16>(1, 1, 1, 0, 1);
  check<BFloat16>(3, 64, 64, 0, 1);
  check<BFloat16>(5, 64, 128, 0, 1e-3F);
  check<BFloat16>(7, 33, 35, 0, 40);
  check<BFloat16>(4, 64, 64, 1, 1);
  check<float>(2, 36, 36, 0, 1);
  check<float>(3, 19, 23, 1, 1e-30F);
}

TEST_F(CudaQuantizeFp8, ZerosHaveScaleOne) {
  const DeviceArray<float> data(device(), std::vector<float>(64, 0.0F));
  const DeviceArray<float> most(device(), 1);
  const DeviceArray<float> scale(device(), 1);
  const DeviceArray<unsigned char> out(device(), 64);
  largest_magnitude(DType::kF32, data.data(), 1, 64, 64, most.data(), stream());
  quantize_e4m3(DType::kF32, data.data(), 1, 64, 64, most.data(), out.data(), scale.data(),
                stream());
  EXPECT_EQ(scale.download()[0], 1.0F);
  EXPECT_EQ(out.download(), std::vector<unsigned char>(64, 0));
}

TEST_F(CudaQuantizeFp8, NotANumberIsSeen) {
  std::vector<float> values(4096, 1.0F);
  values[4000] = std::numeric_limits<float>::quiet_NaN();
  const DeviceArray<float> data(device(), values);
  const DeviceArray<float> most(device(), 1);
  largest_magnitude(DType::kF32, data.data(), 1, 4096, 4096, most.data(), stream());
  EXPECT_TRUE(std::isnan(most.download()[0]));
}

}  // namespace
}  // namespace moe::cuda
