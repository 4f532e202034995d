#include "core/isa.h"

#include <gtest/gtest.h>

#include "moe/error.h"

namespace moe {
namespace {

TEST(Isa, AutoIsTheBestAndEveryTierBelowIsAvailable) {
  EXPECT_EQ(parse_isa("auto"), best_isa());
  const std::vector<Isa> tiers = available_isas();
  ASSERT_FALSE(tiers.empty());
  EXPECT_EQ(tiers.front(), Isa::kScalar);
  EXPECT_EQ(tiers.back(), best_isa());
  for (const Isa isa : tiers) EXPECT_EQ(parse_isa(name_of(isa)), isa);
}

TEST(Isa, RefusesUnknownAndUnavailableTiers) {
  try {
    static_cast<void>(parse_isa("avx3"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_STREQ(error.what(), "unknown isa 'avx3'; did you mean 'avx2'?");
  }
  if (best_isa() == Isa::kAmx) GTEST_SKIP() << "every tier is available here";
  try {
    static_cast<void>(parse_isa("amx"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
  }
}

// Agreement with the compiler's own detection, where it knows the name.
TEST(Isa, AgreesWithTheCompiler) {
  EXPECT_EQ(best_isa() >= Isa::kAvx2,
            __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0);
  EXPECT_LE(best_isa() >= Isa::kAvx512f, __builtin_cpu_supports("avx512f") != 0);
  EXPECT_LE(best_isa() >= Isa::kAvx512bf16, __builtin_cpu_supports("avx512bf16") != 0);
}

}  // namespace
}  // namespace moe
