// What the planner promises against the published balancer (tests/support/eplb.h), on fixed loads.
#include <gtest/gtest.h>

#include "tests/support/placement_comparison.h"

namespace switchyard::test {
namespace {

struct Case {
  const char* name;
  ExpertLoads loads;
  Fleet fleet;
};

class PlannerAgainstEplb : public ::testing::TestWithParam<Case> {};

TEST_P(PlannerAgainstEplb, IsAsBalancedAndMovesHalfAtMost) {
  const PlacementComparison found = Compare(GetParam().loads, GetParam().fleet);
  EXPECT_GE(found.ours.balance, found.eplb.balance);
  EXPECT_GE(found.ours.utilisation, found.eplb.utilisation);
  EXPECT_GE(found.least_lead, -0.001) << "in no window noticeably worse";
  EXPECT_LE(found.ours.moved, found.eplb.moved / 2);
  EXPECT_GE(found.ours.utilisation, 0.89);
}

std::vector<Case> Cases() {
  std::vector<Case> out;
  struct Shape {
    const char* name;
    int experts;
    Fleet fleet;
  };
  constexpr Shape kShapes[] = {{"32on8", 32, {8, 5}},
                               {"64on8", 64, {8, 10}},
                               {"128on16", 128, {16, 10}},
                               {"256on32", 256, {32, 9}},
                               {"256on64", 256, {64, 5}}};
  for (const Shape& shape : kShapes) {
    for (const double exponent : {0.3, 0.6, 0.9, 1.2}) {
      out.push_back(
          {shape.name,
           ZipfLoads({.layers = 3, .experts = shape.experts, .exponent = exponent, .windows = 5}),
           shape.fleet});
    }
  }
  out.push_back({"recorded", RecordedLoads(), {8, 20}});
  return out;
}

INSTANTIATE_TEST_SUITE_P(Loads, PlannerAgainstEplb, ::testing::ValuesIn(Cases()),
                         [](const auto& info) {
                           return std::to_string(info.index) + "_" + info.param.name;
                         });

// The skew at which experts placed by contiguous ids leave workers idle for 38 % of the time.
TEST(PlannerAgainstStatic, UtilisationRises) {
  const PlacementComparison found =
      Compare(ZipfLoads({.experts = 128, .exponent = 0.5}), {.workers = 16, .slots = 10});
  EXPECT_NEAR(found.static_utilisation, 0.62, 0.03);
  EXPECT_GE(found.ours.utilisation, 0.89);
}

}  // namespace
}  // namespace switchyard::test
