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
  EXPECT_EQ(useful_flops(problem), 2 * 2 * 3 * 15 * 2 + 2 * 3 * 7 * 2);
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

TEST(Block, CountsFlopsAndBytesOfWhatItHas) {
  Problem problem{.shape = {2, 3, 5, 7, 2}, .dtype = DType::kBF16};
  set_block_options(problem,
                    "--router sigmoid,bias,selection-bias --expert-bias --shared 4,switch");
  EXPECT_EQ(useful_flops(problem), 2 * (2 * 3 * 3 * (2 * 5 + 4) + 2 * 3 * 7 + 2 * 3));
  // Matrices of 4 experts, the shared one and the router, the switch, x and y; biases in fp32.
  EXPECT_EQ(minimum_bytes(problem, 4), 2.0 * (4 * 3 * 15 + 3 * 3 * 4 + 7 * 3 + 3 + 2 * 2 * 3) +
                                           4.0 * (7 + 7 + 4 * (2 * 5 + 3)));
  EXPECT_EQ(weight_bytes(problem),
            2U * (7 * 3 * 15 + 3 * 3 * 4 + 7 * 3 + 3) + 4U * (7 + 7 + 7 * (2 * 5 + 3)));
  set_block_options(problem, "--activation relu2 --router given --shared 4");
  EXPECT_EQ(useful_flops(problem), 2 * (2 * 2 * 3 * (2 * 5 + 4)));
  EXPECT_EQ(weight_bytes(problem), 2U * (7 * 2 * 15 + 2 * 3 * 4));
}

TEST(Block, OptionsRoundTrip) {
  for (const char* options :
       {"", "--router softmax,raw", "--router sigmoid,selection-bias,groups=8/4,scale=2.5",
        "--router sqrtsoftplus,selection-bias,scale=1.5 --activation swiglu,limit=10",
        "--router softmax,bias --activation swiglu,alpha=1.702,limit=7,up=1 --expert-bias",
        "--router sigmoid,raw,on-input --shared 8192", "--router sparsemixer", "--router given",
        "--activation geglu --shared 512,switch", "--activation relu2"}) {
    Problem problem{.shape = {1, 1, 1, 16, 2}};
    set_block_options(problem, options);
    EXPECT_NO_THROW(validate(problem)) << options;
    EXPECT_EQ(block_options(problem), options);
  }
  EXPECT_EQ(parse_router("softmax"), Router{});
  EXPECT_EQ(parse_activation("swiglu"), Activation{});
}

TEST(Block, RefusesWhatCannotBe) {
  const auto complaint = [](const char* options, std::int64_t experts = 12) {
    try {
      Problem problem{.shape = {4, 8, 8, experts, 3}};
      set_block_options(problem, options);
      validate(problem);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(complaint("--router sotfmax"), "unknown router 'sotfmax'; did you mean 'softmax'?");
  EXPECT_EQ(complaint("--router softmax,scale=two"), "'softmax,scale=two': 'two' is not a number");
  EXPECT_NE(complaint("--router softmax,fast").find("unknown setting 'fast'"), std::string::npos);
  EXPECT_EQ(complaint("--router softmax,scale=0"),
            "router softmax,scale=0: the scale must be a number above 0");
  EXPECT_EQ(complaint("--router sigmoid,groups=5/2"),
            "router sigmoid,groups=5/2: 5 groups do not divide experts=12");
  EXPECT_EQ(complaint("--router sigmoid,groups=6/1"),
            "router sigmoid,groups=6/1: the groups kept have 2 experts, top_k=3");
  EXPECT_EQ(complaint("--router sigmoid,groups=4/5"),
            "router sigmoid,groups=4/5: 5 of 4 groups cannot be kept");
  EXPECT_EQ(complaint("--router sigmoid,groups=128/64", 128),
            "router sigmoid,groups=128/64: more than 64 groups");
  EXPECT_NE(complaint("--router sparsemixer,groups=4/2").find("knows no groups"),
            std::string::npos);
  EXPECT_NE(complaint("--router given,scale=2").find("given weights multiply outputs as they are"),
            std::string::npos);
  EXPECT_NE(complaint("--router softmax,selection-bias").find("a selection bias is added to"),
            std::string::npos);
  EXPECT_EQ(complaint("--activation geglu,limit=7"),
            "activation geglu,limit=7: alpha, limit and up are settings of swiglu");
  EXPECT_EQ(complaint("--activation swiglu,limit=-1"),
            "activation swiglu,limit=-1: alpha and limit must be above 0, up a number");
  EXPECT_EQ(complaint("--shared 4,gate"), "shared expert '4,gate' is neither SIZE nor SIZE,switch");
  EXPECT_EQ(complaint("--shared -4"), "shared_intermediate=-4 must not be negative");
  EXPECT_NE(complaint("--router sigmoid,raw,on-input --shared 4,switch").find("exclude each other"),
            std::string::npos);
}

}  // namespace
}  // namespace moe
