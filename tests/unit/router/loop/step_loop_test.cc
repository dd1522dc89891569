#include "router/loop/step_loop.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/base/text.h"
#include "tests/unit/router/loop/step_loop_fixture.h"

namespace switchyard::router {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST_F(StepLoopTest, NothingToDoStartsNothing) {
  EXPECT_TRUE(loop_.idle());
  EXPECT_FALSE(Step());
  EXPECT_EQ(runner_.steps(), 0);
}

TEST_F(StepLoopTest, AFirstTokenTakesOneStepAndEachOtherOneMore) {
  loop_.Add(Ask(1, 40, 3), now_);
  EXPECT_EQ(loop_.unstarted_requests(), 1);
  ASSERT_TRUE(Step());
  EXPECT_EQ(loop_.unstarted_requests(), 0);
  EXPECT_EQ(loop_.running(), 1);
  EXPECT_EQ(loop_.pool().used(), 2);
  EXPECT_EQ(sink_->Of(1).tokens.size(), 1u);
  ASSERT_TRUE(Step());
  ASSERT_TRUE(Step());
  EXPECT_THAT(sink_->Of(1).finishes, ElementsAre(Finish::kLength));
  EXPECT_TRUE(loop_.idle());
  EXPECT_EQ(loop_.pool().used(), 0);
  EXPECT_THAT(loop_.TakeEnded(), ElementsAre(RequestKey{sink_.get(), 1}));
  EXPECT_THAT(loop_.TakeEnded(), IsEmpty());
}

TEST_F(StepLoopTest, DeadlinesPassBetweenAndWithinSteps) {
  EngineRequest between = Ask(1, 5, 100), within = Ask(2, 5, 100);
  between.deadline = now_ + absl::Milliseconds(25);
  within.deadline = now_ + absl::Milliseconds(35);
  loop_.Add(between, now_);
  loop_.Add(within, now_);
  loop_.Add(Ask(3, 5, 100), now_);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(Step());  // at 10, 20 and 30 ms
  EXPECT_EQ(sink_->Of(1).error.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(sink_->Of(1).tokens.size(), 2u);
  EXPECT_THAT(ToStd(sink_->Of(1).error.message()), HasSubstr("after 2 of 100 tokens"));
  EXPECT_EQ(sink_->Of(2).tokens.size(), 3u);

  now_ += absl::Milliseconds(1);
  ASSERT_TRUE(loop_.BeginStep(now_));
  loop_.Expire(now_ + absl::Milliseconds(10));
  EXPECT_EQ(loop_.running(), 2);  // its rows are still being computed
  EXPECT_EQ(loop_.Poll(), ModelRunner::Progress::kDone);
  loop_.FinishStep(now_);
  outbox_.Flush(loop_.steps());
  EXPECT_EQ(sink_->Of(2).error.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(sink_->Of(2).tokens.size(), 3u);
  EXPECT_EQ(loop_.running(), 1);
  EXPECT_EQ(sink_->Of(3).tokens.size(), 4u);
}

TEST_F(StepLoopTest, TheBatchHasTheLatestDeadlineAndTheHighestPriority) {
  class Recorder : public FakeRunner {
   public:
    using FakeRunner::FakeRunner;
    void Start(const StepBatch& batch) override {
      deadline = batch.deadline, priority = batch.priority;
      FakeRunner::Start(batch);
    }
    absl::Time deadline;
    int priority = 0;
  } runner({.kv_blocks = 8});
  StepLoop loop(options_, runner, observer_, outbox_);
  for (int i = 1; i <= 2; ++i) {
    EngineRequest request = Ask(i, 5, 5, -i);
    request.deadline = now_ + absl::Seconds(i);
    loop.Add(request, now_);
  }
  ASSERT_TRUE(loop.BeginStep(now_));
  EXPECT_EQ(runner.deadline, now_ + absl::Seconds(2));
  EXPECT_EQ(runner.priority, -1);
  EXPECT_EQ(runner.Advance(), ModelRunner::Progress::kDone);
  loop.FinishStep(now_);
}

TEST_F(StepLoopTest, AHigherPriorityTakesThePlaceOfALowerOne) {
  loop_.Add(Ask(1, 200, 50), now_);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(Step());
  EXPECT_EQ(sink_->Of(1).tokens.size(), 5u);
  loop_.Add(Ask(2, 100, 20, 1), now_);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(Step());
  EXPECT_THAT(sink_->Of(2).finishes, ElementsAre(Finish::kLength));
  EXPECT_EQ(sink_->Of(1).tokens.size(), 5u);
  while (Step()) {
  }
  const EngineRequest first = Ask(1, 200, 50);
  EXPECT_EQ(Difference(sink_->Of(1), Expected(first, 0, options_, {})), "");
  EXPECT_THAT(runner_.errors(), IsEmpty());
}

TEST_F(StepLoopTest, AFloodOfOneClientDoesNotHoldUpAnother) {
  options_.max_running = 2;
  for (uint64_t id = 1; id <= 40; ++id) {
    EngineRequest request = Ask(id, 5, 10);
    request.fair_key = "flood";
    loop_.Add(request, now_);
  }
  for (int i = 0; i < 25; ++i) ASSERT_TRUE(Step());
  EngineRequest other = Ask(100, 5, 1);
  other.fair_key = "other";
  loop_.Add(other, now_);
  for (int i = 0; i < 11; ++i) ASSERT_TRUE(Step());  // until one of the two that run has ended
  EXPECT_THAT(sink_->Of(100).finishes, ElementsAre(Finish::kLength));
}

TEST_F(StepLoopTest, ClientsGetEqualSharesWhateverTheyAskFor) {
  options_.max_running = 2;
  for (uint64_t id = 1; id <= 60; ++id) {
    EngineRequest request = Ask(id, 5, id <= 50 ? 4 : 30);
    request.fair_key = id <= 50 ? "many" : "long";
    loop_.Add(request, now_);
  }
  for (int i = 0; i < 120; ++i) ASSERT_TRUE(Step());
  size_t many = 0, few = 0;
  for (uint64_t id = 1; id <= 60; ++id) (id <= 50 ? many : few) += sink_->Of(id).tokens.size();
  EXPECT_GT(many, 70u);
  EXPECT_GT(few, 90u);
}

TEST_F(StepLoopTest, CancelsDuringAStepKeepItsBlocksUntilItEnds) {
  loop_.Add(Ask(1, 60, 50), now_);
  loop_.Add(Ask(2, 60, 50), now_);
  ASSERT_TRUE(Step());
  ASSERT_TRUE(loop_.BeginStep(now_));
  loop_.CancelSink(sink_.get());
  EXPECT_EQ(loop_.pool().used(), 4);
  EXPECT_THAT(loop_.TakeEnded(), IsEmpty());
  outbox_.Flush(loop_.steps());
  EXPECT_THAT(sink_->Of(1).finishes, ElementsAre(Finish::kCancelled));
  EXPECT_EQ(loop_.Poll(), ModelRunner::Progress::kDone);
  loop_.FinishStep(now_);
  EXPECT_EQ(loop_.pool().used(), 0);
  EXPECT_EQ(loop_.TakeEnded().size(), 2u);
  EXPECT_TRUE(loop_.idle());
}

TEST_F(StepLoopTest, AnOutboxDropsTheEventsOfASilencedSink) {
  auto other = std::make_shared<CollectingSink>();
  outbox_.Add(sink_, {.request = 1, .index = 0});
  outbox_.Add(other, {.request = 1, .index = 0});
  outbox_.Silence(sink_.get());
  outbox_.Silence(sink_.get());
  outbox_.Flush(1);
  EXPECT_EQ(sink_->events(), 0);
  EXPECT_EQ(other->events(), 1);
  outbox_.Forget(sink_.get());
  outbox_.Add(sink_, {.request = 1, .index = 0});
  outbox_.Flush(2);
  EXPECT_EQ(sink_->events(), 0);  // silenced twice
  outbox_.Add(sink_, {.request = 1, .index = 0});
  outbox_.Forget(sink_.get());
  outbox_.Flush(3);
  EXPECT_EQ(sink_->events(), 0);
  outbox_.Add(sink_, {.request = 1, .index = 0});
  outbox_.Flush(4);
  EXPECT_EQ(sink_->events(), 1);
}

}  // namespace
}  // namespace switchyard::router
