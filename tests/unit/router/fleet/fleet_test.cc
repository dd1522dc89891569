// Migrations and takeovers with real workers over real streams, under load.
#include "router/fleet/fleet.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/dispatch_harness.h"

namespace switchyard::router {
namespace {

using testing::Expected;
using testing::ExpectSame;
using testing::MoeBatch;
using testing::ServedWorker;
using testing::SocketPath;

constexpr testing::MoeShape kShape{.groups = 4};

class FleetTest : public ::testing::Test {
 protected:
  void Serve(const std::vector<std::string>& experts, FleetOptions options = {}) {
    std::vector<std::string> addresses;
    for (const std::string& held : experts) {
      addresses.push_back(SocketPath());
      workers_.push_back(Worker(held, addresses.back()));
    }
    addresses_ = addresses;
    router_ = std::make_unique<testing::Router>(
        spec_, DType::kBF16, addresses, expertwire::CreditGrant{}, std::vector<worker::Worker*>{},
        DispatchOptions{.patience = absl::Seconds(20)});
    fleet_ = std::make_unique<Fleet>(spec_, router_->links(), router_->dispatcher(), options);
  }

  std::unique_ptr<ServedWorker> Worker(const std::string& held, const std::string& address) {
    worker::WorkerOptions options{.experts = held};
    options.memory_bytes = 1 << 20;
    return std::make_unique<ServedWorker>(spec_, options, address);
  }

  // Jobs one after the other, each compared, and the fleet looked after, until `done`.
  template <typename Condition>
  bool RunUntil(Condition done) {
    const absl::Time bound = absl::Now() + absl::Seconds(20);
    while (!done()) {
      if (absl::Now() > bound) return false;
      fleet_->Look(absl::Now());
      RunOne();
      if (HasFailure()) return false;
    }
    return true;
  }

  void RunOne() {
    MoeBatch batch(spec_, DType::kBF16, 9, seed_ % 5);
    auto& expected = expected_[seed_ % 5];
    if (expected.empty()) expected = Expected(spec_, DType::kBF16, 1, batch);
    ++seed_;
    const MoeTicket ticket = router_->Start(batch);
    while (!router_->dispatcher().Finished(ticket)) {
      router_->dispatcher().Wait(absl::Now() + absl::Milliseconds(5));
      fleet_->Look(absl::Now());
    }
    ExpectSame(batch, expected);
  }

  // `held` [workers] of all layers.
  void Follow(uint64_t epoch, const std::vector<std::string>& held) {
    v1::Placement document;
    document.set_epoch(epoch);
    for (size_t i = 0; i < held.size(); ++i) {
      v1::WorkerPlacement* worker = document.add_workers();
      worker->set_worker(addresses_[i]);
      if (held[i].empty()) continue;
      v1::HeldSet* set = worker->add_holds();
      set->set_layers("*");
      set->set_experts(held[i]);
    }
    auto index = placement::Expand(document, placement::GridOf(spec_), "");
    ASSERT_TRUE(index.ok()) << index.status();
    fleet_->Follow(*std::move(index));
  }

  uint64_t Lost() const { return router_->dispatcher().Report().lost_rows; }

  const ModelSpec spec_ = testing::MoeSpec(kShape);
  std::vector<std::string> addresses_;
  std::vector<std::unique_ptr<ServedWorker>> workers_;
  std::unique_ptr<testing::Router> router_;
  std::unique_ptr<Fleet> fleet_;
  uint32_t seed_ = 0;
  std::vector<float> expected_[5];
};

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

}  // namespace
}  // namespace switchyard::router
