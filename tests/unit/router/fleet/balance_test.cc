#include "router/fleet/balance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

namespace switchyard::router {
namespace {

using ::testing::HasSubstr;

constexpr int kExperts = 32;
constexpr int kLayers = 3;  // the first one without experts

class BalanceTest : public ::testing::Test {
 protected:
  BalanceTest() {
    model_.grid = {{false, true, true}, kExperts};
    model_.expert_bytes = {0, 1000, 1000};
    model_.fingerprint = "f";
    input_.rows.assign(model_.grid.cells(), 0);
    input_.epoch = 6;
  }

  // Holds [first, last] in both layers.
  BalanceWorker Worker(const std::string& address, int first, int last) {
    BalanceWorker worker{.address = address, .memory_bytes = 2 * kExperts * 1000};
    worker.held.assign(model_.grid.cells(), false);
    for (int layer = 1; layer < kLayers; ++layer) {
      for (int e = first; e <= last; ++e) worker.held[model_.grid.cell(layer, e)] = true;
    }
    return worker;
  }
  void Thirds() {
    input_.workers = {Worker("a:1", 0, 10), Worker("b:1", 11, 21), Worker("c:1", 22, 31)};
  }
  // Zipf's law: the first ids are the hottest.
  void Skew() {
    for (int layer = 1; layer < kLayers; ++layer) {
      for (int e = 0; e < kExperts; ++e) input_.rows[model_.grid.cell(layer, e)] = 1e4 / (1 + e);
    }
  }
  BalanceVerdict Verdict() {
    auto verdict = Balance(model_, input_, options_);
    EXPECT_TRUE(verdict.ok()) << verdict.status();
    return verdict.ok() ? *std::move(verdict) : BalanceVerdict();
  }
  // As if what was planned had been done.
  void Obey(const BalanceVerdict& verdict) {
    const auto index = placement::Expand(verdict.placement, model_.grid, "f");
    ASSERT_TRUE(index.ok()) << index.status();
    EXPECT_TRUE(placement::CheckCovers(*index).ok());
    input_.epoch = index->epoch();
    input_.followed_replicas = 0;
    for (const auto& placed : index->workers()) {
      input_.followed_replicas += placed.replicas;
      for (BalanceWorker& worker : input_.workers) {
        if (worker.address == placed.address) worker.held = placed.held;
      }
    }
  }

  BalanceModel model_;
  BalanceInput input_;
  BalanceOptions options_;
};

TEST_F(BalanceTest, ASkewedLoadMovesExpertsUntilNothingIsToBeGained) {
  Thirds();
  Skew();
  const BalanceVerdict verdict = Verdict();
  EXPECT_TRUE(verdict.move);
  EXPECT_EQ(verdict.placement.epoch(), 7u);
  EXPECT_EQ(verdict.placement.model_fingerprint(), "f");
  EXPECT_THAT(verdict.why, HasSubstr("utilisation"));
  EXPECT_LT(verdict.utilisation, 0.62);
  EXPECT_GE(verdict.planned, 0.89);
  EXPECT_GT(verdict.bytes, 0);
  Obey(verdict);
  const BalanceVerdict again = Verdict();
  EXPECT_FALSE(again.move) << again.why;
  EXPECT_NEAR(again.utilisation, verdict.planned, 1e-9);
}

TEST_F(BalanceTest, APlacementThatNobodyHeedsIsReplaced) {
  Thirds();
  Skew();
  Obey(Verdict());
  input_.stalled = true;
  const BalanceVerdict verdict = Verdict();
  EXPECT_TRUE(verdict.move);
  EXPECT_GT(verdict.placement.epoch(), input_.epoch);
  EXPECT_EQ(verdict.bytes, 0);
  EXPECT_THAT(verdict.why, HasSubstr("do not heed"));
}

TEST_F(BalanceTest, SmallGainsMoveNothing) {
  input_.workers = {Worker("a:1", 0, 11), Worker("b:1", 12, 21), Worker("c:1", 22, 31)};  // 89 %
  options_.gain = 0.12;
  EXPECT_FALSE(Verdict().move);
  options_.gain = 0.05;
  EXPECT_TRUE(Verdict().move);
}

TEST_F(BalanceTest, AWorkerThatIsNewAndEmptyGetsItsPart) {
  Thirds();
  BalanceWorker fresh = Worker("d:1", 0, -1);
  input_.workers.push_back(fresh);
  const BalanceVerdict verdict = Verdict();
  ASSERT_TRUE(verdict.move);
  EXPECT_GE(verdict.planned, 0.95);
  Obey(verdict);
  EXPECT_GT(std::ranges::count(input_.workers[3].held, true), 10);
}

TEST_F(BalanceTest, WhatALostWorkerAloneHeldIsPlacedAgain) {
  Thirds();
  input_.workers.pop_back();
  options_.gain = 1;  // only because it must be
  const BalanceVerdict verdict = Verdict();
  ASSERT_TRUE(verdict.move);
  EXPECT_EQ(verdict.utilisation, 0);
  EXPECT_THAT(verdict.why, HasSubstr("no worker"));
  Obey(verdict);
  EXPECT_FALSE(Verdict().move);
}

TEST_F(BalanceTest, ReplicasAreMadeUpToWhatThereShouldBe) {
  Thirds();
  options_.plan.min_replicas = 2;
  options_.gain = 1;
  const BalanceVerdict verdict = Verdict();
  ASSERT_TRUE(verdict.move);
  EXPECT_THAT(verdict.why, HasSubstr("1 of 2 replicas"));
  Obey(verdict);
  EXPECT_FALSE(Verdict().move);
  // With one worker left there is nobody for a second.
  input_.workers = {Worker("a:1", 0, 31)};
  input_.followed_replicas = 0;
  EXPECT_FALSE(Verdict().move);
}

TEST_F(BalanceTest, WhatAWorkerCouldNotLoadGoesElsewhere) {
  Thirds();
  input_.workers.pop_back();  // what it had must move
  const size_t cell = model_.grid.cell(1, 25);
  for (const size_t failing : {0, 1}) {
    for (BalanceWorker& worker : input_.workers) worker.failed.clear();
    input_.workers[failing].failed.assign(model_.grid.cells(), false);
    input_.workers[failing].failed[cell] = true;
    const auto index = placement::Expand(Verdict().placement, model_.grid, "f");
    ASSERT_TRUE(index.ok()) << index.status();
    EXPECT_FALSE(index->workers()[failing].held[cell]);
    EXPECT_TRUE(index->workers()[1 - failing].held[cell]);
  }
}

// Two replicas of each, but one of the two workers cannot load everything.
TEST_F(BalanceTest, WhatTooFewCanLoadIsNoReasonToPlanAgain) {
  input_.workers = {Worker("a:1", 0, 31), Worker("b:1", 0, 9)};
  options_.plan.min_replicas = 2;
  options_.gain = 1;
  const size_t cell = model_.grid.cell(2, 20);
  input_.workers[1].failed.assign(model_.grid.cells(), false);
  input_.workers[1].failed[cell] = true;
  const BalanceVerdict verdict = Verdict();
  ASSERT_TRUE(verdict.move) << verdict.why;
  Obey(verdict);
  EXPECT_FALSE(input_.workers[1].held[cell]);
  EXPECT_EQ(std::ranges::count(input_.workers[1].held, true), 2 * kExperts - 1);
  EXPECT_TRUE(input_.workers[0].held[cell]);
  EXPECT_FALSE(Verdict().move) << Verdict().why;
  // What nobody can load has a place all the same, but is no reason either.
  input_.workers[0].held[cell] = false;
  input_.workers[0].failed = input_.workers[1].failed;
  EXPECT_FALSE(Verdict().move) << Verdict().why;
}

TEST_F(BalanceTest, WhatWasTakenOverIsGivenBack) {
  Thirds();
  input_.followed_replicas = 2 * kExperts;
  EXPECT_FALSE(Verdict().move);
  // The third was away, and the others have taken its experts over.
  input_.workers[0] = Worker("a:1", 0, 31);
  options_.plan.extra_memory = 0;
  options_.gain = 1;
  const BalanceVerdict verdict = Verdict();
  ASSERT_TRUE(verdict.move) << verdict.why;
  EXPECT_EQ(verdict.bytes, 0);
  Obey(verdict);
  EXPECT_FALSE(Verdict().move);
  // Replicas that nobody placed are left as the operator gave them.
  input_.workers[0] = Worker("a:1", 0, 31);
  input_.followed_replicas = 0;
  EXPECT_FALSE(Verdict().move);
}

TEST_F(BalanceTest, AFasterWorkerGetsMore) {
  Thirds();
  Skew();
  input_.workers[2].speed = 4;
  const BalanceVerdict verdict = Verdict();
  ASSERT_TRUE(verdict.move);
  EXPECT_GE(verdict.planned, 0.85);
  Obey(verdict);
  const auto rows_of = [&](const BalanceWorker& worker) {
    double rows = 0;
    for (size_t cell = 0; cell < worker.held.size(); ++cell) {
      double holders = 0;
      for (const BalanceWorker& other : input_.workers) holders += other.held[cell];
      if (worker.held[cell]) rows += input_.rows[cell] / holders;
    }
    return rows;
  };
  EXPECT_GT(rows_of(input_.workers[2]), 2.5 * rows_of(input_.workers[0]));
}

TEST_F(BalanceTest, TooLittleMemoryIsSaid) {
  Thirds();
  Skew();
  for (BalanceWorker& worker : input_.workers) worker.memory_bytes = 5000;
  const auto verdict = Balance(model_, input_, options_);
  EXPECT_EQ(verdict.status().code(), absl::StatusCode::kResourceExhausted) << verdict.status();
}

TEST_F(BalanceTest, WidthIsChosenByWhatItCosts) {
  Thirds();
  Skew();
  model_.costs = {.tokens_per_step = 1, .top_k = 1, .experts = kExperts, .expert_bytes = 1000};
  options_.best_width = true;  // frames cost more than such a layer: one worker
  const BalanceVerdict verdict = Verdict();
  ASSERT_TRUE(verdict.move) << verdict.why;
  Obey(verdict);
  for (int layer = 1; layer < kLayers; ++layer) {
    int width = 0;
    for (const BalanceWorker& worker : input_.workers) {
      const auto first = worker.held.begin() + static_cast<ptrdiff_t>(model_.grid.cell(layer, 0));
      width += std::any_of(first, first + kExperts, [](bool held) { return held; });
    }
    EXPECT_EQ(width, 1);
  }
}

}  // namespace
}  // namespace switchyard::router
