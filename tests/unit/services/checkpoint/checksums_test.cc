#include "services/checkpoint/checksums.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/base/text.h"
#include "services/checkpoint/weight_check.h"
#include "tests/unit/services/checkpoint/safetensors_files.h"

namespace switchyard::checkpoint {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// A matrix "m" [4, 2], a stack of three "s" [3, 2, 2] and biases "s.bias" [3, 2], all bfloat16.
constexpr size_t kMatrix = 16, kStack = 24, kBiases = 12;

std::string Data() {
  std::string data;
  for (size_t i = 0; i < kMatrix + kStack + kBiases; ++i) data += static_cast<char>(i);
  return data;
}

void WriteModel(const TempDirectory& dir, const std::string& data) {
  const size_t s = kMatrix, b = kMatrix + kStack;
  WriteFile(
      dir / "model.safetensors",
      FileOf("{" + Entry("m", "BF16", "[4,2]", 0, s) + "," + Entry("s", "BF16", "[3,2,2]", s, b) +
                 "," + Entry("s.bias", "BF16", "[3,2]", b, b + kBiases) + "}",
             data));
}

void WriteChecksums(const TempDirectory& dir) {
  const auto now = Checksums::Of(**OpenSafetensors(dir.path()), nullptr);
  ASSERT_TRUE(now.ok()) << now.status();
  WriteFile(Checksums::PathFor(dir.path()), now->Json());
}

absl::Status Load(const TempDirectory& dir, const TensorRange& range) {
  auto source = OpenSafetensors(dir.path());
  if (!source.ok()) return source.status();
  EXPECT_TRUE((*source)->Map({range}).ok());
  return CheckWeights(**source, {range}, nullptr);
}

TEST(ChecksumsTest, EveryFlippedBitIsFoundInWhatHoldsIt) {
  const TempDirectory dir;
  WriteModel(dir, Data());
  WriteChecksums(dir);
  for (size_t at = 0; at < kMatrix + kStack + kBiases; ++at) {
    std::string damaged = Data();
    damaged[at] = static_cast<char>(damaged[at] ^ 1);
    WriteModel(dir, damaged);
    EXPECT_EQ(Load(dir, {"m"}).ok(), at >= kMatrix);
    for (int64_t i = 0; i < 3; ++i) {  // one of a stack without the others
      const size_t matrix = kMatrix + 8 * static_cast<size_t>(i);
      const size_t bias = kMatrix + kStack + 4 * static_cast<size_t>(i);
      EXPECT_EQ(Load(dir, {"s", i, 1}).ok(), at < matrix || at >= matrix + 8) << at << " " << i;
      EXPECT_EQ(Load(dir, {"s.bias", i, 1}).ok(), at < bias || at >= bias + 4) << at << " " << i;
    }
  }
}

TEST(ChecksumsTest, TheErrorNamesFileTensorAndChecksums) {
  const TempDirectory dir;
  WriteModel(dir, Data());
  WriteChecksums(dir);
  std::string damaged = Data();
  damaged[kMatrix] = '!';
  WriteModel(dir, damaged);
  const absl::Status status = Load(dir, {"s"});
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(ToStd(status.message()), HasSubstr(dir / "model.safetensors"));
  EXPECT_THAT(ToStd(status.message()), HasSubstr("tensor \"s\""));
  EXPECT_THAT(ToStd(status.message()), HasSubstr(dir / "checksums.json"));
}

TEST(ChecksumsTest, WithoutThemNothingIsCompared) {
  const TempDirectory dir;
  WriteModel(dir, Data());
  EXPECT_TRUE(Load(dir, {"s"}).ok());
  WriteFile(dir / "checksums.json", R"({"algorithm": "xxh3-64", "tensors": {}})");
  EXPECT_TRUE(Load(dir, {"s"}).ok());
}

TEST(ChecksumsTest, RowsOfAMatrixAreNotHeldAgainstTheWhole) {
  const TempDirectory dir;
  WriteModel(dir, Data());
  WriteChecksums(dir);
  EXPECT_TRUE(Load(dir, {"m", 1, 2}).ok());
}

TEST(ChecksumsTest, DifferencesAreNamed) {
  const TempDirectory dir;
  WriteModel(dir, Data());
  WriteChecksums(dir);
  std::string damaged = Data();
  damaged[kMatrix] = '!';
  WriteModel(dir, damaged);
  const auto written = Checksums::Read(dir / "checksums.json");
  const auto now = Checksums::Of(**OpenSafetensors(dir.path()), nullptr);
  ASSERT_TRUE(written.ok() && now.ok()) << written.status() << now.status();
  EXPECT_THAT(written->Differences(*now), ElementsAre("s"));
  EXPECT_THAT(now->Differences(*now), IsEmpty());
}

TEST(ChecksumsTest, WhatIsNoListIsRefusedByName) {
  const TempDirectory dir;
  WriteModel(dir, Data());
  for (const std::string text :
       {"", "[]", R"({"algorithm": "xxh3-64"})", R"({"algorithm": "md5", "tensors": {}})",
        R"({"algorithm": "xxh3-64", "tensors": {"m": "00"}})",
        R"({"algorithm": "xxh3-64", "tensors": {"m": ["xyz"]}})",
        R"({"algorithm": "xxh3-64", "tensors": {"m": [7]}})"}) {
    WriteFile(dir / "checksums.json", text);
    const absl::Status status = Load(dir, {"m"});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(ToStd(status.message()), HasSubstr(dir / "checksums.json"));
  }
}

}  // namespace
}  // namespace switchyard::checkpoint
