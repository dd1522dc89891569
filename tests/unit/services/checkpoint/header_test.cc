#include "services/checkpoint/header.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/base/text.h"
#include "tests/unit/services/checkpoint/safetensors_files.h"

namespace switchyard::checkpoint {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(ParseHeader, ReadsTensors) {
  const auto header = ParseHeader(
      "{\"__metadata__\":{\"format\":\"pt\"}," + Entry("b", "BF16", "[2,3]", 4, 16) + "," +
          Entry("a", "F32", "[]", 0, 4) + "," + Entry("z", "F32", "[0,5]", 4, 4) + "}",
      "f", 100, 16);
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->tensors.size(), 3u);
  const TensorInfo& b = header->tensors[0];
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(b.dtype, DType::kBF16);
  EXPECT_THAT(b.shape, ElementsAre(2, 3));
  EXPECT_EQ(b.bytes, 12u);
  EXPECT_EQ(b.offset, 104u);
}

TEST(ParseHeader, HolesAndUnknownDtypesAreHarmless) {
  const auto header = ParseHeader(
      "{" + Entry("a", "F32", "[1]", 8, 12) + "," + Entry("b", "F8_E8M0", "[3]", 0, 3) + "}", "f",
      0, 100);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->tensors[1].unknown_dtype, "F8_E8M0");
}

struct Bad {
  const char* name;
  std::string header;
  const char* says;
};

class BadHeaderTest : public testing::TestWithParam<Bad> {};

TEST_P(BadHeaderTest, IsRefusedByName) {
  const auto header = ParseHeader(GetParam().header, "dir/model.safetensors", 8, 64);
  ASSERT_FALSE(header.ok());
  const std::string message(ToStd(header.status().message()));
  EXPECT_THAT(message, HasSubstr("dir/model.safetensors: "));
  EXPECT_THAT(message, HasSubstr(GetParam().says));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadHeaderTest,
    testing::Values(
        Bad{"Empty", "", "not valid JSON"}, Bad{"Open", "{", "not valid JSON"},
        Bad{"List", "[]", "list where none belongs"}, Bad{"Number", "3", "header is a number"},
        Bad{"Junk", "{} {", "not valid JSON"}, Bad{"Utf8", "{\"\xff\":1}", "not valid JSON"},
        Bad{"NotAnObject", "{\"a\":3}", "tensor \"a\" is a number, expected an object"},
        Bad{"NoDtype", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", "\"a\" has no dtype"},
        Bad{"NoShape", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", "\"a\" has no shape"},
        Bad{"NoOffsets", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", "no data_offsets"},
        Bad{"OneOffset", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}",
            "no data_offsets of two"},
        Bad{"ThreeOffsets", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}",
            "too many numbers"},
        Bad{"Negative", "{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}",
            "\"a\" has a negative number in field \"shape\""},
        Bad{"Fraction", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}",
            "has a fraction in field \"shape\""},
        Bad{"Unknown", "{\"a\":{\"dtype\":\"F32\",\"what\":1}}", "unknown field \"what\""},
        Bad{"TwoFields", "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", "two fields \"dtype\""},
        Bad{"Nested", "{\"a\":{\"shape\":[[1]]}}", "list where none belongs"},
        Bad{"Lies", "{" + Entry("a", "F32", "[2]", 0, 4) + "}",
            "shape [2] of F32, which is 8 bytes, but claims 4"},
        Bad{"Backwards", "{" + Entry("a", "F32", "[1]", 8, 4) + "}", "claims bytes 8 to 4"},
        Bad{"Beyond", "{" + Entry("a", "F32", "[16]", 4, 68) + "}",
            "\"a\" claims bytes 4 to 68 of a data section of 64"},
        Bad{"Overflow",
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,4294967296],"
            "\"data_offsets\":[0,0]}}",
            "shape that overflows"},
        Bad{"HugeOffset",
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],"
            "\"data_offsets\":[0,18446744073709551615]}}",
            "claims bytes 0 to 18446744073709551615"},
        Bad{"Twice",
            "{" + Entry("a", "F32", "[1]", 0, 4) + "," + Entry("a", "F32", "[1]", 4, 8) + "}",
            "\"a\" is listed twice"},
        Bad{"Overlap",
            "{" + Entry("a", "F32", "[2]", 0, 8) + "," + Entry("b", "F32", "[2]", 4, 12) + "}",
            "tensor \"b\" overlaps tensor \"a\""}),
    [](const auto& info) { return info.param.name; });

TEST(ReadHeader, RefusesImpossibleLengths) {
  const TempDirectory dir;
  const auto error = [&](const std::string& bytes) {
    WriteFile(dir / "f", bytes);
    const auto file = MappedFile::Open(dir / "f");
    EXPECT_TRUE(file.ok());
    const auto header = ReadHeader(**file);
    EXPECT_FALSE(header.ok());
    return std::string(ToStd(header.status().message()));
  };
  EXPECT_THAT(error("abc"), HasSubstr("too short"));
  EXPECT_THAT(error(""), HasSubstr("too short"));
  EXPECT_THAT(error(std::string(8, '\xff')), HasSubstr("expected at most 104857600"));
  EXPECT_THAT(error(std::string("\x09\0\0\0\0\0\0\0{}", 10)), HasSubstr("truncated"));
}

}  // namespace
}  // namespace switchyard::checkpoint
