#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "services/base/text.h"
#include "services/checkpoint/tensor_source.h"
#include "tests/unit/services/checkpoint/safetensors_files.h"

namespace switchyard::checkpoint {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(ToStd(status.message())); }

// Two float32 tensors: a [2,2] = 0 1 2 3 and b [2] = 4 5.
std::string TwoTensors() {
  std::string data;
  for (float value : {0.f, 1.f, 2.f, 3.f, 4.f, 5.f}) {
    data.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  return FileOf(
      "{" + Entry("b", "F32", "[2]", 16, 24) + "," + Entry("a", "F32", "[2,2]", 0, 16) + "}", data);
}

TEST(OpenSafetensors, ServesRangesOfTensors) {
  const TempDirectory dir;
  WriteFile(dir / "model.safetensors", TwoTensors());
  auto source = OpenSafetensors(dir.path());
  ASSERT_TRUE(source.ok()) << source.status();
  TensorSource& s = **source;
  ASSERT_EQ(s.tensors().size(), 2u);
  EXPECT_EQ(s.tensors()[0].name, "a");
  EXPECT_EQ(s.Find("c"), nullptr);
  EXPECT_EQ(s.Get({"a"}).status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(s.Map({{"a"}, {"b"}}).ok());
  const auto row = s.Get({"a", 1, 1});
  ASSERT_TRUE(row.ok()) << row.status();
  EXPECT_THAT(row->shape, ElementsAre(1, 2));
  float values[2];
  std::memcpy(values, row->data, sizeof values);
  EXPECT_THAT(values, ElementsAre(2.f, 3.f));
  EXPECT_THAT(s.Get({"b"})->shape, ElementsAre(2));
  EXPECT_EQ(s.Get({"a", 2, 0})->data, nullptr);
}

TEST(OpenSafetensors, RefusesMissingTensorsAndRowsBeyond) {
  const TempDirectory dir;
  WriteFile(dir / "model.safetensors", TwoTensors());
  const auto source = *OpenSafetensors(dir.path());
  EXPECT_EQ(source->Map({{"c"}}).code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(source->Map({{"c"}})), HasSubstr("model.safetensors: has no tensor \"c\""));
  for (const TensorRange& range :
       {TensorRange{"a", 1, 2}, TensorRange{"a", -1, 1}, TensorRange{"a", 3, -1},
        TensorRange{"a", INT64_MAX, 1}, TensorRange{"a", 1, INT64_MAX}, TensorRange{"a", 0, -2}}) {
    EXPECT_EQ(source->Map({range}).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(source->Get(range).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(OpenSafetensors, RefusesUnknownDtypesAndUnalignedTensorsWhereUsed) {
  const TempDirectory dir;
  WriteFile(dir / "model.safetensors",
            FileOf("{" + Entry("odd", "F32", "[1]", 1, 5) + "," + Entry("e", "F4", "[2]", 0, 1) +
                       "," + Entry("good", "F32", "[1]", 8, 12) + "}",
                   std::string(12, 'x')));
  auto source = OpenSafetensors(dir.path());
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_TRUE((*source)->Map({{"good"}}).ok());
  EXPECT_THAT(Message((*source)->Map({{"e"}})),
              HasSubstr("tensor \"e\" has dtype F4; supported: F32, BF16, F16"));
  EXPECT_THAT(Message((*source)->Map({{"odd"}})), HasSubstr("\"odd\" of float32 begins at the"));
}

TEST(OpenSafetensors, FollowsSymbolicLinksAsHuggingFaceCachesLayThem) {
  const TempDirectory dir;
  std::filesystem::create_directories(dir / "blobs");
  std::filesystem::create_directories(dir / "snapshots/main");
  WriteFile(dir / "blobs/abc", TwoTensors());
  std::filesystem::create_symlink("../../blobs/abc", dir / "snapshots/main/model.safetensors");
  const auto source = OpenSafetensors(dir / "snapshots/main");
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_TRUE((*source)->Map({{"a"}}).ok());
}

class ShardedTest : public testing::Test {
 protected:
  void SetUp() override {
    WriteFile(dir_ / "s1.safetensors", FileOf("{" + Entry("a", "F32", "[1]", 0, 4) + "}", "AAAA"));
    WriteFile(dir_ / "s2.safetensors", FileOf("{" + Entry("b", "F32", "[1]", 0, 4) + "," +
                                                  Entry("a", "F32", "[1]", 4, 8) + "}",
                                              "BBBBxxxx"));
  }

  absl::StatusOr<std::unique_ptr<TensorSource>> Open(const std::string& index) {
    WriteFile(dir_ / "model.safetensors.index.json", index);
    return OpenSafetensors(dir_.path());
  }
  std::string Error(const std::string& index) { return Message(Open(index).status()); }

  TempDirectory dir_;
};

TEST_F(ShardedTest, TheIndexSaysWhichShardCounts) {
  const auto source = Open(
      R"({"metadata":{"total_size":8},"weight_map":{"b":"s2.safetensors","a":"s1.safetensors"}})");
  ASSERT_TRUE(source.ok()) << source.status();
  ASSERT_EQ((*source)->tensors().size(), 2u);
  ASSERT_TRUE((*source)->Map({{"a"}, {"b"}}).ok());
  EXPECT_EQ(std::memcmp((*source)->Get({"a"})->data, "AAAA", 4), 0);
  EXPECT_EQ(std::memcmp((*source)->Get({"b"})->data, "BBBB", 4), 0);
}

TEST_F(ShardedTest, NamesMissingShardsAndTensors) {
  EXPECT_THAT(Error(R"({"weight_map":{"a":"s3.safetensors"}})"),
              HasSubstr("s3.safetensors: No such"));
  EXPECT_THAT(Error(R"({"weight_map":{"c":"s1.safetensors"}})"),
              HasSubstr("tensor \"c\" is not in s1.safetensors"));
}

TEST_F(ShardedTest, RefusesPathsOutOfTheDirectory) {
  for (const char* shard : {"../x.safetensors", "/etc/passwd", "a/b", "..", ".", "", "a\\\\b"}) {
    EXPECT_THAT(Error(std::string(R"({"weight_map":{"a":")") + shard + "\"}}"),
                HasSubstr("expected a plain file name"))
        << shard;
  }
  EXPECT_THAT(Error(R"({"weight_map":{"a":3}})"), HasSubstr("lies in number"));
}

TEST_F(ShardedTest, RefusesABrokenIndex) {
  EXPECT_THAT(Error("{"), HasSubstr("index.json: not valid JSON"));
  EXPECT_THAT(Error("{}"), HasSubstr("no object \"weight_map\""));
  EXPECT_THAT(Error("[]"), HasSubstr("no object \"weight_map\""));
  EXPECT_THAT(Error(R"({"weight_map":{}})"), HasSubstr("names 0 shards"));
  EXPECT_THAT(Error(R"({"weight_map":{"a":"s1.safetensors","a":"s2.safetensors"}})"),
              HasSubstr("tensor \"a\" is listed twice"));
}

TEST(OpenSafetensors, NamesWhatADirectoryLacks) {
  const TempDirectory dir;
  EXPECT_THAT(Message(OpenSafetensors(dir.path()).status()),
              HasSubstr("holds neither model.safetensors nor model.safetensors.index.json"));
}

// Bytes of this file that are mapped into the process, by /proc.
uint64_t MappedBytes(const std::string& path) {
  std::ifstream maps("/proc/self/maps");
  uint64_t bytes = 0;
  for (std::string line; std::getline(maps, line);) {
    if (line.find(path) == std::string::npos) continue;
    uint64_t begin = 0;
    uint64_t end = 0;
    char dash = 0;
    std::istringstream(line) >> std::hex >> begin >> dash >> end;
    bytes += end - begin;
  }
  return bytes;
}

TEST(OpenSafetensors, MapsTheBytesOfItsTensorsOnly) {
  const std::string root = std::getenv("SWITCHYARD_SOURCE_DIR");
  const std::string dir = root + "/models/tiny-r1";
  const auto source = OpenSafetensors(dir);
  ASSERT_TRUE(source.ok()) << source.status();
  ASSERT_TRUE((*source)->Map({{"lm_head.weight"}}).ok());
  const uint64_t bytes = (*source)->Find("lm_head.weight")->bytes;
  EXPECT_GE(MappedBytes(dir + "/model.safetensors"), bytes);
  EXPECT_LE(MappedBytes(dir + "/model.safetensors"), bytes + 2 * 4096);
}

TEST(OpenSafetensors, OpensEveryGoldenModel) {
  const std::string root = std::getenv("SWITCHYARD_SOURCE_DIR");
  int models = 0;
  for (const auto& entry : std::filesystem::directory_iterator(root + "/tests/golden/models")) {
    const auto source = OpenSafetensors(entry.path().string());
    ASSERT_TRUE(source.ok()) << source.status();
    std::vector<TensorRange> all;
    for (const TensorInfo& t : (*source)->tensors()) all.push_back({t.name});
    ASSERT_TRUE((*source)->Map(all).ok());
    for (const TensorRange& range : all) EXPECT_TRUE((*source)->Get(range).ok());
    ++models;
  }
  EXPECT_GE(models, 7);
}

}  // namespace
}  // namespace switchyard::checkpoint
