#include "router/dispatch/job.h"

#include <gtest/gtest.h>

namespace switchyard::router {
namespace {

namespace pb = expertwire::pb;

// One token of four experts in groups of two; links 0 to 2 are asked.
class JobTest : public ::testing::Test {
 protected:
  JobTest() { Plan({0, 0, 1, 1}); }

  // Begins with these owners of experts 0 to 3.
  void Plan(std::vector<int16_t> owner) {
    job_.Begin({.tokens = 1, .top_k = 4, .experts = experts_, .weights = weights_});
    std::vector<WantedPair> wanted;
    WantAll(Input(owner), &wanted);
    PlanPairs(Input(owner), wanted, &job_.plan);
    job_.Track(0, -1);
  }
  // Plans a part again; returns the first of its children.
  size_t Again(size_t p, const std::vector<int16_t>& owner) {
    std::vector<WantedPair> wanted;
    job_.WantAgain(p, &wanted);
    const size_t first = job_.plan.part_count;
    PlanPairs(Input(owner), wanted, &job_.plan);
    job_.Track(first, static_cast<int32_t>(p));
    return first;
  }
  bool Answer(size_t p, std::vector<pb::SegmentStatus> status = {}) {
    expertwire::Answer answer;
    status.resize(job_.plan.parts[p].segments.size(), pb::OK);
    answer.status.assign(status.begin(), status.end());
    return job_.OnAnswered(p, std::move(answer));
  }
  std::vector<int> Sources() const {
    std::vector<int> out;
    for (int64_t pair = 0; pair < 4; ++pair) out.push_back(job_.source(pair).part);
    return out;
  }

  PlanInput Input(const std::vector<int16_t>& owner) const {
    return {.tokens = 1,
            .top_k = 4,
            .experts = experts_,
            .weights = weights_,
            .owner = owner,
            .experts_per_group = 2,
            .hidden = 8,
            .max_part_bytes = limits_};
  }

  const int32_t experts_[4] = {0, 1, 2, 3};
  const float weights_[4] = {1, 2, 3, 4};
  const std::vector<size_t> limits_ = {1 << 20, 1 << 20, 1 << 20};
  Job job_;
};

using Parts = std::vector<int>;

TEST_F(JobTest, IsDoneWhenAllPartsAreAnswered) {
  EXPECT_FALSE(job_.done());
  EXPECT_TRUE(Answer(1));
  EXPECT_FALSE(job_.done());
  EXPECT_EQ(Sources(), (Parts{-1, -1, 1, 1}));
  EXPECT_TRUE(Answer(0));
  EXPECT_TRUE(job_.done());
  EXPECT_EQ(Sources(), (Parts{0, 0, 1, 1}));
  EXPECT_TRUE(job_.source(0).sum);
}

TEST_F(JobTest, AFailedPartIsSettledByAllOfItsChildren) {
  Answer(1);
  job_.OnFailed(0);
  const size_t child = Again(0, {1, 2, 1, 1});  // the group is split now
  ASSERT_EQ(job_.plan.part_count, child + 2);
  Answer(child);
  EXPECT_FALSE(job_.done());
  Answer(child + 1);
  EXPECT_TRUE(job_.done());
  EXPECT_EQ(Sources(), (Parts{2, 3, 1, 1}));
  EXPECT_FALSE(job_.source(0).sum) << "rows of two workers";
}

TEST_F(JobTest, OfAHedgeTheFirstToBeWholeWins) {
  Answer(1);
  const size_t child = Again(0, {1, 2, 1, 1});
  Answer(child);
  EXPECT_EQ(Sources(), (Parts{2, -1, 1, 1}));
  Answer(0);  // the late one, after all
  EXPECT_TRUE(job_.done());
  EXPECT_EQ(Sources(), (Parts{0, 0, 1, 1})) << "never a sum of one and rows of another";
  EXPECT_TRUE(job_.Settled(child + 1));

  Plan({0, 0, 1, 1});
  Answer(1);
  const size_t replica = Again(0, {2, 2, 1, 1});
  Answer(replica);
  EXPECT_TRUE(job_.done());
  EXPECT_TRUE(job_.Settled(0));
  EXPECT_EQ(Sources(), (Parts{2, 2, 1, 1}));
}

TEST_F(JobTest, RetriesNest) {
  Answer(1);
  job_.OnFailed(0);
  const size_t second = Again(0, {1, 1, 1, 1});
  job_.OnFailed(second);
  const size_t third = Again(second, {2, 2, 1, 1});
  EXPECT_FALSE(job_.done());
  Answer(third);
  EXPECT_TRUE(job_.done());
  EXPECT_TRUE(job_.Settled(second));
  EXPECT_TRUE(job_.source(0).sum) << "the group went as one each time";
}

TEST_F(JobTest, OfAnAnswerWhatIsOkIsKept) {
  Plan({0, 1, 0, 0});  // rows of experts 0 and 1; a sum of 2 and 3
  EXPECT_FALSE(Answer(0, {pb::NOT_HERE, pb::OK, pb::OK}));
  EXPECT_EQ(Sources(), (Parts{-1, -1, 0, 0}));
  const size_t child = Again(0, {2, 1, 0, 0});
  ASSERT_EQ(job_.plan.part_count, child + 1);
  EXPECT_EQ(job_.plan.parts[child].pairs, (std::vector<uint32_t>{0}));
  EXPECT_EQ(job_.plan.parts[child].segments[0].result, pb::ROWS) << "as expert 1 comes as a row";
  Answer(child);
  Answer(1);
  EXPECT_TRUE(job_.done());

  Plan({0, 0, 0, 0});
  EXPECT_FALSE(Answer(0, {pb::OK, pb::OK, pb::OK, pb::LOADING}));
  EXPECT_EQ(Sources(), (Parts{0, 0, -1, -1})) << "a sum is as good as its worst segment";
}

TEST_F(JobTest, ARowThatComesAfterItsGroupsSumReplacesNothing) {
  Plan({0, 0, 0, 0});
  const size_t child = Again(0, {1, 2, 1, 1});  // a hedge: expert 1 is a row of another's
  ASSERT_EQ(job_.plan.part_count, child + 2);
  EXPECT_FALSE(Answer(0, {pb::OK, pb::OK, pb::OK, pb::LOADING}));
  EXPECT_TRUE(Answer(child));
  EXPECT_EQ(Sources(), (Parts{0, 0, 1, 1})) << "never a row of one and a sum of another";
  EXPECT_TRUE(job_.source(0).sum && job_.source(1).sum);
}

TEST_F(JobTest, WhatNobodyTakesIsParkedUntilItIsPlannedOrGivenUp) {
  Plan({ExpertMap::kNone, 0, 1, 1});
  ASSERT_EQ(job_.plan.part_count, 2u);
  const size_t parked = job_.plan.parts[0].link == PlannedPart::kNobody ? 0 : 1;
  EXPECT_EQ(job_.parts[parked].state, Job::State::kParked);
  Answer(1 - parked);
  EXPECT_FALSE(job_.done());
  const size_t child = Again(parked, {2, 0, 1, 1});
  job_.parts[parked].state = Job::State::kFailed;
  Answer(child), Answer(child + 1);
  EXPECT_TRUE(job_.done());

  Plan({ExpertMap::kNone, 0, 1, 1});
  Answer(1 - parked);
  job_.GiveUp(parked);
  EXPECT_TRUE(job_.done());
  EXPECT_EQ(Sources()[0], -1);
}

TEST_F(JobTest, NothingIsGivenUpThatIsStillOut) {
  Answer(1);
  const size_t child = Again(0, {ExpertMap::kNone, 1, 1, 1});  // a hedge with nobody to take it
  EXPECT_FALSE(job_.GiveUp(child));
  EXPECT_FALSE(job_.done());
  Answer(0);
  EXPECT_TRUE(job_.done());
  EXPECT_EQ(Sources(), (Parts{0, 0, 1, 1}));

  Plan({0, 0, 1, 1});
  Answer(1);
  const size_t waits = Again(0, {ExpertMap::kNone, 1, 1, 1});
  EXPECT_FALSE(job_.GiveUp(waits));
  job_.parts[0].given_up = true;
  EXPECT_TRUE(job_.GiveUp(waits));
  EXPECT_TRUE(job_.done()) << "all pairs of the group waited together";
  EXPECT_EQ(job_.parts[0].state, Job::State::kOpen) << "its worker has to be told";
}

}  // namespace
}  // namespace switchyard::router
