#include "router/draft/ngram_drafter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace switchyard::router {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<int32_t> DraftOf(const std::vector<int32_t>& tokens, int most) {
  NgramDrafter drafter;
  std::vector<int32_t> drafts = {77};
  drafter.Draft({.tokens = tokens, .most = most}, &drafts);
  return drafts;
}

TEST(NgramDrafterTest, WithoutARepeatedPairThereIsNoDraft) {
  EXPECT_THAT(DraftOf({}, 3), IsEmpty());
  EXPECT_THAT(DraftOf({1}, 3), IsEmpty());
  EXPECT_THAT(DraftOf({1, 2, 3, 4, 2}, 3), IsEmpty());
}

TEST(NgramDrafterTest, WhatFollowedThenMayFollowNow) {
  EXPECT_THAT(DraftOf({1, 2, 3, 4, 5, 1, 2}, 2), ElementsAre(3, 4));
  EXPECT_THAT(DraftOf({1, 2, 3, 1, 2}, 1), ElementsAre(3));
}

TEST(NgramDrafterTest, TheLongestMatchWinsAndOfEqualsTheLatest) {
  EXPECT_THAT(DraftOf({9, 1, 2, 30, 8, 1, 2, 40, 9, 1, 2}, 1), ElementsAre(30));
  EXPECT_THAT(DraftOf({9, 1, 2, 30, 9, 1, 2, 40, 9, 1, 2}, 1), ElementsAre(40));
}

TEST(NgramDrafterTest, APeriodGoesOn) {
  EXPECT_THAT(DraftOf({5, 6, 5, 6, 5, 6}, 5), ElementsAre(5, 6, 5, 6, 5));
  EXPECT_THAT(DraftOf({7, 7, 7}, 3), ElementsAre(7, 7, 7));
}

TEST(NgramDrafterTest, ItLearnsAsTheTokensGrow) {
  NgramDrafter drafter;
  std::vector<int32_t> tokens = {1, 2, 3}, drafts;
  for (const int32_t token : {4, 1, 2}) {
    drafter.Draft({.tokens = tokens, .most = 2}, &drafts);
    EXPECT_THAT(drafts, IsEmpty());
    tokens.push_back(token);
  }
  drafter.Draft({.tokens = tokens, .most = 2}, &drafts);
  EXPECT_THAT(drafts, ElementsAre(3, 4));
}

TEST(NgramDrafterTest, AManyTimesRepeatedPairTakesBoundedTime) {
  const std::vector<int32_t> tokens(100000, 3);
  EXPECT_THAT(DraftOf(tokens, 2), ElementsAre(3, 3));
}

}  // namespace
}  // namespace switchyard::router
