// The balancer over real workers, that load and give up what it decides.
#include "router/fleet/balancer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "absl/strings/str_cat.h"
#include "tests/support/fleet_fixture.h"

namespace switchyard::router {
namespace {

using ::testing::HasSubstr;
using State = BalancerReport::State;

class BalancerTest : public testing::FleetTest {
 protected:
  void Balance(BalancerOptions options = {}) {
    options.every = absl::Milliseconds(50);
    options.settle = absl::ZeroDuration();
    options.rows_an_expert = 1;
    balancer_ = std::make_unique<Balancer>(
        BalanceModelOf(spec_, "", nullptr), options, *fleet_, router_->dispatcher(),
        Balancer::Hooks{.leads = [this] { return leads_.load(); },
                        .publish = [this](const v1::Placement& placement) -> absl::Status {
                          if (refuses_) return absl::AbortedError("another was faster");
                          auto index = placement::Expand(placement, placement::GridOf(spec_), "");
                          if (!index.ok()) return index.status();
                          fleet_->Follow(*std::move(index));
                          return absl::OkStatus();
                        }});
  }
  // Looks as a router does, under load.
  template <typename Condition>
  bool Until(Condition done) {
    return RunUntil([&] {
      balancer_->Look(absl::Now());
      return done(balancer_->Report());
    });
  }
  int64_t Held(int worker) const { return workers_[worker]->worker().experts_held(); }

  std::unique_ptr<Balancer> balancer_;
  std::atomic<bool> leads_ = true, refuses_ = false;
};

TEST_F(BalancerTest, WorkersGetTheirPartsUnderLoadAndKeepThem) {
  Serve({"0-9", "10-11", "none"});
  ASSERT_TRUE(router_->WhenReady());
  Balance();
  ASSERT_TRUE(Until([&](const auto& report) {
    return report.published > 0 && fleet_->Report().epoch_in_use > 0 && report.kept > 2;
  })) << balancer_->Report().last;
  const BalancerReport report = balancer_->Report();
  EXPECT_EQ(report.state, State::kActing);
  EXPECT_EQ(report.failed, 0u) << report.last;
  EXPECT_GT(report.utilisation, 0.8);
  EXPECT_GT(report.bytes, 0u);
  EXPECT_LT(absl::Now() - report.last_look, absl::Seconds(10));
  for (int worker = 0; worker < 3; ++worker) EXPECT_GE(Held(worker), 2 * 3);
  EXPECT_EQ(Lost(), 0u);
}

TEST_F(BalancerTest, WhatIsLostIsPlacedAnewAndAReplacementTakesItsPart) {
  Serve({"0-3", "4-7", "8-11"});
  ASSERT_TRUE(router_->WhenReady());
  Balance();
  ASSERT_TRUE(Until([&](const auto& report) { return report.kept > 0; }));
  workers_[1].reset();
  // By takeover or by a plan, whichever is first.
  ASSERT_TRUE(Until([&](const auto&) {
    const FleetReport fleet = fleet_->Report();
    return Held(0) + Held(2) >= 2 * 12 && fleet.epoch_in_use == fleet.epoch;
  })) << balancer_->Report().last;
  workers_[1] = Worker("none", addresses_[1]);
  ASSERT_TRUE(Until([&](const auto&) {
    const FleetReport fleet = fleet_->Report();
    return Held(1) >= 2 * 3 && fleet.epoch_in_use == fleet.epoch;
  })) << balancer_->Report().last;
  EXPECT_EQ(Lost(), 0u);
}

TEST_F(BalancerTest, BytesThatAreDamagedAreNotReadAgainAndAgain) {
  Serve({"0-11", "none", "none"});
  const auto source = ServeFaulty(1, "none");
  for (int e = 0; e < 12; ++e) source->SetBad(1, e, true);
  ASSERT_TRUE(RunUntil([&] { return fleet_->Workers().size() == 3; }));
  Balance();
  ASSERT_TRUE(Until([&](const auto& report) {
    return report.published > 0 && fleet_->Report().failed_loads > 0;
  })) << balancer_->Report().last;
  // Until it is content with what can be.
  uint64_t plans = 0;
  ASSERT_TRUE(Until([&](const auto& report) {
    if (plans == 0 && report.kept > 0) plans = report.kept + 3;
    return plans > 0 && report.kept >= plans && fleet_->Report().waits_for.empty();
  })) << balancer_->Report().last;
  // Once more at most, where a plan that was overdue came before it was heard.
  for (int e = 0; e < 12; ++e) EXPECT_LE(source->populated(1, e), 2) << e;
  EXPECT_GE(Held(1), 4);  // of the other layer
  EXPECT_EQ(balancer_->Report().failed, 0u);
  EXPECT_EQ(Lost(), 0u);
}

TEST_F(BalancerTest, OneThatStandsByPublishesNothingUntilItLeads) {
  leads_ = false;
  Serve({"0-10", "11"});
  ASSERT_TRUE(router_->WhenReady());
  Balance();
  absl::Time looked;
  ASSERT_TRUE(Until([&](const auto& report) {
    looked = report.last_look;
    return looked != absl::InfinitePast();
  }));
  ASSERT_TRUE(Until([&](const auto& report) { return report.last_look > looked; }));
  EXPECT_EQ(balancer_->Report().state, State::kStandby);
  EXPECT_EQ(fleet_->Report().epoch, 0u);
  leads_ = true;
  ASSERT_TRUE(Until([&](const auto& report) { return report.published > 0; }));
}

TEST_F(BalancerTest, WhatCannotBePublishedIsTriedAgain) {
  refuses_ = true;
  Serve({"0-10", "11"});
  ASSERT_TRUE(router_->WhenReady());
  Balance();
  ASSERT_TRUE(Until([&](const auto& report) { return report.failed > 1; }));
  EXPECT_EQ(balancer_->Report().last, "another was faster");
  refuses_ = false;
  ASSERT_TRUE(Until([&](const auto& report) { return report.published > 0; }));
}

TEST_F(BalancerTest, ASoleOneLeavesOffWhereAnotherPlacesExpertsToo) {
  Serve({"0-10", "11"});
  ASSERT_TRUE(router_->WhenReady());
  Balance({.sole = true});
  ASSERT_TRUE(Until([&](const auto& report) { return report.published > 0; }));
  EXPECT_EQ(balancer_->Report().state, State::kActing);
  expertwire::pb::Assign foreign;
  foreign.set_epoch(1 << 20);
  for (int layer = 1; layer <= 2; ++layer) {
    expertwire::pb::HeldExperts& all = *foreign.add_experts();
    all.set_layer(layer);
    all.add_first(0), all.add_last(11);
  }
  router_->links().links()[0]->Assign(foreign);
  ASSERT_TRUE(Until([&](const auto& report) { return report.state == State::kRival; }));
  EXPECT_THAT(balancer_->Report().last, HasSubstr("--etcd"));
  const uint64_t published = balancer_->Report().published;
  const uint32_t jobs = seed_;
  ASSERT_TRUE(Until([&](const auto&) { return seed_ > jobs + 20; }));
  EXPECT_EQ(balancer_->Report().published, published);
}

TEST_F(BalancerTest, OneWorkerHasNothingToShare) {
  Serve({"0-11"});
  ASSERT_TRUE(router_->WhenReady());
  Balance();
  ASSERT_TRUE(Until([&](const auto& report) { return !report.last.empty(); }));
  EXPECT_THAT(balancer_->Report().last, HasSubstr("fewer than two workers"));
}

}  // namespace
}  // namespace switchyard::router
