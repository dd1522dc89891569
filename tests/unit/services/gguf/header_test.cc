#include "services/gguf/header.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "services/gguf/split_model.h"
#include "tests/support/gguf_writer.h"

namespace switchyard::gguf {
namespace {

using test::GgufWriter;
using ::testing::HasSubstr;

absl::StatusOr<Header> Parse(const std::string& bytes) {
  std::istringstream in(bytes);
  return ParseHeader(in, bytes.size(), "m.gguf");
}

std::string Problem(const std::string& bytes) {
  const auto header = Parse(bytes);
  return header.ok() ? "" : std::string(header.status().message());
}

absl::StatusOr<Header> ParseWanted(const std::string& bytes, WantsList wants) {
  std::istringstream in(bytes);
  return ParseHeader(in, bytes.size(), "m.gguf", wants);
}

TEST(GgufHeader, PassesOverListsOfTokenizersThatNobodyWants) {
  const std::string long_text(1000, 'x');
  const std::string bytes = GgufWriter()
                                .Strings("tokenizer.texts", {"a", "", long_text})
                                .Numbers<float>("tokenizer.scores", 6, {0.1f, -2.0f})
                                .Numbers<float>("others", 6, {0.5f})
                                .U32("after", 7)
                                .Tensor("t", {4, 2}, 0, std::string(32, 'x'))
                                .Bytes();
  const auto all = Parse(bytes), none = ParseWanted(bytes, NoList);
  ASSERT_TRUE(all.ok() && none.ok()) << all.status() << none.status();
  EXPECT_EQ(none->metadata, nlohmann::json({{"after", 7}, {"others", {0.5}}}));
  EXPECT_EQ(none->metadata_bytes, all->metadata_bytes);
  EXPECT_EQ(none->tensors[0].offset, all->tensors[0].offset);
  const auto texts =
      ParseWanted(bytes, [](std::string_view key) { return key.ends_with("texts"); });
  ASSERT_TRUE(texts.ok()) << texts.status();
  EXPECT_EQ(texts->metadata["tokenizer.texts"], nlohmann::json({"a", "", long_text}));
  EXPECT_FALSE(texts->metadata.contains("tokenizer.scores"));
}

TEST(GgufHeader, ListsThatNobodyWantsAreCheckedToo) {
  const std::string whole = GgufWriter()
                                .Strings("tokenizer.texts", {"a", "bc"})
                                .Numbers<float>("tokenizer.scores", 6, {0.1f})
                                .Bytes();
  ASSERT_TRUE(ParseWanted(whole, NoList).ok());
  for (size_t end = 24; end < whole.size(); ++end) {
    EXPECT_FALSE(ParseWanted(whole.substr(0, end), NoList).ok()) << end;
  }
  const auto problem = [](GgufWriter& writer) {
    const auto header = ParseWanted(writer.Bytes(), NoList);
    return header.ok() ? "" : std::string(header.status().message());
  };
  EXPECT_THAT(problem(GgufWriter().Strings("tokenizer.x", {"a"}).Strings("tokenizer.x", {"a"})),
              HasSubstr("lists the key tokenizer.x twice"));
  EXPECT_THAT(problem(GgufWriter().Numbers<float>("tokenizer.x", 99, {})),
              HasSubstr("unknown value type 99"));
}

TEST(GgufHeader, ReadsEveryKindOfValue) {
  for (uint32_t version : {2u, 3u}) {
    const auto header = Parse(GgufWriter(version)
                                  .Key("u8", 0, GgufWriter::Raw<uint8_t>(200))
                                  .Key("i8", 1, GgufWriter::Raw<int8_t>(-3))
                                  .Key("u16", 2, GgufWriter::Raw<uint16_t>(60000))
                                  .Key("i16", 3, GgufWriter::Raw<int16_t>(-5))
                                  .U32("u32", 7)
                                  .Key("i32", 5, GgufWriter::Raw<int32_t>(-7))
                                  .F32("eps", 1e-6f)
                                  .Bool("yes", true)
                                  .String("text", "\xe2\x96\x81grün")
                                  .Strings("list", {"a", ""})
                                  .Numbers<float>("scores", 6, {0.1f, -2.0f})
                                  .Key("u64", 10, GgufWriter::Raw<uint64_t>(1))
                                  .Key("i64", 11, GgufWriter::Raw<int64_t>(-1))
                                  .Key("f64", 12, GgufWriter::Raw(0.25))
                                  .Tensor("t", {4, 2}, 0, std::string(32, 'x'))
                                  .Bytes());
    ASSERT_TRUE(header.ok()) << header.status();
    const nlohmann::json want = {{"u8", 200},
                                 {"i8", -3},
                                 {"u16", 60000},
                                 {"i16", -5},
                                 {"u32", 7},
                                 {"i32", -7},
                                 {"eps", 1e-6},
                                 {"yes", true},
                                 {"text", "\xe2\x96\x81grün"},
                                 {"list", {"a", ""}},
                                 {"scores", {0.1, -2.0}},
                                 {"u64", 1},
                                 {"i64", -1},
                                 {"f64", 0.25}};
    EXPECT_EQ(header->metadata, want);
    ASSERT_EQ(header->tensors.size(), 1u);
    EXPECT_EQ(header->tensors[0].dims, (std::vector<uint64_t>{4, 2}));
    EXPECT_EQ(header->tensors[0].offset + 32, header->file_bytes);
  }
}

TEST(GgufHeader, EveryTruncationIsAnError) {
  const std::string whole = GgufWriter()
                                .U32("n", 1)
                                .Strings("list", {"ab", "c"})
                                .Tensor("t", {8}, 0, std::string(32, 'x'))
                                .Bytes();
  const size_t header = whole.size() - 32;
  for (size_t size = 0; size < header - 31; ++size) {
    EXPECT_FALSE(Parse(whole.substr(0, size)).ok()) << size;
  }
}

TEST(GgufHeader, NamesWhatIsBroken) {
  const auto raw = [](auto value) { return GgufWriter::Raw(value); };
  EXPECT_THAT(Problem("GGML"), HasSubstr("is no GGUF file"));
  EXPECT_THAT(Problem(GgufWriter(1).Bytes()), HasSubstr("version 1; supported: 2, 3"));
  EXPECT_THAT(Problem(GgufWriter(0x03000000).Bytes()), HasSubstr("big-endian"));
  EXPECT_THAT(Problem("GGUF" + raw(3u) + raw(~uint64_t{0}) + raw(uint64_t{0})),
              HasSubstr("tensors, at most"));
  EXPECT_THAT(Problem("GGUF" + raw(3u) + raw(uint64_t{0}) + raw(uint64_t{1} << 40)),
              HasSubstr("keys, at most"));
  EXPECT_THAT(Problem(GgufWriter().U32("k", 1).U32("k", 2).Bytes()), HasSubstr("key k twice"));
  EXPECT_THAT(Problem(GgufWriter().Key("k", 13, "").Bytes()), HasSubstr("unknown value type 13"));
  EXPECT_THAT(Problem(GgufWriter().Key("k", 7, raw(uint8_t{2})).Bytes()), HasSubstr("boolean"));
  EXPECT_THAT(Problem(GgufWriter().String("k", "\xff").Bytes()), HasSubstr("no UTF-8"));
  EXPECT_THAT(Problem(GgufWriter().Key("k", 8, raw(uint64_t{1} << 62)).Bytes()),
              HasSubstr("k claims"));
  EXPECT_THAT(Problem(GgufWriter().Key("k", 9, raw(9u) + raw(uint64_t{1})).Bytes()),
              HasSubstr("list of lists"));
  EXPECT_THAT(Problem(GgufWriter().Key("k", 9, raw(4u) + raw(~uint64_t{0})).Bytes()),
              HasSubstr("elements"));
  EXPECT_THAT(Problem(GgufWriter().U32("general.alignment", 24).Bytes()),
              HasSubstr("general.alignment is 24"));
}

TEST(GgufHeader, NamesTheTensorThatIsBroken) {
  EXPECT_THAT(Problem(GgufWriter().TensorAt("t", {}, 0, 0).Bytes()), HasSubstr("0 dimensions"));
  EXPECT_THAT(Problem(GgufWriter().TensorAt("t", {1, 1, 1, 1, 1}, 0, 0).Bytes()),
              HasSubstr("5 dimensions"));
  const uint64_t large = uint64_t{1} << 33;
  EXPECT_THAT(Problem(GgufWriter().TensorAt("t", {large, large}, 0, 0).Bytes()),
              HasSubstr("overflows"));
  EXPECT_THAT(Problem(GgufWriter().TensorAt("t", {1}, 0, 8).Tensor("u", {8}, 0, "x").Bytes()),
              HasSubstr("no multiple of 32"));
  EXPECT_THAT(Problem(GgufWriter().TensorAt("t", {1}, 0, 1 << 20).Bytes()),
              HasSubstr("beyond the end"));
  EXPECT_THAT(Problem(GgufWriter().Tensor("t", {8}, 0, "x").Tensor("t", {8}, 0, "x").Bytes()),
              HasSubstr("\"t\" twice"));
}

class SplitModel : public ::testing::Test {
 protected:
  SplitModel() { std::filesystem::create_directories(dir_); }
  ~SplitModel() override { std::filesystem::remove_all(dir_); }

  std::string Write(const std::string& name, uint16_t number, uint16_t count,
                    const std::string& tensor) {
    const std::string path = dir_ + "/" + name;
    std::ofstream(path, std::ios::binary)
        << GgufWriter()
               .Key("split.no", 2, GgufWriter::Raw(number))
               .Key("split.count", 2, GgufWriter::Raw(count))
               .Key("split.tensors.count", 5, GgufWriter::Raw<int32_t>(2))
               .Tensor(tensor, {8}, 0, std::string(32, 'x'))
               .Bytes();
    return path;
  }
  static std::string Trouble(const std::string& path) {
    return std::string(ReadModel(path).status().message());
  }

  const std::string dir_ = ::testing::TempDir() + "/gguf_split." + std::to_string(::getpid());
};

TEST_F(SplitModel, ReadsAllFilesFromTheFirst) {
  const std::string first = Write("m-00001-of-00002.gguf", 0, 2, "a");
  EXPECT_THAT(Trouble(first), HasSubstr("m-00002-of-00002.gguf: No such file"));
  const std::string second = Write("m-00002-of-00002.gguf", 1, 2, "b");
  const auto files = ReadModel(first);
  ASSERT_TRUE(files.ok()) << files.status();
  ASSERT_EQ(files->size(), 2u);
  EXPECT_EQ((*files)[1].tensors[0].name, "b");
  EXPECT_THAT(Trouble(second), HasSubstr("give the first"));
}

TEST_F(SplitModel, RefusesFilesOfAnotherSeries) {
  const std::string first = Write("m-00001-of-00002.gguf", 0, 2, "a");
  Write("m-00002-of-00002.gguf", 2, 3, "b");
  EXPECT_THAT(Trouble(first), HasSubstr("is file 3 of 3 by its metadata, expected file 2 of 2"));
  Write("m-00002-of-00002.gguf", 1, 2, "a");
  EXPECT_THAT(Trouble(first), HasSubstr("listed by an earlier file too"));
  EXPECT_THAT(Trouble(Write("other.gguf", 0, 2, "a")), HasSubstr("give the first"));
}

TEST(IsGgufTest, GoesByTheEnding) {
  EXPECT_TRUE(IsGguf("models/m.gguf"));
  EXPECT_FALSE(IsGguf("models/tiny-r1"));
  EXPECT_FALSE(IsGguf("/"));
}

}  // namespace
}  // namespace switchyard::gguf
