#include "core/scalar.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace moe {
namespace {

TEST(BFloat16, KeepsWhatItCanRepresent) {
  for (const float value : {0.0F, -0.0F, 1.0F, -2.5F, 0x1.fep127F, 0x1p-126F, 0x1p-133F}) {
    EXPECT_EQ(to_float(to_bfloat16(value)), value);
  }
  EXPECT_TRUE(std::signbit(to_float(to_bfloat16(-0.0F))));
}

TEST(BFloat16, RoundsToNearestEven) {
  EXPECT_EQ(to_float(to_bfloat16(0x1.01p0F)), 1.0F);  // halfway between 1 and 1.0078125: even is 1
  EXPECT_EQ(to_float(to_bfloat16(0x1.03p0F)), 0x1.04p0F);  // halfway, even is above
  EXPECT_EQ(to_float(to_bfloat16(0x1.010002p0F)), 0x1.02p0F);
}

TEST(BFloat16, KeepsNaNAndInfinity) {
  EXPECT_TRUE(std::isnan(to_float(to_bfloat16(std::numeric_limits<float>::quiet_NaN()))));
  // A NaN whose payload lies in the dropped half must not turn into infinity.
  EXPECT_TRUE(std::isnan(to_float(to_bfloat16(std::bit_cast<float>(0x7f800001U)))));
  EXPECT_EQ(to_float(to_bfloat16(std::numeric_limits<float>::infinity())),
            std::numeric_limits<float>::infinity());
  EXPECT_EQ(to_float(to_bfloat16(std::numeric_limits<float>::max())),
            std::numeric_limits<float>::infinity());
}

}  // namespace
}  // namespace moe
