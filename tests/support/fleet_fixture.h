// A fleet of real workers behind real streams, with jobs that are compared one by one.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "router/fleet/fleet.h"
#include "tests/support/dispatch_harness.h"
#include "tests/support/faulty_source.h"

namespace switchyard::testing {

class FleetTest : public ::testing::Test {
 protected:
  void Serve(const std::vector<std::string>& experts, router::FleetOptions options = {}) {
    std::vector<std::string> addresses;
    for (const std::string& held : experts) {
      addresses.push_back(SocketPath());
      workers_.push_back(Worker(held, addresses.back()));
    }
    addresses_ = addresses;
    router_ = std::make_unique<Router>(spec_, DType::kBF16, addresses, expertwire::CreditGrant{},
                                       std::vector<worker::Worker*>{},
                                       router::DispatchOptions{.patience = absl::Seconds(20)});
    fleet_ =
        std::make_unique<router::Fleet>(spec_, router_->links(), router_->dispatcher(), options);
  }

  std::unique_ptr<ServedWorker> Worker(const std::string& held, const std::string& address) {
    worker::WorkerOptions options{.experts = held};
    options.memory_bytes = 1 << 20;
    return std::make_unique<ServedWorker>(spec_, options, address);
  }

  // Puts a worker in the place of this one, whose weights the caller may spoil.
  std::shared_ptr<FaultySource> ServeFaulty(size_t at, const std::string& held) {
    auto source = std::make_shared<FaultySource>(spec_, 7);
    auto made = worker::Worker::Create(spec_, kFingerprint, source,
                                       {.experts = held, .memory_bytes = 1 << 20}, nullptr);
    EXPECT_TRUE(made.ok()) << made.status();
    workers_[at].reset();
    workers_[at] = std::make_unique<ServedWorker>(*std::move(made), addresses_[at]);
    return source;
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

  // The fleet looked after, without jobs, until `done`.
  template <typename Condition>
  bool LookUntil(Condition done) {
    return router_->Until([&] {
      fleet_->Look(absl::Now());
      return done();
    });
  }

  void RunOne() {
    MoeBatch batch(spec_, DType::kBF16, 9, seed_ % 5);
    auto& expected = expected_[seed_ % 5];
    if (expected.empty()) expected = Expected(spec_, DType::kBF16, 1, batch);
    ++seed_;
    const router::MoeTicket ticket = router_->Start(batch);
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

  const ModelSpec spec_ = MoeSpec({.groups = 4});
  std::vector<std::string> addresses_;
  std::vector<std::unique_ptr<ServedWorker>> workers_;
  std::unique_ptr<Router> router_;
  std::unique_ptr<router::Fleet> fleet_;
  uint32_t seed_ = 0;
  std::vector<float> expected_[5];
};

}  // namespace switchyard::testing
