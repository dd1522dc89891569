// Migrations and takeovers with real workers over real streams, under load.
#include "router/fleet/fleet.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "absl/cleanup/cleanup.h"
#include "absl/synchronization/notification.h"
#include "tests/support/fleet_fixture.h"

namespace switchyard::router {
namespace {

using testing::Expected;
using testing::ExpectSame;
using testing::FleetTest;
using testing::MoeBatch;

TEST_F(FleetTest, ExpertsMoveUnderLoadAndOldCopiesGo) {
  Serve({"0-7", "8-11", "none"});
  ASSERT_TRUE(router_->WhenReady());
  Follow(7, {"0-3", "8-11", "4-7"});
  ASSERT_TRUE(RunUntil([&] { return fleet_->Report().epoch_in_use == 7; }));
  EXPECT_EQ(fleet_->Report().moving, 0);
  // Acknowledged, so that the first worker gives up what it no longer should have.
  ASSERT_TRUE(RunUntil([&] { return workers_[0]->worker().experts_held() == 2 * 4; }));
  EXPECT_EQ(workers_[2]->worker().experts_held(), 2 * 4);

  Follow(6, {"", "8-11", "0-7"});  // of the past
  Follow(8, {"8-11", "0-7", "0-7"});
  ASSERT_TRUE(RunUntil([&] { return fleet_->Report().epoch_in_use == 8; }));
  ASSERT_TRUE(RunUntil([&] { return workers_[0]->worker().experts_held() == 2 * 4; }));
  EXPECT_EQ(fleet_->Report().migrations, 2u);
  EXPECT_EQ(Lost(), 0u);
}

TEST_F(FleetTest, AWorkerThatComesBackIsToldAgain) {
  Serve({"none", "none"});
  Follow(3, {"0-7", "4-11"});
  ASSERT_TRUE(router_->Until([&] {
    fleet_->Look(absl::Now());
    return fleet_->Report().epoch_in_use == 3;
  }));
  workers_[0].reset();
  workers_[0] = Worker("none", addresses_[0]);
  ASSERT_TRUE(RunUntil([&] { return workers_[0]->worker().experts_held() == 2 * 8; }));
  EXPECT_EQ(Lost(), 0u);
}

TEST_F(FleetTest, TheExpertsOfALostWorkerAreTakenOver) {
  Serve({"0-3", "4-7", "8-11"});
  ASSERT_TRUE(router_->WhenReady());
  ASSERT_TRUE(RunUntil([&] { return seed_ == 10; }));
  workers_[1].reset();
  ASSERT_TRUE(RunUntil([&] { return seed_ == 20; }));
  EXPECT_EQ(Lost(), 0u);
  EXPECT_EQ(fleet_->Report().taken_over, 2u * 4u);
  ASSERT_TRUE(RunUntil([&] { return fleet_->Report().orphans == 0; }));
  EXPECT_EQ(workers_[0]->worker().experts_held() + workers_[2]->worker().experts_held(), 2 * 12);
}

// Nobody is up when it first looks, and what the first to come holds beyond its part may be all
// that there is.
TEST_F(FleetTest, ARouterThatComesAmidAMigrationLetsNothingGoTooEarly) {
  Serve({"0-11", "none"});
  workers_[1].reset();
  Follow(7, {"0-3", "4-11"});
  fleet_->Look(absl::Now());
  ASSERT_TRUE(router_->WhenReady());
  ASSERT_TRUE(RunUntil([&] { return seed_ == 30; }));
  EXPECT_EQ(workers_[0]->worker().experts_held(), 2 * 12);
  EXPECT_EQ(fleet_->Report().epoch_in_use, 0u);
  workers_[1] = Worker("none", addresses_[1]);
  ASSERT_TRUE(RunUntil([&] { return fleet_->Report().epoch_in_use == 7; }));
  ASSERT_TRUE(RunUntil([&] { return workers_[0]->worker().experts_held() == 2 * 4; }));
  EXPECT_EQ(Lost(), 0u);
}

// Storage that hangs, once it is told to.
class StuckSource : public testing::MemorySource {
 public:
  using MemorySource::MemorySource;
  absl::Status Map(const std::vector<checkpoint::TensorRange>& ranges) override {
    if (hangs) mended.WaitForNotification();
    return MemorySource::Map(ranges);
  }
  std::atomic<bool> hangs = false;
  absl::Notification mended;
};

TEST_F(FleetTest, WhoDoesNotLoadWhatItTookOverIsNotTheOnlyOneAsked) {
  Serve({"0-3", "none", "8-11", "4-7"}, {.patience = absl::Milliseconds(50)});
  const auto source = std::make_shared<StuckSource>(spec_, 7);
  auto stuck = worker::Worker::Create(spec_, testing::kFingerprint, source,
                                      {.experts = "4-7", .memory_bytes = 1 << 20}, nullptr);
  ASSERT_TRUE(stuck.ok()) << stuck.status();
  workers_[1].reset();
  workers_[1] = std::make_unique<testing::ServedWorker>(*std::move(stuck), addresses_[1]);
  ASSERT_TRUE(router_->WhenReady());
  ASSERT_TRUE(RunUntil([&] { return seed_ == 10; }));
  source->hangs = true;
  const absl::Cleanup mend = [&] { source->mended.Notify(); };
  workers_[0].reset();
  const auto held = [&](int worker) { return workers_[worker]->worker().experts_held(); };
  ASSERT_TRUE(RunUntil([&] { return held(2) + held(3) >= 2 * 12; }));
  EXPECT_EQ(held(1), 2 * 4);
  EXPECT_GT(fleet_->Report().taken_over, 2u * 4u) << "asked once each: nobody was stuck";
  EXPECT_EQ(Lost(), 0u);
}

// A load that fails keeps nothing else of its placement back.
TEST_F(FleetTest, APlacementIsUsedButForWhatCouldNotBeLoaded) {
  Serve({"0-11", "none"});
  const auto source = ServeFaulty(1, "none");
  source->SetBad(1, 5, true);
  ASSERT_TRUE(router_->WhenReady());
  Follow(7, {"0-3", "4-11"});
  ASSERT_TRUE(RunUntil([&] { return fleet_->Report().epoch_in_use == 7; }));
  EXPECT_EQ(fleet_->Report().migrations, 1u);
  EXPECT_THAT(fleet_->Report().waits_for,
              ::testing::ElementsAre(addresses_[1] + ": could not load expert 5 of layer 1"));
  // Who alone has it keeps it, and is asked for it: RunOne compares.
  const uint32_t jobs = seed_ + 30;
  ASSERT_TRUE(RunUntil([&] { return seed_ >= jobs; }));
  EXPECT_EQ(workers_[0]->worker().experts_held(), 2 * 12);
  source->SetBad(1, 5, false);
  Follow(8, {"0-3", "4-11"});
  ASSERT_TRUE(RunUntil([&] { return workers_[0]->worker().experts_held() == 2 * 4; }));
  EXPECT_THAT(fleet_->Report().waits_for, ::testing::IsEmpty());
  EXPECT_EQ(Lost(), 0u);
}

TEST_F(FleetTest, APlacementAmidATakeoverDoesNotHoldItUp) {
  Serve({"0-3", "none"}, {.patience = absl::Hours(1)});
  const auto source = ServeFaulty(1, "4-11");
  ASSERT_TRUE(router_->WhenReady());
  ASSERT_TRUE(RunUntil([&] { return seed_ == 5; }));
  source->HoldUp(true);
  workers_[0].reset();
  ASSERT_TRUE(LookUntil([&] { return fleet_->Report().taken_over == 2 * 4; }));
  source->AwaitReader();
  // One that this router sends, then one of another.
  Follow(7, {"0-3", "4-11"});
  fleet_->Look(absl::Now());
  EXPECT_GT(fleet_->Report().taken_over, 2u * 4u);
  expertwire::pb::Assign foreign;
  foreign.set_epoch(9);
  for (int layer = 1; layer <= 2; ++layer) {
    expertwire::pb::HeldExperts& own = *foreign.add_experts();
    own.set_layer(layer);
    own.add_first(4), own.add_last(11);
  }
  router_->links().links()[1]->Assign(foreign);
  ASSERT_TRUE(LookUntil([&] { return fleet_->Report().ahead == 1; }));
  source->HoldUp(false);
  EXPECT_TRUE(LookUntil([&] { return workers_[1]->worker().experts_held() == 2 * 12; }));
}

TEST_F(FleetTest, WhatAWorkerCouldNotLoadIsAskedOfItsSuccessor) {
  Serve({"0-3", "none"}, {.patience = absl::Hours(1)});
  const auto source = ServeFaulty(1, "4-11");
  source->SetBad(1, 2, true);
  ASSERT_TRUE(router_->WhenReady());
  ASSERT_TRUE(RunUntil([&] { return seed_ == 5; }));
  workers_[0].reset();
  ASSERT_TRUE(LookUntil(
      [&] { return fleet_->Report().orphans == 1 && fleet_->Report().failed_loads == 1; }));
  workers_[1].reset();
  workers_[1] = Worker("4-11", addresses_[1]);
  EXPECT_TRUE(LookUntil([&] { return workers_[1]->worker().experts_held() == 2 * 12; }));
}

// Workers that start together are not all there at once.
TEST_F(FleetTest, WhatThisRouterNeverSawIsNotLostBeforeItsWorkerHadTimeToCome) {
  Serve({"0-3", "4-7", "8-11"});
  workers_[1].reset();
  const absl::Time began = absl::Now();
  const auto look_at = [&](absl::Duration after) { fleet_->Look(began + after); };
  ASSERT_TRUE(router_->Until([&] {
    look_at(absl::ZeroDuration());
    return fleet_->Report().orphans == 2 * 4;
  }));
  look_at(absl::Seconds(9));
  EXPECT_EQ(fleet_->Report().taken_over, 0u);
  look_at(absl::Seconds(11));
  EXPECT_EQ(fleet_->Report().taken_over, 2u * 4u);
}

TEST_F(FleetTest, WhomAPlacementWaitsForIsTold) {
  Serve({"0-11", "none"});
  ASSERT_TRUE(router_->WhenReady());
  const std::string known = addresses_[1];
  addresses_[1] = "127.0.0.1:1";  // a slip
  Follow(3, {"0-7", "8-11"});
  ASSERT_TRUE(RunUntil([&] { return !fleet_->Report().waits_for.empty(); }));
  EXPECT_THAT(fleet_->Report().waits_for, ::testing::ElementsAre("127.0.0.1:1"));
  EXPECT_EQ(fleet_->Report().epoch_in_use, 0u);
  addresses_[1] = known;
  Follow(4, {"0-7", "8-11"});
  ASSERT_TRUE(RunUntil([&] { return fleet_->Report().epoch_in_use == 4; }));
  EXPECT_TRUE(fleet_->Report().waits_for.empty());
}

// Two routers of the same workers.
TEST_F(FleetTest, ARouterWithoutAPlacementHoldsNothingBack) {
  Serve({"0-11", "none"});
  testing::Router other(spec_, DType::kBF16, addresses_);
  Fleet follows_nothing(spec_, other.links(), other.dispatcher(), {.placed = false});
  ASSERT_TRUE(other.WhenReady());
  Follow(7, {"0-3", "4-11"});
  ASSERT_TRUE(RunUntil([&] {
    follows_nothing.Look(absl::Now());
    other.dispatcher().Wait(absl::Now());
    return workers_[0]->worker().experts_held() == 2 * 4;
  }));
}

TEST_F(FleetTest, WorkersThatHeedAHigherEpochAreCounted) {
  Serve({"0-7", "8-11"});
  Follow(7, {"0-7", "8-11"});
  ASSERT_TRUE(RunUntil([&] { return fleet_->Report().epoch_in_use == 7; }));
  EXPECT_EQ(fleet_->Report().ahead, 0);
  fleet_ = std::make_unique<Fleet>(spec_, router_->links(), router_->dispatcher(), FleetOptions{});
  Follow(6, {"0-11", ""});
  ASSERT_TRUE(RunUntil([&] { return fleet_->Report().ahead == 2; }));
  Follow(8, {"0-11", ""});
  ASSERT_TRUE(RunUntil([&] { return fleet_->Report().epoch_in_use == 8; }));
  EXPECT_EQ(fleet_->Report().ahead, 0);
}

// As after a restart of the router: nobody is there who knows what the epoch was of.
TEST_F(FleetTest, APlacementThatComesNoNearerIsTold) {
  Serve({"0-7", "8-11"});
  Follow(7, {"0-7", "8-11"});
  ASSERT_TRUE(RunUntil([&] { return fleet_->Report().epoch_in_use == 7; }));
  fleet_ = std::make_unique<Fleet>(spec_, router_->links(), router_->dispatcher(), FleetOptions{});
  Follow(7, {"0-3", "4-11"});
  ASSERT_TRUE(RunUntil([&] { return fleet_->Report().moving > 0; }));
  EXPECT_FALSE(fleet_->Report().stalled);
  fleet_->Look(absl::Now() + absl::Seconds(31));
  EXPECT_TRUE(fleet_->Report().stalled);
  Follow(8, {"0-3", "4-11"});
  ASSERT_TRUE(RunUntil([&] { return fleet_->Report().epoch_in_use == 8; }));
  EXPECT_FALSE(fleet_->Report().stalled);
}

TEST_F(FleetTest, WithoutTakeoverRowsWaitForTheWorkerItself) {
  Serve({"0-3", "4-11"}, {.takeover = false});
  ASSERT_TRUE(router_->WhenReady());
  RunOne();
  workers_[0].reset();
  MoeBatch batch(spec_, DType::kBF16, 9, 1);
  const MoeTicket ticket = router_->Start(batch);
  for (int i = 0; i < 50; ++i) {
    router_->dispatcher().Wait(absl::Now() + absl::Milliseconds(5));
    EXPECT_FALSE(router_->dispatcher().Finished(ticket));
    fleet_->Look(absl::Now());
  }
  EXPECT_EQ(fleet_->Report().orphans, 2 * 4);
  workers_[0] = Worker("0-3", addresses_[0]);
  router_->Finish(ticket);
  ExpectSame(batch, Expected(spec_, DType::kBF16, 1, batch));
}

TEST_F(FleetTest, AWorkerThatDrainsIsLetGoOnceOthersHoldItsExperts) {
  Serve({"0-3", "4-7", "8-11"});
  ASSERT_TRUE(router_->WhenReady());
  worker::Worker& leaves = workers_[1]->worker();
  leaves.BeginDrain();
  // Without any traffic.
  const absl::Time bound = absl::Now() + absl::Seconds(20);
  while (leaves.counters().routers > 0 && absl::Now() < bound) {
    fleet_->Look(absl::Now());
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(leaves.counters().routers, 0u);
  EXPECT_EQ(workers_[0]->worker().experts_held() + workers_[2]->worker().experts_held(), 2 * 12);
  EXPECT_EQ(workers_[0]->worker().counters().routers, 1u);
  EXPECT_EQ(fleet_->Report().orphans, 0);
  RunOne();
  EXPECT_EQ(Lost(), 0u);
}

TEST_F(FleetTest, AWorkerThatDrainsIsKeptWhileNobodyElseHoldsItsExperts) {
  Serve({"0-3", "4-11"}, {.takeover = false});
  ASSERT_TRUE(router_->WhenReady());
  workers_[0]->worker().BeginDrain();
  ASSERT_TRUE(RunUntil(
      [&] { return router_->links().links()[0]->state() == expertwire::LinkState::kDraining; }));
  for (int i = 0; i < 20; ++i) {
    fleet_->Look(absl::Now());
    RunOne();
    ASSERT_EQ(workers_[0]->worker().counters().routers, 1u);
  }
  EXPECT_EQ(Lost(), 0u);
}

}  // namespace
}  // namespace switchyard::router
