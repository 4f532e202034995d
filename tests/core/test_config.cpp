#include "moe/config.h"

#include <gtest/gtest.h>

#include <string>

#include "moe/error.h"

namespace moe {
namespace {

std::string message_of(const Shape& shape) {
  try {
    validate(shape);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "";
}

TEST(Shape, AcceptsTheSmallestAndTheLargestSensible) {
  EXPECT_EQ(message_of({1, 1, 1, 1, 1}), "");
  EXPECT_EQ(message_of({1 << 20, 7168, 3072, 896, 16}), "");
}

TEST(Shape, RefusesZeroAndNegativeSizesByName) {
  EXPECT_NE(message_of({0, 8, 8, 4, 2}).find("tokens=0"), std::string::npos);
  EXPECT_NE(message_of({8, -1, 8, 4, 2}).find("hidden=-1"), std::string::npos);
  EXPECT_NE(message_of({8, 8, 0, 4, 2}).find("intermediate=0"), std::string::npos);
  EXPECT_NE(message_of({8, 8, 8, 0, 2}).find("experts=0"), std::string::npos);
  EXPECT_NE(message_of({8, 8, 8, 4, 0}).find("top_k=0"), std::string::npos);
}

TEST(Shape, RefusesMoreChoicesThanExperts) {
  EXPECT_NE(message_of({8, 8, 8, 4, 5}).find("top_k=5 exceeds experts=4"), std::string::npos);
}

TEST(Shape, RefusesProductsThatOverflow) {
  const std::int64_t big = std::int64_t{1} << 31;
  EXPECT_NE(message_of({big, 8, 8, 4, 2}).find("tokens=2147483648 exceeds"), std::string::npos);
  EXPECT_NE(message_of({1, big, big, 4, 2}).find("overflows"), std::string::npos);
  EXPECT_NE(message_of({big - 1, big, 1, 4, 2}).find("tokens*top_k*hidden"), std::string::npos);
}

TEST(Shape, CountsFlopsAndBytes) {
  const Problem problem{.shape = {2, 3, 5, 7, 2}, .dtype = DType::kBF16};
  // 2 tokens x 2 experts x 3 products of 3x5, two FLOPs each; router 2 x 3 x 7 x 2.
  EXPECT_EQ(useful_flops(problem.shape), 2 * 2 * 3 * 15 * 2 + 2 * 3 * 7 * 2);
  EXPECT_EQ(minimum_bytes(problem, 4), 2.0 * (4 * 3 * 15 + 7 * 3 + 2 * 2 * 3));
  EXPECT_EQ(weight_bytes(problem), 2U * (7 * 3 * 15 + 7 * 3));
}

TEST(Names, RoundTripAndSuggest) {
  EXPECT_EQ(parse_dtype("bf16"), DType::kBF16);
  EXPECT_EQ(name_of(parse_backend("cuda")), "cuda");
  try {
    static_cast<void>(parse_dtype("bf61"));
    FAIL() << "bf61 was accepted";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "unknown dtype 'bf61'; did you mean 'bf16'?");
  }
}

}  // namespace
}  // namespace moe
