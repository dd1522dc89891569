#include "router/graph/gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "router/dispatch/dispatcher.h"
#include "router/graph/lost_experts.h"
#include "tests/support/gate_specs.h"

namespace switchyard::router {
namespace {

using ::switchyard::testing::V2;
using ::switchyard::testing::V3;
using ::testing::ElementsAre;
using ::testing::FloatNear;

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

// The choice without those of `gone`, after the ordinary one.
Choice Without(const GateSpec& gate, std::vector<float> logits, std::vector<float> bias,
               std::vector<int> gone, LostExperts how = LostExperts::kNextBest) {
  const size_t experts = logits.size(), top_k = static_cast<size_t>(gate.top_k);
  std::vector<float> scratch(static_cast<size_t>(GateScratch(gate, static_cast<int>(experts))));
  std::vector<uint8_t> marks(experts, 0);
  for (const int e : gone) marks[static_cast<size_t>(e)] = 1;
  Choice choice = {.ids = std::vector<int32_t>(top_k), .weights = std::vector<float>(top_k)};
  SelectExperts(gate, logits, bias, scratch.data(), choice.ids.data(), choice.weights.data());
  const Choice before = choice;
  const bool touched = std::any_of(before.ids.begin(), before.ids.end(),
                                   [&](int32_t e) { return marks[static_cast<size_t>(e)] != 0; });
  EXPECT_EQ(ReplaceGone(how, gate, marks,
                        {.scores = logits,
                         .correction_bias = bias,
                         .scratch = scratch.data(),
                         .ids = choice.ids,
                         .weights = choice.weights.data()}),
            touched && how != LostExperts::kFail);
  if (!touched) {
    EXPECT_EQ(choice.ids, before.ids);
    EXPECT_EQ(choice.weights, before.weights);
  }
  return choice;
}

const GateSpec kV2 = V2(4, 2, 3);

class NextBestOf : public ::testing::TestWithParam<GateSpec> {};

// An expert that is gone counts no more than one that nothing speaks for; of softmax scores the
// weights are still shares of all.
TEST_P(NextBestOf, IsWhatTheGateChoosesWhereTheScoreIsTheLeast) {
  const GateSpec& gate = GetParam();
  uint32_t state = 1;
  const auto random = [&state] {
    state = state * 1664525 + 1013904223;
    return static_cast<float>(state >> 8) / static_cast<float>(1 << 24);
  };
  int replaced = 0;
  for (int round = 0; round < 200; ++round) {
    std::vector<float> logits, bias;
    for (int e = 0; e < 16; ++e) logits.push_back(4 * random() - 2);
    for (int e = 0; gate.correction_bias && e < 16; ++e) bias.push_back(random() / 4);
    std::vector<int> gone;
    for (int e = 0; e < 16; ++e) {
      if (random() < 0.25f) gone.push_back(e);
    }
    const Choice got = Without(gate, logits, bias, gone);
    if (got.ids == Select(gate, logits, bias).ids) continue;  // it needs none of them
    ++replaced;
    std::vector<float> lowered = logits;
    for (const int e : gone) {
      lowered[static_cast<size_t>(e)] = -60;
      if (!bias.empty()) bias[static_cast<size_t>(e)] = -60;
    }
    const Choice expected = Select(gate, lowered, bias);
    EXPECT_EQ(got.ids, expected.ids) << round;
    float got_sum = 0, sum = 0;
    for (const float w : got.weights) got_sum += w;
    for (const float w : expected.weights) sum += w;
    for (size_t i = 0; i < got.ids.size(); ++i) {
      EXPECT_NEAR(got.weights[i] / got_sum, expected.weights[i] / sum, 1e-5) << round;
    }
  }
  EXPECT_GT(replaced, 50);
}

INSTANTIATE_TEST_SUITE_P(
    Families, NextBestOf,
    ::testing::Values(V3(4, 2, 3), V3(1, 1, 4), kV2,
                      GateSpec{.score = GateScore::kSoftmax, .top_k = 4},
                      GateSpec{.score = GateScore::kSoftmax, .top_k = 4, .normalise = true},
                      GateSpec{.score = GateScore::kSoftmaxAfterTopK, .top_k = 4}));

TEST(GoneTest, WhereTooFewAreLeftTheRestOfTheRowIsEmpty) {
  for (const GateSpec& gate : {V3(2, 1, 3), GateSpec{.score = GateScore::kSoftmax, .top_k = 3},
                               GateSpec{.score = GateScore::kSoftmaxAfterTopK, .top_k = 3}}) {
    const std::vector<float> bias(gate.correction_bias ? 8 : 0, 0.f);
    const std::vector<float> logits = {3, 1, 2, 4, -1, -2, -3, -4};
    const Choice one = Without(gate, logits, bias, {0, 1, 3, 4, 5, 6, 7});
    EXPECT_THAT(one.ids, ElementsAre(2, kNoExpert, kNoExpert));
    EXPECT_GT(one.weights[0], 0);
    EXPECT_THAT(one.weights, ElementsAre(one.weights[0], 0, 0));
    const Choice none = Without(gate, logits, bias, {0, 1, 2, 3, 4, 5, 6, 7});
    EXPECT_THAT(none.ids, ::testing::Each(kNoExpert));
    EXPECT_THAT(none.weights, ::testing::Each(0.0f));
  }
}

// Group 0 is the best as long as its pair is here.
TEST(GoneTest, GroupsAreRankedByWhatIsLeftOfThem) {
  const std::vector<float> logits = {Logit(0.9), Logit(0.8), Logit(0.1),
                                     Logit(0.6), Logit(0.5), Logit(0.05)};
  const GateSpec gate = V3(2, 1, 2);
  EXPECT_THAT(Select(gate, logits, std::vector<float>(6, 0.f)).ids, ElementsAre(0, 1));
  EXPECT_THAT(Without(gate, logits, std::vector<float>(6, 0.f), {0}).ids, ElementsAre(3, 4));
}

TEST(GoneTest, ANanIsNeverTheNextBest) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const GateSpec gate = {.score = GateScore::kSoftmaxAfterTopK, .top_k = 2};
  EXPECT_THAT(Without(gate, {5, 4, nan, 3, nan, 2}, {}, {1}).ids, ElementsAre(0, 3));
  EXPECT_THAT(Without(gate, {nan, 4, 3, nan}, {}, {1, 2}).ids, ::testing::Each(kNoExpert));
}

TEST(GoneTest, RenormaliseKeepsTheOthersAndTheSum) {
  const std::vector<float> logits = {0.5f, 3, 1, 2, -1};
  for (const GateSpec& gate : {V3(1, 1, 3), GateSpec{.score = GateScore::kSoftmax, .top_k = 3},
                               GateSpec{.score = GateScore::kSoftmaxAfterTopK, .top_k = 3}}) {
    const std::vector<float> bias(gate.correction_bias ? 5 : 0, 0.f);
    const Choice all = Select(gate, logits, bias);
    ASSERT_THAT(all.ids, ElementsAre(1, 2, 3));
    const float sum = all.weights[0] + all.weights[1] + all.weights[2];
    const Choice left = Without(gate, logits, bias, {0, 2}, LostExperts::kRenormalise);
    EXPECT_THAT(left.ids, ElementsAre(1, 3, kNoExpert));
    EXPECT_NEAR(left.weights[0] + left.weights[1], sum, 1e-5 * sum);
    EXPECT_NEAR(left.weights[0] / left.weights[1], all.weights[0] / all.weights[2], 1e-5);
    EXPECT_EQ(left.weights[2], 0.0f);
    const Choice none = Without(gate, logits, bias, {1, 2, 3}, LostExperts::kRenormalise);
    EXPECT_THAT(none.ids, ::testing::Each(kNoExpert));
    EXPECT_THAT(none.weights, ::testing::Each(0.0f));
  }
}

TEST(GoneTest, ARowThatNeedsNoneOfThemKeepsItsBits) {  // which Without looks at
  const GateSpec gate = {.score = GateScore::kSoftmax, .top_k = 2, .normalise = true};
  for (const LostExperts how :
       {LostExperts::kFail, LostExperts::kRenormalise, LostExperts::kNextBest}) {
    EXPECT_THAT(Without(gate, {4, -9, 3, 2}, {}, {1, 3}, how).ids, ElementsAre(0, 2));
  }
}

}  // namespace
}  // namespace switchyard::router
