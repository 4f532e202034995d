#include "core/route_trace.h"

#include <gtest/gtest.h>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "moe/error.h"
#include "temporary_folder.h"

namespace moe {
namespace {

RouteTrace example() {
  return {.tokens = 3,
          .experts = 6,
          .top_k = 2,
          .indices = {5, 0, 2, 5, 5, 1},
          .weights = {0.75F, 0.25F, 0.1F, 0.9F, 2.0F, 0.0F}};
}

class TraceFile : public ::testing::Test {
 protected:
  [[nodiscard]] std::string path(const std::string& name) const { return folder_.path(name); }
  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path(name), std::ios::binary) << bytes;
  }
  /// What reading the file says, without its folder; "" when it is read.
  [[nodiscard]] std::string refusal(const std::string& name) const {
    try {
      static_cast<void>(read_trace(path(name)));
    } catch (const Error& error) {
      std::string what = error.what();
      for (std::size_t at = what.find(folder_.path()); at != std::string::npos;
           at = what.find(folder_.path())) {
        what.erase(at, folder_.path().size() + 1);
      }
      return what;
    }
    return {};
  }

  const test::TemporaryFolder folder_;
};

void expect_equal(const RouteTrace& read, const RouteTrace& expected) {
  EXPECT_EQ(read.tokens, expected.tokens);
  EXPECT_EQ(read.experts, expected.experts);
  EXPECT_EQ(read.top_k, expected.top_k);
  EXPECT_EQ(read.indices, expected.indices);
  EXPECT_EQ(read.weights, expected.weights);
}

TEST_F(TraceFile, BothFormatsReadBackWhatWasWritten) {
  write("t.jsonl", trace_as_jsonl(example()));
  expect_equal(read_trace(path("t.jsonl")), example());
  write("t.npy", trace_indices_as_npy(example()));
  write("t.weights.npy", trace_weights_as_npy(example()));
  expect_equal(read_trace(path("t.npy")), example());
  std::filesystem::remove(path("t.weights.npy"));
  RouteTrace equal = example();
  equal.weights.assign(6, 0.5F);
  expect_equal(read_trace(path("t.npy")), equal);
}

TEST_F(TraceFile, JsonlIsAsDocumented) {
  write("t.jsonl",
        "{\"format\": \"moe-trace-1\", \"tokens\": 2, \"experts\": 8, \"top_k\": 2}\n"
        "{\"indices\": [3, 5], \"weights\": [0.75, 0.25]}\n"
        "\n"
        "{\"weights\": [1, 0.5], \"indices\": [0, 3]}");  // no newline at the end
  const RouteTrace trace = read_trace(path("t.jsonl"));
  EXPECT_EQ(trace.experts, 8);
  EXPECT_EQ(trace.indices, (std::vector<std::int32_t>{3, 5, 0, 3}));
  EXPECT_EQ(trace.weights, (std::vector<float>{0.75F, 0.25F, 1, 0.5F}));
}

/// A .npy file as NumPy writes it: version 1.0, the header padded with spaces.
std::string npy(const std::string& header, const std::string& elements) {
  std::string padded = header;
  padded.append(127 - 10 - header.size(), ' ');
  padded += '\n';
  std::string bytes("\x93NUMPY\x01\x00", 8);
  bytes += static_cast<char>(padded.size());
  bytes += '\0';
  return bytes + padded + elements;
}
constexpr const char* kInt64 = "{'descr': '<i8', 'fortran_order': False, 'shape': (1, 2), }";

TEST_F(TraceFile, NpyAsNumpyWritesIt) {
  write("t.npy", npy(kInt64, std::string("\x03\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0", 16)));
  write("t.weights.npy", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 2), }",
                             std::string("\0\0\0\0\0\0\xe8\x3f\0\0\0\0\0\0\xd0\x3f", 16)));
  const RouteTrace trace = read_trace(path("t.npy"));
  EXPECT_EQ(trace.indices, (std::vector<std::int32_t>{3, 1}));
  EXPECT_EQ(trace.weights, (std::vector<float>{0.75F, 0.25F}));
  EXPECT_EQ(trace.experts, 4);
}

TEST_F(TraceFile, DamagedJsonlIsRefusedWithTheLine) {
  const std::string head =
      "{\"format\": \"moe-trace-1\", \"tokens\": 1, \"experts\": 4, \"top_k\": 2}\n";
  const std::pair<std::string, std::string> cases[] = {
      {"", "t.jsonl is empty"},
      {"\n\n", "t.jsonl is empty"},
      {"[1]\n", "t.jsonl: line 1 is no header with \"format\": \"moe-trace-1\""},
      {"{\"format\": \"moe-trace-1\", \"tokens\": 1, \"experts\": 4, \"top_k\": 5}\n",
       "t.jsonl: line 1: tokens=1 experts=4 top_k=5 cannot be"},
      {"{\"format\": \"moe-trace-1\"}\n",
       "t.jsonl: line 1 is no header of a trace: {\"format\": \"moe-trace-1\"}"},
      {head, "t.jsonl has 0 tokens, its header says 1"},
      {head + "{\"indices\": [1, 2]\n",
       "t.jsonl: line 2 is no token of a trace: {\"indices\": [1, 2]"},
      {head + "{\"indices\": [1], \"weights\": [1]}\n",
       "t.jsonl: line 2 has 1 indices and 1 weights, top_k is 2"},
      {head + "{\"indices\": [1, 4], \"weights\": [1, 1]}\n",
       "t.jsonl: line 2: index 4 is not below experts=4"},
      {head + "{\"indices\": [1, -1], \"weights\": [1, 1]}\n",
       "t.jsonl: line 2: index -1 is not below experts=4"},
      {head + "{\"indices\": [1, 2.5], \"weights\": [1, 1]}\n",
       "t.jsonl: line 2: index 2.5 is no whole number"},
      {head + "{\"indices\": [1, 1], \"weights\": [1, 1]}\n",
       "t.jsonl: token 0 has expert 1 twice"},
      {head + "{\"indices\": [1, 2], \"weights\": [1, -0.5]}\n",
       "t.jsonl: token 0: weight -0.5 is not finite and at least 0"},
      {head + "{\"indices\": [1, 2], \"weights\": [0, 0]}\n",
       "t.jsonl: the weights of token 0 sum to 0"},
      {head + "{\"indices\": [1, 2], \"weights\": [1, null]}\n",
       "t.jsonl: line 2 is no token of a trace: {\"indices\": [1, 2], \"weights\": [1, null]}"}};
  for (const auto& [text, message] : cases) {
    write("t.jsonl", text);
    EXPECT_EQ(refusal("t.jsonl"), message);
  }
  EXPECT_EQ(refusal("none.jsonl"), "cannot read none.jsonl");
  EXPECT_EQ(refusal("t.csv"), "t.csv ends neither in .jsonl nor in .npy");
}

TEST_F(TraceFile, DamagedNpyIsRefused) {
  const std::string two(16, '\0');
  const std::string good = npy(kInt64, std::string("\x03\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0", 16));
  const auto header = [](const std::string& type, const std::string& shape) {
    return "{'descr': " + type + ", 'fortran_order': False, 'shape': " + shape + ", }";
  };
  const std::pair<std::string, std::string> cases[] = {
      {"NUMPY", "t.npy is no .npy file"},
      {good.substr(0, 60), "t.npy ends within its header"},
      {good.substr(0, good.size() - 1), "t.npy: 15 bytes of elements are not 1 x 2 of <i8"},
      {good + "x", "t.npy: 17 bytes of elements are not 1 x 2 of <i8"},
      {npy(header("'<f4'", "(2, 2)"), two), "t.npy: indices are '<f4', but can be int32 or int64"},
      {npy(header("[('a', '<i4')]", "(2, 2)"), two), "t.npy: a .npy of records is no trace"},
      {npy(header("'<i4'", "(4,)"), two), "t.npy: shape (4,), }"},
      {npy(header("'<i4'", "(0, 2)"), ""), "t.npy: shape (0, 2), }"},
      {npy(header("'<i4'", "(2, -2)"), two), "t.npy: shape (2, -2), }"},
      {npy(header("'<i4'", "(9223372036854775807, 2)"), two),
       "t.npy: 16 bytes of elements are not 9223372036854775807 x 2 of <i4"},
      {npy("{'descr': '<i4', 'fortran_order': True, 'shape': (2, 2), }", two),
       "t.npy is in Fortran order; save a C-contiguous array"},
      {npy("{'descr': '<i4', 'shape': (2, 2), }", two),
       "t.npy: the .npy header has no 'fortran_order'"},
      {npy(kInt64, std::string("\x03\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", 16)),
       "t.npy: index -1 of token 0 cannot be"},
      {npy(kInt64, two), "t.npy: token 0 has expert 0 twice"}};
  for (const auto& [bytes, message] : cases) {
    write("t.npy", bytes);
    EXPECT_TRUE(refusal("t.npy").starts_with(message)) << refusal("t.npy") << "\nnot " << message;
  }
  write("t.npy", good);
  write("t.weights.npy", npy(header("'<f4'", "(2, 1)"), std::string(8, '\0')));
  EXPECT_EQ(refusal("t.npy"), "t.weights.npy is 2 x 1, t.npy is 1 x 2");
  write("t.weights.npy", npy(header("'<f4'", "(1, 2)"), std::string("\0\0\xc0\x7f\0\0\0\0", 8)));
  EXPECT_EQ(refusal("t.npy"), "t.npy: token 0: weight nan is not finite and at least 0");
}

TEST(RouteLoad, OfKnownCounts) {
  const RouteLoad load = load_of(std::vector<std::int64_t>{6, 0, 2, 0});
  EXPECT_EQ(load.active, 2);
  EXPECT_DOUBLE_EQ(load.max_over_mean, 3);
  EXPECT_DOUBLE_EQ(load.variation, std::sqrt((16.0 + 4 + 0 + 4) / 4) / 2);
  EXPECT_DOUBLE_EQ(load.entropy, -(0.75 * std::log(0.75) + 0.25 * std::log(0.25)) / std::log(4.0));
  EXPECT_DOUBLE_EQ(load_of(std::vector<std::int64_t>{5, 5, 5}).entropy, 1);
  EXPECT_EQ(load_of(example()).rows, (std::vector<std::int64_t>{1, 1, 1, 0, 0, 3}));
}

}  // namespace
}  // namespace moe
