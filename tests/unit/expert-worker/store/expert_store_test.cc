// Experts that come and go, out of files that may be broken.
#include "expert-worker/store/expert_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "services/checkpoint/tensor_source.h"
#include "services/model/spec_from_hf.h"
#include "services/model/tensor_names.h"
#include "tests/support/golden.h"
#include "tests/support/moe_fixture.h"

namespace switchyard::worker {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// A copy of tiny-r1 whose weights may be damaged; nothing of it is held at first.
class ExpertStoreTest : public ::testing::Test {
 protected:
  ExpertStoreTest() {
    fs::create_directories(dir_);
    for (const char* file : {"config.json", "model.safetensors"}) {
      fs::copy_file(test::SourcePath(std::string("models/tiny-r1/") + file), dir_ / file,
                    fs::copy_options::overwrite_existing);
    }
    spec_ = *LoadSpec(dir_.string());
    source_ = *checkpoint::OpenCheckpoint(dir_.string());
    store_ = *ExpertStore::Open(
        spec_, std::vector<bool>(static_cast<size_t>(spec_.experts.count), false), source_);
    while (!spec_.layers[static_cast<size_t>(layer_)].moe) ++layer_;
  }
  ~ExpertStoreTest() override { fs::remove_all(dir_); }

  const checkpoint::TensorInfo& Down(int expert) const {
    return *source_->Find(ExpertTensorsOf(spec_, layer_, expert).down.tensor.name);
  }
  std::string Weights() const { return (dir_ / "model.safetensors").string(); }
  // Loads it and gives what it says if that fails.
  std::string Load(int expert, bool check = true) {
    return Message(store_->Load({layer_, expert}, {.check_weights = check}));
  }
  const ExpertWeights* Find(int expert) const { return store_->Find(layer_, expert); }

  const fs::path dir_ =
      fs::path(::testing::TempDir()) /
      (std::string("store-") + ::testing::UnitTest::GetInstance()->current_test_info()->name());
  ModelSpec spec_;
  std::shared_ptr<checkpoint::TensorSource> source_;
  std::unique_ptr<ExpertStore> store_;
  int layer_ = 0;
};

TEST_F(ExpertStoreTest, ComesGoesAndComesAgain) {
  EXPECT_EQ(store_->count(), 0);
  EXPECT_EQ(Find(7), nullptr);
  ASSERT_EQ(Load(7), "");
  const ExpertWeights* weights = Find(7);
  ASSERT_NE(weights, nullptr);
  EXPECT_EQ(store_->count(), 1);
  EXPECT_EQ(store_->bytes(), weights->bytes());
  EXPECT_EQ(store_->expert_bytes(), weights->bytes());
  std::vector<std::byte> before(weights->down.bytes());
  std::memcpy(before.data(), weights->down.data, before.size());
  std::vector<std::byte> file(before.size());
  ASSERT_TRUE(source_->Read(0, Down(7).offset, file.data(), file.size()).ok());
  EXPECT_EQ(before, file);
  EXPECT_EQ(Load(7), "");  // is there
  EXPECT_EQ(store_->count(), 1);

  store_->Remove({layer_, 7});
  store_->Remove({layer_, 7});
  EXPECT_EQ(Find(7), nullptr);
  EXPECT_EQ(store_->count(), 0);
  EXPECT_EQ(store_->bytes(), 0u);
  // Whoever found it before may go on.
  EXPECT_EQ(std::memcmp(weights->down.data, before.data(), before.size()), 0);
  ASSERT_EQ(Load(7), "");
  EXPECT_EQ(Find(7), weights);
}

TEST_F(ExpertStoreTest, AFileThatBecameShorterIsAnErrorNotTheEnd) {
  ASSERT_EQ(Load(0), "");
  const uint64_t cut = Down(100).offset / 4096 * 4096;
  fs::resize_file(Weights(), cut);
  const std::string why = Load(100);
  EXPECT_THAT(why, AllOf(HasSubstr("model.safetensors"), HasSubstr("became shorter"),
                         HasSubstr("experts.100")));
  EXPECT_EQ(Find(100), nullptr);
  EXPECT_EQ(store_->count(), 1);
  EXPECT_THAT(Message(store_->Populate({layer_, 100})), HasSubstr("became shorter"));
}

TEST_F(ExpertStoreTest, ADamagedShardIsNamedByItsTensor) {
  const uint16_t nan = 0x7fc1;
  std::fstream file(Weights(), std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(Down(9).offset + 64));
  file.write(reinterpret_cast<const char*>(&nan), sizeof(nan));
  file.close();
  EXPECT_THAT(Load(9), AllOf(HasSubstr("experts.9."), HasSubstr("element 32 is NaN")));
  EXPECT_EQ(Find(9), nullptr);
  EXPECT_EQ(Load(10), "");
  EXPECT_EQ(Load(9, /*check=*/false), "");
}

TEST_F(ExpertStoreTest, WhatTheModelHasNotIsNotFound) {
  EXPECT_THAT(Load(128), HasSubstr("no expert 128"));
  EXPECT_FALSE(store_->Load({-1, 0}, {}).ok());
  EXPECT_FALSE(store_->Load({77, 0}, {}).ok());
  EXPECT_FALSE(store_->Exists({0, 0}) && !spec_.layers[0].moe);
}

TEST_F(ExpertStoreTest, LoadingCanBeGivenUp) {
  uint64_t read = 0;
  const absl::Status status = store_->Load({layer_, 3}, {.pace = [&read](uint64_t bytes) {
                                             read += bytes;
                                             return read < bytes * 2;  // after the second tensor
                                           }});
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(Find(3), nullptr);
  EXPECT_GT(read, 0u);
  EXPECT_LT(read, store_->expert_bytes());
}

// Of a tensor that is missing only its own expert suffers.
TEST(ExpertStore, AMissingTensorHurtsNoNeighbour) {
  ModelSpec spec = testing::MoeSpec({});
  const auto source = std::make_shared<testing::MemorySource>(spec, 7);
  spec.experts.count = 13;  // of which the checkpoint has twelve
  const auto store = *ExpertStore::Open(spec, std::vector<bool>(13, false), source);
  EXPECT_THAT(Message(store->Load({1, 12}, {})), HasSubstr("experts.12"));
  EXPECT_TRUE(store->Load({1, 11}, {}).ok());
}

}  // namespace
}  // namespace switchyard::worker
