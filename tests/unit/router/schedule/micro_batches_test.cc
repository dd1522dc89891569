#include "router/schedule/micro_batches.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace switchyard::router {
namespace {

// A router whose step computes for `compute` and waits for `wire`, of which the other half's
// computing hides as much as it takes. Halves compute `again` more.
struct Machine {
  double compute_ms = 10, wire_ms = 0, again = 0.4;

  MicroBatches::Step Run(int64_t rows, int micro_batches) const {
    MicroBatches::Step step{.rows = rows, .micro_batches = micro_batches, .expected_ms = 10};
    const double compute = micro_batches == 1 ? compute_ms : compute_ms * (1 + again);
    step.waited_ms = micro_batches == 1 ? wire_ms : std::max(0.0, wire_ms - compute / 2);
    step.took_ms = compute + step.waited_ms;
    return step;
  }
};

// Of `steps` steps, how many ran as two.
int Halved(MicroBatches& policy, const Machine& machine, int steps, int64_t rows = 32) {
  int halved = 0;
  for (int i = 0; i < steps; ++i) {
    const int chosen = policy.Choose(rows, rows);
    halved += chosen == 2;
    policy.Observe(machine.Run(rows, chosen));
  }
  return halved;
}

TEST(MicroBatches, NobodyWaitsAndNothingIsTried) {
  MicroBatches policy;
  EXPECT_EQ(Halved(policy, {.wire_ms = 0.5}, 5000), 0);
}

TEST(MicroBatches, LongWaitsAreFilled) {
  MicroBatches policy;
  EXPECT_GE(Halved(policy, {.wire_ms = 10}, 1000), 950);
}

TEST(MicroBatches, TrialsThatLoseAreRare) {
  MicroBatches policy;
  const int trials = Halved(policy, {.wire_ms = 2, .again = 0.6}, 5000);
  EXPECT_GE(trials, 5);
  EXPECT_LE(trials, 20);
}

TEST(MicroBatches, FollowsTheLinks) {
  MicroBatches policy;
  EXPECT_EQ(Halved(policy, {}, 300), 0);
  Halved(policy, {.wire_ms = 20}, 300);
  EXPECT_GE(Halved(policy, {.wire_ms = 20}, 300), 280);
  Halved(policy, {}, 300);
  EXPECT_LE(Halved(policy, {}, 300), 5);
}

TEST(MicroBatches, SizesAreApart) {
  MicroBatches policy;
  EXPECT_GE(Halved(policy, {.wire_ms = 10}, 300, 64), 250);
  EXPECT_EQ(Halved(policy, {}, 300, 2), 0);
  EXPECT_EQ(policy.Choose(64, 64), 2);
}

TEST(MicroBatches, OneSequenceIsNotCut) {
  MicroBatches policy;
  Halved(policy, {.wire_ms = 10}, 300);
  EXPECT_EQ(policy.Choose(32, 1), 1);
}

TEST(MicroBatches, WhatIsNotKnownTeachesNothing) {
  MicroBatches policy;
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(policy.Choose(32, 32), 1);
    policy.Observe({.rows = 32, .took_ms = 10, .waited_ms = 9, .expected_ms = 0});
  }
}

}  // namespace
}  // namespace switchyard::router
