// One file: what is in it, and every way in which it can be damaged.
#include <gtest/gtest.h>

#include <limits>

#include "checkpoint/json_text.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/write_checkpoint.h"
#include "core/check.h"

namespace moe::checkpoint {
namespace {

using test::Bytes;
using test::FileWriter;
using test::raw_file;

SafetensorsFile open(const Bytes& bytes) {
  return {"f", std::as_bytes(std::span(bytes.data(), bytes.size()))};
}

/// What opening the bytes says; "" when they are accepted.
std::string complaint(const Bytes& bytes) {
  try {
    static_cast<void>(open(bytes));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    return error.what();
  }
  return "";
}

const Bytes kEight(8, '\1');

TEST(Safetensors, TellsTypesShapesAndBytes) {
  const Bytes bytes = FileWriter()
                          .add_f32("b", {2, 3}, {1, 2, 3, 4, 5, 6})
                          .add_bf16("a", {}, {-2.5F})
                          .add("none", "I64", {4, 0}, "")
                          .bytes();
  const SafetensorsFile file = open(bytes);
  ASSERT_EQ(file.tensors().size(), 3U);
  const StoredTensor* b = file.find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->describe(), "F32 [2,3]");
  EXPECT_EQ(b->elements(), 6);
  ASSERT_EQ(b->data.size(), 24U);
  float last = 0;
  std::memcpy(&last, b->data.data() + 20, sizeof(last));
  EXPECT_EQ(last, 6);
  EXPECT_EQ(file.find("a")->describe(), "BF16 []");
  EXPECT_EQ(file.find("a")->elements(), 1);
  EXPECT_EQ(file.find("none")->elements(), 0);
  EXPECT_EQ(file.find("c"), nullptr);
}

TEST(Safetensors, MetadataAndPaddingAreNoTensors) {
  const SafetensorsFile file = open(raw_file(
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}   )",
      kEight));
  EXPECT_EQ(file.tensors().size(), 1U);
  EXPECT_EQ(open(raw_file("{}", "")).tensors().size(), 0U);
}

TEST(Safetensors, ValuesOfTheSmallTypes) {
  EXPECT_EQ(float_of_f16(0x3c00), 1.0F);
  EXPECT_EQ(float_of_f16(0xc000), -2.0F);
  EXPECT_EQ(float_of_f16(0x7bff), 65504.0F);
  EXPECT_EQ(float_of_f16(0x0001), 0x1p-24F);
  EXPECT_EQ(float_of_f16(0xfc00), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(float_of_f16(0x7e00)));
  EXPECT_EQ(float_of_e4m3(0x38), 1.0F);
  EXPECT_EQ(float_of_e4m3(0x7e), 448.0F);
  EXPECT_EQ(float_of_e4m3(0xfe), -448.0F);
  EXPECT_EQ(float_of_e4m3(0x01), 0x1p-9F);
  EXPECT_EQ(float_of_e4m3(0x08), 0x1p-6F);
  EXPECT_TRUE(std::isnan(float_of_e4m3(0x7f)));
  EXPECT_TRUE(std::isnan(float_of_e4m3(0xff)));
  EXPECT_EQ(float_of_e8m0(127), 1.0F);
  EXPECT_EQ(float_of_e8m0(0), 0x1p-127F);
  EXPECT_EQ(float_of_e8m0(254), 0x1p127F);
  EXPECT_TRUE(std::isnan(float_of_e8m0(255)));
  const float e2m1[] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
  for (std::uint8_t bits = 0; bits < 8; ++bits) {
    EXPECT_EQ(float_of_e2m1(bits), e2m1[bits]);
    EXPECT_EQ(float_of_e2m1(bits | 8U), -e2m1[bits]);
  }
}

TEST(Safetensors, NamesOfTypesAreFoundAgain) {
  for (int i = 0; i <= static_cast<int>(StoredType::kBool); ++i) {
    const auto type = static_cast<StoredType>(i);
    EXPECT_EQ(find_stored_type(name_of(type)), type) << name_of(type);
    EXPECT_GT(bits_of(type), 0);
  }
  EXPECT_EQ(find_stored_type("f32"), std::nullopt);
}

TEST(Safetensors, DamagedFilesAreRefusedWithTheValues) {
  const auto entry = [](const std::string& text) {
    return raw_file(fmt::format("{{{}}}", text), kEight);
  };
  const std::string u8 = R"("dtype":"U8","shape":[8],"data_offsets":[0,8])";
  const std::pair<Bytes, std::string> cases[] = {
      {"", "f has 0 bytes, but the length of a safetensors header takes 8"},
      {"1234567", "f has 7 bytes, but the length of a safetensors header takes 8"},
      {Bytes("\x10\0\0\0\0\0\0\0{}", 10),
       "f: the header has 16 bytes, but the file has 2 after its length"},
      {Bytes(8, '\xff'),
       "f: the header has 18446744073709551615 bytes, but the file has 0 after its length"},
      {raw_file("", ""), "f: the header of 0 bytes does not begin with '{'"},
      {raw_file(" {}", ""), "f: the header of 3 bytes does not begin with '{'"},
      {raw_file("[]", ""), "f: the header of 2 bytes does not begin with '{'"},
      {raw_file("{\"a\":", ""), "f: the header is not JSON at its byte 6"},
      {raw_file("{} {}", ""), "f: the header is not JSON at its byte 4"},
      {raw_file("{\"a\":1e999}", ""), "f: the header is not JSON at its byte 10"},
      {raw_file("{\"\xff\":{}}", ""), "f: the header is not JSON at its byte 3"},
      {entry(R"("a":3)"), "f: the header has 3 as the entry of 'a'"},
      {entry(R"("a":[{}])"), "f: the header has an array as the entry of 'a'"},
      {entry(R"("a":{"dtype":{}})"), "f: the header has an object as 'dtype' of 'a'"},
      {entry(R"("a":{"dtype":8})"), "f: the header has 8 as 'dtype' of 'a'"},
      {entry(R"("a":{"shape":"8"})"), "f: the header has '8' as 'shape' of 'a'"},
      {entry(R"("a":{"shape":[8.5]})"), "f: the header has 8.5 as 'shape' of 'a'"},
      {entry(R"("a":{"shape":[-8]})"), "f: the header has -8 as 'shape' of 'a'"},
      {entry(R"("a":{"shape":[[8]]})"), "f: the header has an array as 'shape' of 'a'"},
      {entry(R"("a":{"shape":[null]})"), "f: the header has null as 'shape' of 'a'"},
      {entry(R"("a":{"shape":["8"]})"), "f: the header has '8' as 'shape' of 'a'"},
      {entry(R"("a":{"shape":[true]})"), "f: the header has true as 'shape' of 'a'"},
      {entry(R"("__metadata__":{"a":1})"), "f: the header has 1 as 'a' of '__metadata__'"},
      {entry(R"("__metadata__":{"a":{}})"), "f: the header has an object as 'a' of '__metadata__'"},
      {entry(R"("a":{"shape":[8],"data_offsets":[0,8]})"),
       "f: the header gives tensor 'a' no dtype"},
      {entry(R"("a":{"dtype":"U8","data_offsets":[0,8]})"),
       "f: the header gives tensor 'a' no shape"},
      {entry(R"("a":{"dtype":"U8","shape":[8]})"),
       "f: the header gives tensor 'a' no data_offsets"},
      {entry("\"a\":{" + u8 + ",\"more\":1}"),
       "f: the header has 'more' in tensor 'a', where only dtype, shape and data_offsets can be"},
      {entry("\"a\":{" + u8 + "},\"a\":{" + u8 + "}"), "f: the header has 'a' twice"},
      {entry("\"a\":{" + u8 + ",\"dtype\":\"I8\"}"), "f: the header has 'dtype' twice in 'a'"},
      {entry(R"("a":{"dtype":"F31","shape":[8],"data_offsets":[0,8]})"),
       "f: tensor 'a' has the unknown type 'F31'"},
      {entry(R"("a":{"dtype":"U8","shape":[8],"data_offsets":[0,4,8]})"),
       "f: tensor 'a' has 3 data_offsets in place of 2"},
      {entry(R"("a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]})"),
       "f: tensor 'a' lies at bytes 0 to 9, but the file holds 8 bytes of data"},
      {entry(R"("a":{"dtype":"U8","shape":[8],"data_offsets":[18446744073709551615,7]})"),
       "f: tensor 'a' lies at bytes 18446744073709551615 to 7, but the file holds 8 bytes of data"},
      {entry(R"("a":{"dtype":"U8","shape":[4],"data_offsets":[6,2]})"),
       "f: tensor 'a' lies at bytes 6 to 2, but the file holds 8 bytes of data"},
      {entry(R"("a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]})"),
       "f: tensor 'a' is F32 [3], 12 bytes, but its data_offsets 0 to 8 span 8"},
      {entry(R"("a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,8]})"),
       "f: the shape of tensor 'a' overflows 64 bits at the size 4294967296"},
      {entry(R"("a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,8]})"),
       "f: the shape of tensor 'a' overflows 64 bits at the size 18446744073709551615"},
      {entry(R"("a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},)"
             R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]})"),
       "f: tensor 'b' begins at byte 4 of the data, where tensor 'a' lies (to 5)"},
      {entry("\"a\":{" + u8 + "},\"b\":{" + u8 + "}"),
       "f: tensor 'b' begins at byte 0 of the data, where tensor 'a' lies (to 8)"},
      {entry(R"("a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]})"),
       "f: bytes 0 to 4 of the data belong to no tensor"},
      {entry(R"("a":{"dtype":"U8","shape":[7],"data_offsets":[0,7]})"),
       "f: bytes 7 to 8 of the data belong to no tensor"},
      {entry("\"a\\n\\u001b\":3"), "f: the header has 3 as the entry of 'a\\x0a\\x1b'"}};
  for (const auto& [bytes, message] : cases) EXPECT_EQ(complaint(bytes), message);
}

TEST(Safetensors, AHeaderOver100MegabytesIsNotRead) {
  const Bytes bytes = raw_file("{" + Bytes(kMostJsonBytes, ' '), "");
  EXPECT_EQ(complaint(bytes), "f: the header has 100000001 bytes, more than 100000000");
}

TEST(Safetensors, ADeepHeaderIsRefusedAtOnce) {
  EXPECT_EQ(complaint(raw_file("{\"a\":" + Bytes(1 << 20, '['), "")),
            "f: the header has an array as the entry of 'a'");
}

TEST(MappedFile, NeedsARegularFile) {
  const test::Folder folder;
  const auto message = [](const std::string& path) -> std::string {
    try {
      const MappedFile file(path);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kIo);
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message(folder.path() + "/none"),
            "cannot read " + folder.path() + "/none: No such file or directory");
  EXPECT_EQ(message(folder.path()), folder.path() + " is not a regular file");
  EXPECT_EQ(message(folder.write("empty", "")), "");
}

TEST(JsonText, RefusesWhatAReaderCouldTakeTwoWays) {
  const auto message = [](const std::string& text) -> std::string {
    try {
      static_cast<void>(parse_json("i", text));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kIo);
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message(R"({"a":{"b":1},"c":{"b":1}})"), "");
  EXPECT_EQ(message(R"({"a":{"b":1,"b":2}})"), "i has the key 'b' twice in one object");
  EXPECT_EQ(message("{\"a\":1"), "i is not JSON: the error is at byte 6 of 6");
  EXPECT_EQ(message(""), "i is not JSON: the error is at byte 0 of 0");
  EXPECT_EQ(message(Bytes(1 << 20, '[')), "i is nested deeper than 16");
  EXPECT_EQ(message("[1e999]"), "i has a number beyond what a double holds");
  EXPECT_EQ(quote_name(Bytes(200, 'x')), fmt::format("'{}...' (200 bytes)", Bytes(120, 'x')));
}

}  // namespace
}  // namespace moe::checkpoint
