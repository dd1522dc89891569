#include "tools/quantize/safetensors_writer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "services/checkpoint/tensor_source.h"

namespace switchyard::quantize {
namespace {

const std::vector<StoredTensor> kTensors = {{"a", DType::kI8, {3}},
                                            {"b", DType::kF32, {2, 2}},
                                            {"c", DType::kBF16, {5}},
                                            {"d", DType::kI64, {1}}};

// Written with these file sizes and read by our own reader: bytes i + index.
void RoundTrip(uint64_t file_bytes, int files) {
  const std::string directory = testing::TempDir() + "/safetensors-writer";
  std::filesystem::remove_all(directory);
  std::filesystem::create_directories(directory);
  SafetensorsWriter writer(directory, kTensors, file_bytes);
  EXPECT_EQ(writer.files(), files);
  for (size_t t = 0; t < kTensors.size(); ++t) {
    std::vector<std::byte> data(kTensors[t].bytes());
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i + 16 * t);
    ASSERT_TRUE(writer.Write(data).ok());
  }
  ASSERT_TRUE(writer.Finish().ok());
  const auto source = checkpoint::OpenSafetensors(directory);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->files().size(), static_cast<size_t>(files));
  for (size_t t = 0; t < kTensors.size(); ++t) {
    ASSERT_TRUE((*source)->Map({{.name = kTensors[t].name}}).ok());
    const auto tensor = (*source)->Get({.name = kTensors[t].name});
    ASSERT_TRUE(tensor.ok()) << tensor.status();
    EXPECT_EQ(tensor->dtype, kTensors[t].dtype);
    EXPECT_EQ(tensor->shape, kTensors[t].shape);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor->data) % SizeOf(tensor->dtype), 0u);
    for (size_t i = 0; i < kTensors[t].bytes(); ++i) {
      ASSERT_EQ(tensor->data[i], static_cast<std::byte>(i + 16 * t)) << t << " " << i;
    }
  }
}

TEST(SafetensorsWriterTest, OneFile) { RoundTrip(1000, 1); }
TEST(SafetensorsWriterTest, SeveralFilesAndTheirIndex) {
  RoundTrip(20, 2);
  RoundTrip(1, 4);
}

TEST(SafetensorsWriterTest, WhereNothingCanBeWrittenItSaysWhere) {
  SafetensorsWriter writer("/nowhere", {{"a", DType::kI8, {1}}}, 10);
  const std::byte byte{1};
  const absl::Status status = writer.Write({&byte, 1});
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(std::string(status.message()).find("/nowhere/model.safetensors"), std::string::npos);
}

}  // namespace
}  // namespace switchyard::quantize
