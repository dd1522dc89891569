#include "expert-worker/store/tiers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "absl/time/clock.h"
#include "tests/support/faulty_source.h"

namespace switchyard::worker {
namespace {

using testing::FaultySource;
using ::testing::HasSubstr;

TEST(HeatAfterUse, CountsUsesThatHalveWithTime) {
  const double never = -1e300;
  EXPECT_DOUBLE_EQ(HeatAfterUse(never, 7), 7);  // one use now
  EXPECT_DOUBLE_EQ(HeatAfterUse(7, 7), 8);      // two
  // Two uses a half-life ago are worth one now.
  EXPECT_DOUBLE_EQ(HeatAfterUse(HeatAfterUse(never, 6), 6), HeatAfterUse(never, 7));
  double heat = never;
  for (int i = 0; i < 5; ++i) heat = HeatAfterUse(heat, 100);
  EXPECT_NEAR(std::exp2(heat - 100), 5, 1e-9);
  EXPECT_GT(HeatAfterUse(never, 103), heat);      // 5 / 8 < 1
  EXPECT_LT(HeatAfterUse(never, 102), heat);      // 5 / 4 > 1
  EXPECT_DOUBLE_EQ(HeatAfterUse(1000, 7), 1000);  // a clock that went back
}

// Memory for four experts of layer 1, of which there are twelve.
class TiersTest : public ::testing::Test {
 protected:
  explicit TiersTest(int layers = 2)
      : spec_(testing::MoeSpec({.layers = layers})),
        store_(*ExpertStore::Open(spec_, std::vector<bool>(12, true), source_)) {
    Make(4);
  }
  void Make(uint64_t experts) {
    tiers_.reset();
    tiers_ = std::make_unique<Tiers>(*store_, memory_,
                                     TierOptions{.memory_bytes = experts * store_->expert_bytes(),
                                                 .half_life = absl::Seconds(1),
                                                 .hint_life = absl::Hours(1)});
  }
  // One computation with these experts.
  void Compute(std::vector<int> experts, Tiers::Clock::time_point now = {}, int layer = 1) {
    tiers_->Begin(now);
    for (const int e : experts) {
      const auto weights = tiers_->Use(layer, e);
      ASSERT_TRUE(weights.ok()) << weights.status();
      ASSERT_EQ(*weights, store_->Find(layer, e));
    }
    tiers_->End();
  }
  // Whether using it would be a hit, without using it.
  bool Resident(int e, int layer = 1) const { return source_->in_memory(layer, e); }
  void AwaitNothingToRead() {
    const absl::Time bound = absl::Now() + absl::Seconds(20);
    while (tiers_->counters().to_read > 0 && absl::Now() < bound) std::this_thread::yield();
    ASSERT_EQ(tiers_->counters().to_read, 0u);
  }
  void AwaitPrefetched(uint64_t count) {
    const absl::Time bound = absl::Now() + absl::Seconds(20);
    while (tiers_->counters().prefetched < count && absl::Now() < bound) std::this_thread::yield();
    ASSERT_EQ(tiers_->counters().prefetched, count);
  }

  const ModelSpec spec_;
  const std::shared_ptr<FaultySource> source_ = std::make_shared<FaultySource>(spec_, 7);
  const std::unique_ptr<ExpertStore> store_;
  HostMemory memory_{*store_};
  std::unique_ptr<Tiers> tiers_;
};

TEST_F(TiersTest, ThereIsNeverMoreInMemoryThanThereIsRoomFor) {
  EXPECT_EQ(store_->expert_bytes(), store_->Find(1, 3)->bytes());
  EXPECT_TRUE(tiers_->tight());
  for (int round = 0; round < 3; ++round) {
    for (int e = 0; e < 12; ++e) {
      Compute({e});
      EXPECT_LE(tiers_->counters().resident, 4);
      EXPECT_LE(tiers_->counters().resident_bytes, 4 * store_->expert_bytes());
      EXPECT_LE(source_->experts_in_memory(), 4u);
    }
  }
  const TierCounters c = tiers_->counters();
  EXPECT_EQ(c.hits + c.misses, 36u);
  EXPECT_EQ(c.promotions, c.misses);
  EXPECT_EQ(c.demotions, c.promotions);  // it was full from the start
  EXPECT_EQ(c.bytes_promoted, c.promotions * store_->expert_bytes());
}

TEST_F(TiersTest, WhatIsUsedMostStays) {
  for (int round = 0; round < 10; ++round) Compute({6, 7, 8});
  const uint64_t misses = tiers_->counters().misses;
  EXPECT_EQ(misses, 3u);
  for (int e : {9, 10, 11, 0, 1}) Compute({e});  // share the last place
  Compute({6, 7, 8});
  EXPECT_EQ(tiers_->counters().misses, misses + 5);
}

TEST_F(TiersTest, UsesOfLongAgoCountLittle) {
  const Tiers::Clock::time_point start;
  for (int round = 0; round < 100; ++round) Compute({4, 5, 6, 7}, start);
  const Tiers::Clock::time_point later =
      start + std::chrono::seconds(10);  // 100 / 1024 of a use are left
  for (int e : {8, 9, 10, 11}) Compute({e}, later);
  EXPECT_TRUE(Resident(8) && Resident(9) && Resident(10) && Resident(11));
  EXPECT_FALSE(Resident(4));
}

TEST_F(TiersTest, AComputationHasAllThatItUses) {
  tiers_->Begin({});
  for (int e = 0; e < 6; ++e) ASSERT_TRUE(tiers_->Use(1, e).ok());
  EXPECT_EQ(tiers_->counters().resident, 6);
  for (int e = 4; e < 6; ++e) EXPECT_TRUE(Resident(e));
  tiers_->End();
  EXPECT_EQ(tiers_->counters().resident, 4);
}

TEST_F(TiersTest, WhatIsAskedForIsReadBeforehand) {
  tiers_->Want(1, 9);
  AwaitPrefetched(1);
  EXPECT_TRUE(Resident(9));
  tiers_->Want(1, 9);  // is there
  tiers_->Want(1, 77);
  tiers_->Want(0, 1);  // a dense layer
  Compute({9});
  const TierCounters c = tiers_->counters();
  EXPECT_EQ(c.hits, 1u);
  EXPECT_EQ(c.misses, 0u);
  EXPECT_EQ(c.stall_us, 0u);
  EXPECT_EQ(source_->populated(1, 9), 1);
}

TEST_F(TiersTest, WhatIsWantedDoesNotPushEachOtherOut) {
  for (int e : {4, 5, 6, 7}) tiers_->Want(1, e);
  AwaitPrefetched(4);
  tiers_->Want(1, 8);
  Compute({4});  // used: may go
  tiers_->Want(1, 9);
  AwaitPrefetched(5);
  EXPECT_TRUE(Resident(5) && Resident(6) && Resident(7));
  EXPECT_FALSE(Resident(4));
}

// Memory for four experts of layers 1 and 2.
class HintedTiersTest : public TiersTest {
 protected:
  HintedTiersTest() : TiersTest(3) {}
  void Hint(int layer, const std::vector<int>& experts) {
    for (const int e : experts) tiers_->Hint(layer, e);
    AwaitNothingToRead();
  }
};

TEST_F(HintedTiersTest, AHintLastsUntilItsLayerIsComputed) {
  Hint(2, {4, 5, 6, 7});
  Hint(2, {8});  // no room without another's
  EXPECT_TRUE(Resident(4, 2) && Resident(5, 2) && Resident(6, 2) && Resident(7, 2));
  Compute({0}, {}, 1);  // needs room: one of them goes, whichever
  EXPECT_TRUE(Resident(0, 1));
  EXPECT_EQ(tiers_->counters().resident, 4);
  Compute({4}, {}, 2);
  Hint(1, {8, 9, 10});  // in place of what nobody used
  EXPECT_TRUE(Resident(8, 1) && Resident(9, 1) && Resident(10, 1));
  EXPECT_EQ(tiers_->counters().resident, 4);
}

TEST_F(HintedTiersTest, HintsDoNotMakeAComputationExceedTheMemory) {
  for (int round = 0; round < 3; ++round) {
    Hint(2, {4, 5, 6, 7});
    Compute({0, 1}, {}, 1);
    EXPECT_LE(tiers_->counters().resident, 4);
    EXPECT_LE(source_->experts_in_memory(), 4u);
  }
}

TEST_F(HintedTiersTest, WhatACallNamesOutlivesAComputationOfItsLayer) {
  for (int e : {4, 5, 6}) tiers_->Want(2, e);
  AwaitNothingToRead();
  Compute({7}, {}, 2);
  Hint(1, {8, 9, 10});
  EXPECT_TRUE(Resident(4, 2) && Resident(5, 2) && Resident(6, 2));
}

TEST_F(HintedTiersTest, AHintDoesNotShortenWhatACallWants) {
  for (int e : {4, 5, 6}) tiers_->Want(2, e);
  Hint(2, {4, 5, 6});
  Compute({7}, {}, 2);
  Hint(1, {8, 9, 10});
  EXPECT_TRUE(Resident(4, 2) && Resident(5, 2) && Resident(6, 2));
}

TEST_F(HintedTiersTest, AHintThatComesTooLateIsNotRead) {
  Compute({1}, {}, 2);  // these two stay, as they were used
  Compute({3}, {}, 1);
  source_->HoldUp(true);
  tiers_->Want(1, 9);
  source_->AwaitReader();
  tiers_->Hint(2, 4);
  Compute({1}, {}, 2);
  tiers_->Hint(2, 5);
  Compute({3}, {}, 1);  // another layer's
  source_->HoldUp(false);
  AwaitNothingToRead();
  EXPECT_FALSE(Resident(4, 2));
  EXPECT_TRUE(Resident(5, 2));
}

TEST_F(TiersTest, WhatCannotBeReadIsSaid) {
  source_->SetBad(1, 9, true);
  tiers_->Begin({});
  const auto weights = tiers_->Use(1, 9);
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(weights.status().message()), HasSubstr("experts.9"));
  tiers_->End();
  EXPECT_EQ(tiers_->counters().resident, 3);  // room was made
  source_->SetBad(1, 9, false);
  Compute({9});
  EXPECT_TRUE(Resident(9));
}

TEST_F(TiersTest, WhatComesIsInMemoryWhereThereIsRoom) {
  store_->Remove({1, 0});
  tiers_->OnRemoved({1, 0});
  for (int e = 4; e < 12; ++e) store_->Remove({1, e});
  EXPECT_FALSE(tiers_->tight());
  EXPECT_EQ(tiers_->counters().resident, 3);
  for (const int e : {9, 10}) {
    ASSERT_TRUE(store_->Load({1, e}, {}).ok());
    tiers_->OnLoaded({1, e});
  }
  EXPECT_TRUE(Resident(9));
  EXPECT_FALSE(Resident(10));
  EXPECT_EQ(tiers_->counters().resident, 4);
}

TEST_F(TiersTest, WithoutABoundNothingMoves) {
  tiers_.reset();
  tiers_ = std::make_unique<Tiers>(*store_, memory_, TierOptions{});
  EXPECT_FALSE(tiers_->tight());
  Compute({0, 5, 11});
  const TierCounters c = tiers_->counters();
  EXPECT_EQ(c.misses + c.promotions + c.demotions, 0u);
  EXPECT_EQ(c.resident, 12);
  EXPECT_EQ(source_->populated(1, 11), 0);
}

}  // namespace
}  // namespace switchyard::worker
