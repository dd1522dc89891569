// Experts in the memory of an emulated device, which comes as a plugin as real ones do.
#include "expert-worker/device/device_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "expert-worker/device/pack_expert.h"
#include "services/kernels/cuda/expert_block.h"
#include "tests/support/faulty_source.h"

namespace switchyard::worker {
namespace {

using testing::FaultySource;
using ::testing::HasSubstr;

std::shared_ptr<const device::Cuda> Emulated() {
  static const auto cuda = device::Cuda::Open(SY_EMULATED_PLUGIN, 0);
  EXPECT_TRUE(cuda.ok()) << cuda.status();
  return *cuda;
}

class DeviceMemoryTest : public ::testing::Test {
 protected:
  DeviceMemoryTest() { Make(0, 0); }
  void Make(uint64_t experts, uint64_t pinned) {
    memory_.reset();
    auto probe = DeviceMemory::Create(spec_, *store_, Emulated(), 0, 0);
    ASSERT_TRUE(probe.ok()) << probe.status();
    const uint64_t one = (*probe)->expert_bytes();
    memory_ = *DeviceMemory::Create(spec_, *store_, Emulated(), experts * one, pinned * one);
  }
  // What lies there: the emulated device's memory can be read.
  bool Holds(const void* block, ExpertId id) const {
    std::vector<std::byte> packed(cuda::ExpertBlock(*memory_->spec()).bytes);
    PackExpert(*memory_->spec(), *store_->Find(id.layer, id.expert), packed.data());
    return std::memcmp(block, packed.data(), packed.size()) == 0;
  }
  const void* Pin(int expert, bool wait = true) {
    const auto block = memory_->Pin({1, expert}, wait);
    EXPECT_TRUE(block.ok()) << block.status();
    return block.value_or(nullptr);
  }

  const ModelSpec spec_ = testing::MoeSpec({.layers = 2});
  const std::shared_ptr<FaultySource> source_ = std::make_shared<FaultySource>(spec_, 7);
  const std::unique_ptr<ExpertStore> store_ =
      *ExpertStore::Open(spec_, std::vector<bool>(12, true), source_);
  std::unique_ptr<DeviceMemory> memory_;
};

TEST_F(DeviceMemoryTest, WhatIsPinnedIsThere) {
  const void* const block = Pin(3);
  EXPECT_TRUE(Holds(block, {1, 3}));
  EXPECT_FALSE(Holds(block, {1, 4}));
  EXPECT_EQ(Pin(3), block);
  memory_->Unpin({1, 3});
  memory_->Unpin({1, 3});
  EXPECT_EQ(memory_->counters().uploaded, 1u);
}

TEST_F(DeviceMemoryTest, WhatTiersBroughtStaysAndWhatWasOnlyPinnedGoes) {
  ASSERT_TRUE(memory_->Populate({1, 3}).ok());
  Pin(3), memory_->Unpin({1, 3});
  Pin(3), memory_->Unpin({1, 3});
  EXPECT_EQ(memory_->counters().uploaded, 1u);
  Pin(4), memory_->Unpin({1, 4});
  Pin(4), memory_->Unpin({1, 4});
  EXPECT_EQ(memory_->counters().uploaded, 3u);
  memory_->Evict({1, 3});
  Pin(3), memory_->Unpin({1, 3});
  EXPECT_EQ(memory_->counters().uploaded, 4u);
}

TEST_F(DeviceMemoryTest, WhatIsEvictedWhilePinnedStaysUntilThen) {
  ASSERT_TRUE(memory_->Populate({1, 3}).ok());
  const void* const block = Pin(3);
  memory_->Evict({1, 3});
  EXPECT_NE(Pin(4), block);
  EXPECT_TRUE(Holds(block, {1, 3}));
  memory_->Unpin({1, 3});
  EXPECT_EQ(Pin(5), block) << "its room is used again";
}

TEST_F(DeviceMemoryTest, WhatWasPackedOnceIsCopiedAgain) {
  Make(1, 3);
  for (int round = 0; round < 2; ++round) {
    for (const int e : {1, 2, 3}) {
      EXPECT_TRUE(Holds(Pin(e), {1, e}));
      memory_->Unpin({1, e});
    }
  }
  const DeviceMemoryCounters c = memory_->counters();
  EXPECT_EQ(c.packed, 3u);
  EXPECT_EQ(c.uploaded, 6u);
  EXPECT_EQ(c.pinned_bytes, 3 * memory_->expert_bytes());
}

TEST_F(DeviceMemoryTest, WhoHasNothingPinnedWaitsForRoomAndOthersAreTold) {
  Make(1, 0);
  Pin(0), Pin(1), Pin(2);  // its room, and the spare
  EXPECT_TRUE(absl::IsResourceExhausted(memory_->Pin({1, 3}, /*wait=*/false).status()));
  const void* block = nullptr;
  std::thread other([&] { block = Pin(3); });
  memory_->Unpin({1, 1});
  other.join();
  EXPECT_TRUE(Holds(block, {1, 3}));
}

TEST_F(DeviceMemoryTest, AnExpertThatCannotBeReadIsItsFault) {
  source_->SetBad(1, 3, true);
  EXPECT_TRUE(absl::IsDataLoss(memory_->Populate({1, 3})));
  EXPECT_TRUE(absl::IsDataLoss(memory_->Pin({1, 3}, true).status()));
  source_->SetBad(1, 3, false);
  EXPECT_TRUE(memory_->Populate({1, 3}).ok());
}

TEST_F(DeviceMemoryTest, ManyThreadsAtOnce) {
  Make(3, 2);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const int e = (7 * i + t) % 12;
        if (t < 2) {
          (void)memory_->Populate({1, t});  // as Tiers: no more than there is room for
          memory_->Evict({1, t});
        } else {
          EXPECT_TRUE(Holds(Pin(e), {1, e}));
          memory_->Unpin({1, e});
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(DeviceMemoryTest, ADeviceThatIsFullSaysSo) {
  const auto all = device::CudaBlock::Allocate(Emulated(), SY_CUDA_DEVICE, uint64_t{1} << 40);
  EXPECT_TRUE(absl::IsResourceExhausted(all.status()));
  EXPECT_THAT(all.status().message(), HasSubstr("1099511627776 bytes"));
}

}  // namespace
}  // namespace switchyard::worker
