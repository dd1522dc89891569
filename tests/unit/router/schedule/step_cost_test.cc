#include "router/schedule/step_cost.h"

#include <gtest/gtest.h>

#include <random>

namespace switchyard::router {
namespace {

StepShape Shape(int64_t rows, int64_t position) {
  StepShape shape;
  shape.Add(position, rows);
  return shape;
}

TEST(StepCostTest, AShapeCountsWhatEachRowLooksAt) {
  StepShape shape;
  shape.Add(0, 3);   // 1 + 2 + 3
  shape.Add(10, 1);  // 11
  EXPECT_EQ(shape.rows, 4);
  EXPECT_EQ(shape.attended, 17);
}

TEST(StepCostTest, BeforeTheFirstStepNothingIsKnown) {
  const StepCost cost = StepCostModel().cost();
  EXPECT_EQ(cost.Of(Shape(100, 0)), 0);
  EXPECT_GT(cost.RowsWithin(1, 0), 1 << 20);
}

TEST(StepCostTest, LearnsWhatStepsTake) {
  std::mt19937_64 random(1);
  const StepCost truth = {.fixed_ms = 20, .row_ms = 1.5, .attend_ms = 2e-4};
  StepCostModel model;
  for (int i = 0; i < 300; ++i) {
    const StepShape shape = Shape(1 + random() % (i % 2 ? 8 : 512), random() % 4000);
    const double noise = 0.9 + 0.2 * static_cast<double>(random() % 1000) / 1000;
    model.Observe(shape, truth.Of(shape) * noise);
  }
  for (const StepShape& shape : {Shape(1, 10), Shape(64, 100), Shape(400, 3000)}) {
    EXPECT_NEAR(model.cost().Of(shape) / truth.Of(shape), 1, 0.1);
  }
}

TEST(StepCostTest, StepsOfOneShapeDoNotUnlearnTheOthers) {
  const StepCost truth = {.fixed_ms = 20, .row_ms = 1.5, .attend_ms = 2e-4};
  StepCostModel model;
  for (int i = 0; i < 100; ++i) {
    const StepShape shape = Shape(1 + 37 * i % 500, 91 * i % 3000);
    model.Observe(shape, truth.Of(shape));
  }
  for (int i = 0; i < 5000; ++i) model.Observe(Shape(1, 500), truth.Of(Shape(1, 500)));
  EXPECT_NEAR(model.cost().Of(Shape(300, 1000)) / truth.Of(Shape(300, 1000)), 1, 0.25);
  EXPECT_NEAR(model.cost().Of(Shape(1, 500)) / truth.Of(Shape(1, 500)), 1, 0.02);
}

TEST(StepCostTest, FollowsAMachineThatBecomesSlower) {
  StepCostModel model;
  for (int i = 0; i < 600; ++i) {
    const StepShape shape = Shape(1 + 37 * i % 500, 0);
    const double ms = 10 + static_cast<double>(shape.rows);
    model.Observe(shape, i < 300 ? ms : 3 * ms);
  }
  EXPECT_NEAR(model.cost().Of(Shape(200, 0)) / 630, 1, 0.05);
}

TEST(StepCostTest, RowsWithinATimeTakeThatTime) {
  const StepCost cost = {.fixed_ms = 20, .row_ms = 1.5, .attend_ms = 1e-3};
  for (int64_t position : {0, 1000, 30000}) {
    const int64_t rows = cost.RowsWithin(300, position);
    const double took = cost.Of(Shape(rows, position)) - cost.fixed_ms;
    EXPECT_LE(took, 300);
    EXPECT_GT(cost.Of(Shape(rows + 1, position)) - cost.fixed_ms, 300);
  }
  EXPECT_EQ(cost.RowsWithin(-5, 0), 0);
  EXPECT_EQ((StepCost{.row_ms = 2}.RowsWithin(100, 5)), 50);
}

TEST(StepCostTest, StepsWithoutTimeTeachNothing) {
  StepCostModel model;
  model.Observe(Shape(5, 5), 0);
  model.Observe({}, 10);
  EXPECT_EQ(model.cost().fixed_ms, 0);
}

}  // namespace
}  // namespace switchyard::router
