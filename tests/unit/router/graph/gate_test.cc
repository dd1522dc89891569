#include "router/graph/gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace switchyard::router {
namespace {

using testing::ElementsAre;
using testing::FloatNear;

struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Choice Select(const GateSpec& gate, std::vector<float> logits, std::vector<float> bias = {}) {
  const int experts = static_cast<int>(logits.size());
  std::vector<float> scratch(static_cast<size_t>(GateScratch(gate, experts)));
  Choice choice;
  choice.ids.resize(static_cast<size_t>(gate.top_k));
  choice.weights.resize(static_cast<size_t>(gate.top_k));
  SelectExperts(gate, logits, bias, scratch.data(), choice.ids.data(), choice.weights.data());
  return choice;
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
float Logit(double p) { return static_cast<float>(std::log(p / (1 - p))); }

GateSpec V3(int groups, int topk_groups, int top_k) {
  return {.score = GateScore::kSigmoid,
          .group_score = GroupScore::kTop2Sum,
          .groups = groups,
          .topk_groups = topk_groups,
          .top_k = top_k,
          .correction_bias = true,
          .normalise = true,
          .normalise_eps = 1e-20f,
          .scale = 2.5f};
}

TEST(GateTest, IdsAscendAndWeightsFollowThem) {
  const Choice c = Select({.score = GateScore::kSoftmax, .top_k = 3}, {0, 3, 1, 2, -1});
  EXPECT_THAT(c.ids, ElementsAre(1, 2, 3));
  const double sum = std::exp(0) + std::exp(3) + std::exp(1) + std::exp(2) + std::exp(-1);
  EXPECT_THAT(c.weights, ElementsAre(FloatNear(static_cast<float>(std::exp(3) / sum), 1e-6f),
                                     FloatNear(static_cast<float>(std::exp(1) / sum), 1e-6f),
                                     FloatNear(static_cast<float>(std::exp(2) / sum), 1e-6f)));
}

TEST(GateTest, TiesGoToTheLowerId) {
  EXPECT_THAT(Select({.score = GateScore::kSoftmax, .top_k = 2}, {1, 2, 2, 2}).ids,
              ElementsAre(1, 2));
  EXPECT_THAT(Select({.score = GateScore::kSoftmaxAfterTopK, .top_k = 3}, {5, 5, 5, 5, 5}).ids,
              ElementsAre(0, 1, 2));
  // Between groups too: all four are equal, the first two are kept.
  EXPECT_THAT(Select(V3(4, 2, 4), std::vector<float>(8, 0.5f), std::vector<float>(8, 0.f)).ids,
              ElementsAre(0, 1, 2, 3));
}

TEST(GateTest, NormaliseDividesByTheSumOfTheChosen) {
  const Choice c =
      Select({.score = GateScore::kSoftmax, .top_k = 2, .normalise = true}, {0, 1, 2, -3});
  EXPECT_THAT(c.ids, ElementsAre(1, 2));
  const double a = std::exp(1), b = std::exp(2);
  EXPECT_NEAR(c.weights[0], a / (a + b), 1e-6);
  EXPECT_NEAR(c.weights[1], b / (a + b), 1e-6);
}

TEST(GateTest, SoftmaxAfterTopKIsOverTheChosenLogits) {
  const Choice c = Select({.score = GateScore::kSoftmaxAfterTopK, .top_k = 2}, {4, -9, 3, 2});
  EXPECT_THAT(c.ids, ElementsAre(0, 2));
  EXPECT_NEAR(c.weights[0], Sigmoid(1), 1e-6);
  EXPECT_NEAR(c.weights[1], Sigmoid(-1), 1e-6);
}

TEST(GateTest, CorrectionBiasSelectsButDoesNotWeigh) {
  // Expert 0 has the best score, but the bias lifts 2 and 3 above it.
  const Choice c =
      Select(V3(1, 1, 2), {Logit(0.9), Logit(0.1), Logit(0.2), Logit(0.3)}, {0, 0, 0.8f, 0.8f});
  EXPECT_THAT(c.ids, ElementsAre(2, 3));
  EXPECT_NEAR(c.weights[0], 2.5 * 0.2 / 0.5, 1e-5);
  EXPECT_NEAR(c.weights[1], 2.5 * 0.3 / 0.5, 1e-5);
}

TEST(GateTest, Top2SumRanksGroupsByTheirBestTwo) {
  // Group 1 has the single best expert; group 0 the better pair.
  const Choice c = Select(
      V3(2, 1, 2), {Logit(0.6), Logit(0.5), Logit(0.1), Logit(0.9), Logit(0.05), Logit(0.05)},
      std::vector<float>(6, 0.f));
  EXPECT_THAT(c.ids, ElementsAre(0, 1));
}

TEST(GateTest, MaskedGroupsLoseEvenToNegativeScores) {
  // Score + bias is negative in the kept group: 0.0 for masked ones would choose them.
  const std::vector<float> logits = {Logit(0.5), Logit(0.5), Logit(0.1), Logit(0.1)};
  const Choice c = Select(V3(2, 1, 2), logits, {-0.6f, -0.6f, -0.9f, -0.9f});
  EXPECT_THAT(c.ids, ElementsAre(0, 1));
}

TEST(GateTest, MaxRanksGroupsByTheirBestAndMaskedOnesWeighNothing) {
  const GateSpec v2 = {.score = GateScore::kSoftmax,
                       .group_score = GroupScore::kMax,
                       .groups = 2,
                       .topk_groups = 1,
                       .top_k = 2};
  // Group 1 holds the best expert, group 0 the better pair.
  EXPECT_THAT(Select(v2, {2.5f, 2.5f, 3.0f, 0.0f}).ids, ElementsAre(2, 3));
  // The kept group's second score underflows to 0, level with the masked: the lower id is taken,
  // with the weight of a masked expert.
  const Choice c = Select(v2, {100.f, 101.f, 210.f, 0.f});
  EXPECT_THAT(c.ids, ElementsAre(0, 2));
  EXPECT_EQ(c.weights[0], 0.0f);
  EXPECT_EQ(c.weights[1], 1.0f);
}

TEST(GateTest, GroupsOfOneExpert) {
  EXPECT_THAT(Select(V3(4, 2, 2), {0, 3, 1, 2}, std::vector<float>(4, 0.f)).ids, ElementsAre(1, 3));
}

TEST(GateTest, NanGivesDistinctExperts) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const GateSpec& gate : {V3(4, 2, 3), GateSpec{.score = GateScore::kSoftmax, .top_k = 3},
                               GateSpec{.score = GateScore::kSoftmaxAfterTopK, .top_k = 3}}) {
    for (const std::vector<float>& logits :
         {std::vector<float>(8, nan), std::vector<float>{1, nan, 3, 4, 5, nan, 7, 8}}) {
      const Choice c = Select(gate, logits, std::vector<float>(gate.correction_bias ? 8 : 0, 0.f));
      for (size_t i = 0; i < c.ids.size(); ++i) {
        EXPECT_GE(c.ids[i], i == 0 ? 0 : c.ids[i - 1] + 1);
        EXPECT_LT(c.ids[i], 8);
      }
    }
  }
}

}  // namespace
}  // namespace switchyard::router
