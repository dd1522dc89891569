// What failover_test and fleet_test do not see: a router that has no link yet, and which epoch is
// in use while jobs come and go.
#include "router/dispatch/expert_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <utility>

namespace switchyard::router {
namespace {

using ::testing::Each;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr absl::Time kStart = absl::UnixEpoch();

class ExpertViewTest : public ::testing::Test {
 protected:
  ExpertViewTest() {
    spec_.experts.count = 4;
    spec_.layers = {{.moe = false}, {.moe = true}};
    view_.emplace(spec_, links_, absl::Seconds(2), [] { return kStart; });
  }
  void Use(uint64_t epoch) {
    v1::Placement placement;
    placement.set_epoch(epoch);
    v1::WorkerPlacement* worker = placement.add_workers();
    worker->set_worker("w:1");
    worker->add_holds()->set_layers("1");
    worker->mutable_holds(0)->set_experts("0-3");
    auto index = placement::Expand(placement, placement::GridOf(spec_), "");
    ASSERT_TRUE(index.ok()) << index.status();
    view_->Use(std::make_shared<const placement::PlacementIndex>(*std::move(index)));
  }
  void Start(MoeTicket ticket) {
    view_->OnBegin();
    view_->Refresh();
    view_->OnPlanned(ticket);
  }

  ModelSpec spec_;
  expertwire::LinkSet links_{{}};
  std::optional<ExpertView> view_;
};

TEST_F(ExpertViewTest, WithoutALinkEveryExpertIsMissingAndAfterItsPatienceGone) {
  EXPECT_EQ(view_->Missing(), "layer 1: experts 0–3 have no live worker");
  EXPECT_FALSE(view_->Refresh());
  EXPECT_THAT(view_->map().first(1), Each(ExpertMap::kNone));
  EXPECT_FALSE(view_->map().replicated(1));
  EXPECT_THAT(view_->Gone(1, kStart + absl::Seconds(1.9)), IsEmpty());
  EXPECT_THAT(view_->Gone(1, kStart + absl::Seconds(2)), ::testing::AllOf(SizeIs(4), Each(1)));
  EXPECT_THAT(view_->Gone(0, kStart + absl::Seconds(2)), IsEmpty());
}

TEST_F(ExpertViewTest, AnEpochIsInUseOnceEveryOpenJobIsPlannedByIt) {
  EXPECT_EQ(view_->epoch_in_use(), 0u);
  Start(1);
  Start(2);
  Use(5);
  EXPECT_EQ(view_->epoch_in_use(), 0u);
  Start(3);  // the first that is planned by it
  view_->OnOver(2);
  EXPECT_EQ(view_->epoch_in_use(), 0u);
  Use(6);  // before 5 came into use
  Start(4);
  view_->OnOver(1);
  EXPECT_EQ(view_->epoch_in_use(), 0u);
  view_->OnOver(3);
  EXPECT_EQ(view_->epoch_in_use(), 6u);
  Use(7);
  EXPECT_TRUE(view_->Refresh());  // no job begins
  view_->OnOver(4);
  EXPECT_EQ(view_->epoch_in_use(), 7u);
}

TEST_F(ExpertViewTest, WhatIsHandedOverWhileNothingIsOpenIsInUse) {
  Use(5);
  EXPECT_EQ(view_->epoch_in_use(), 5u);
  Start(1);
  EXPECT_EQ(view_->epoch_in_use(), 5u);
  Use(6);
  view_->OnBegin();  // and has not looked yet
  EXPECT_EQ(view_->epoch_in_use(), 5u);
  view_->Refresh();
  view_->OnPlanned(2);
  EXPECT_EQ(view_->epoch_in_use(), 5u);
  view_->OnOver(1);
  EXPECT_EQ(view_->epoch_in_use(), 6u);
}

}  // namespace
}  // namespace switchyard::router
