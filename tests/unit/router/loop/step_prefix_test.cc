// What sequences share: the tokens are the same, the rows fewer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/unit/router/loop/step_loop_fixture.h"

namespace switchyard::router {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class StepPrefixTest : public StepLoopTest {
 protected:
  using StepLoopTest::StepLoopTest;

  // Tokens of `prompt_len` positions that begin alike for all of one `family`.
  EngineRequest AskLike(uint64_t id, int family, int prompt_len, int max_tokens) {
    EngineRequest request = Ask(id, prompt_len, max_tokens);
    for (int i = 0; i < prompt_len; ++i) request.prompt[i] = (family * 7 + i * i + i) % 61;
    return request;
  }
  // Runs until there is nothing left to do; the rows that took.
  int64_t Finish() {
    const int64_t before = runner_.rows();
    while (Step()) {
    }
    return runner_.rows() - before;
  }
  int64_t Run(EngineRequest request) {
    loop_.Add(request, now_);
    const int64_t rows = Finish();
    ExpectRight(request);
    return rows;
  }
  void ExpectRight(const EngineRequest& request) {
    for (int choice = 0; choice < request.n; ++choice) {
      EXPECT_EQ(Difference(sink_->Of(request.request, choice),
                           Expected(request, choice, options_, model_)),
                "")
          << "request " << request.request << " choice " << choice;
    }
    EXPECT_THAT(runner_.errors(), IsEmpty());
  }
};

TEST_F(StepPrefixTest, ALaterRequestComputesWhatIsNew) {
  EXPECT_EQ(Run(AskLike(1, 1, 70, 2)), 71);
  EXPECT_EQ(sink_->Of(1).cached_tokens, 0);
  EXPECT_EQ(Run(AskLike(2, 1, 70, 2)), 7);
  EXPECT_EQ(sink_->Of(2).cached_tokens, 64);
  EXPECT_EQ(Run(AskLike(3, 1, 40, 1)), 8);
  EXPECT_EQ(sink_->Of(3).cached_tokens, 32);
  EXPECT_EQ(Run(AskLike(4, 2, 70, 2)), 71);
  EXPECT_EQ(sink_->Of(4).cached_tokens, 0);
}

TEST_F(StepPrefixTest, TheLastPromptTokenIsAlwaysComputed) {
  EXPECT_EQ(Run(AskLike(1, 1, 64, 1)), 64);
  EXPECT_EQ(Run(AskLike(2, 1, 64, 1)), 32);
  EXPECT_EQ(sink_->Of(2).cached_tokens, 32);
  EXPECT_EQ(Run(AskLike(3, 1, 65, 1)), 1);
}

TEST_F(StepPrefixTest, OutputsAreFoundAsPromptsOfTheNextTurn) {
  EngineRequest first = AskLike(1, 1, 50, 50);
  Run(first);
  EngineRequest second = AskLike(2, 1, 50, 1);
  const std::vector<int32_t> said = sink_->Of(1).tokens;
  second.prompt.insert(second.prompt.end(), said.begin(), said.end());
  second.prompt.push_back(5);
  EXPECT_EQ(Run(second), 101 - 96);
}

TEST_F(StepPrefixTest, SaltsDoNotShare) {
  EngineRequest salted = AskLike(1, 1, 70, 1), other = AskLike(2, 1, 70, 1);
  salted.cache_salt = "a", other.cache_salt = "b";
  EXPECT_EQ(Run(salted), 70);
  EXPECT_EQ(Run(other), 70);
  EXPECT_EQ(Run(AskLike(3, 1, 70, 1)), 70);
  salted.request = 4;
  EXPECT_EQ(Run(salted), 6);
}

TEST_F(StepPrefixTest, SwitchedOffNothingIsFound) {
  options_.prefix_cache = false;
  EXPECT_EQ(Run(AskLike(1, 1, 70, 1)), 70);
  EXPECT_EQ(Run(AskLike(2, 1, 70, 1)), 70);
  EXPECT_EQ(loop_.pool().findable_free(), 0);
}

TEST_F(StepPrefixTest, RequestsAtOnceHoldTheirPrefixOnce) {
  EngineRequest a = AskLike(1, 1, 80, 5), b = AskLike(2, 1, 80, 5);
  loop_.Add(a, now_);
  loop_.Add(b, now_);
  ASSERT_TRUE(Step());
  EXPECT_EQ(runner_.rows(), 160);  // in one step neither can wait for the other
  EXPECT_EQ(loop_.pool().used(), 2 + 1 + 1);
  EngineRequest c = AskLike(3, 1, 80, 5);
  loop_.Add(c, now_);
  ASSERT_TRUE(Step());
  EXPECT_EQ(runner_.rows(), 160 + 2 + 16);
  EXPECT_EQ(loop_.pool().used(), 2 + 3);
  Finish();
  for (const EngineRequest& request : {a, b, c}) ExpectRight(request);
  EXPECT_EQ(loop_.pool().used(), 0);
}

TEST_F(StepPrefixTest, ThatWhichIsOwedToTheClientIsComputed) {
  Run(AskLike(1, 1, 70, 1));
  EngineRequest traced = AskLike(2, 1, 70, 3), scored = AskLike(3, 1, 70, 3);
  traced.return_routed_experts = true;
  EXPECT_EQ(Run(traced), 72);
  EXPECT_EQ(sink_->Of(2).cached_tokens, 0);
  scored.prompt_logprobs = true;
  EXPECT_EQ(Run(scored), 72);
  EXPECT_EQ(sink_->Of(3).prompt_logprobs.size(), 69u);
}

TEST_F(StepPrefixTest, APreemptedSequenceFindsWhatIsLeftOfIt) {
  EngineRequest low = AskLike(1, 1, 100, 60);
  loop_.Add(low, now_);
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(Step());  // 139 tokens in five blocks
  EngineRequest high = AskLike(2, 2, 150, 1);        // five of eight
  high.priority = 1;
  loop_.Add(high, now_);
  const int64_t before = runner_.rows();
  ASSERT_TRUE(Step());
  EXPECT_EQ(sink_->Of(1).tokens.size(), 40u);
  Finish();
  // Three of the blocks were free for the other one; the last two, and no more, were taken.
  EXPECT_EQ(runner_.rows() - before, 150 + (140 - 96) + 19);
  ExpectRight(low);
  ExpectRight(high);
  EXPECT_EQ(sink_->Of(1).cached_tokens, 0);
}

// Where experts were replaced.
class StepDegradedTest : public StepPrefixTest {
 protected:
  StepDegradedTest() : StepPrefixTest({.max_model_len = 256, .kv_blocks = 32}) {}

  void DegradeAt(size_t position) {
    degrade_ = [position](const std::vector<int32_t>& tokens) {
      return tokens.size() == position + 1 ? LostExperts::kNextBest : LostExperts::kFail;
    };
  }
  // How many tokens of a choice are marked; those are the last ones.
  int64_t Marked(uint64_t id, int choice = 0) {
    const std::vector<LostExperts> all = sink_->Of(id, choice).degraded;
    const auto first = std::find(all.begin(), all.end(), LostExperts::kNextBest);
    EXPECT_EQ(std::count(first, all.end(), LostExperts::kNextBest), all.end() - first);
    return all.end() - first;
  }
};

TEST_F(StepDegradedTest, BlocksFromThatRowOnAreNobodyElses) {
  DegradeAt(40);
  EXPECT_EQ(Run(AskLike(1, 1, 100, 2)), 101);
  EXPECT_EQ(Marked(1), 2);
  EXPECT_EQ(Run(AskLike(2, 1, 40, 1)), 8);  // one that does not come so far
  EXPECT_EQ(Marked(2), 0);
  degrade_ = nullptr;
  EXPECT_EQ(Run(AskLike(3, 1, 100, 1)), 100 - 32);
  EXPECT_EQ(Marked(3), 0);
  EXPECT_EQ(Run(AskLike(4, 1, 100, 1)), 4) << "what was computed as it should be is found";
}

TEST_F(StepDegradedTest, TokensAreMarkedFromTheFirstThatDependsOnIt) {
  DegradeAt(75);
  Run(AskLike(1, 1, 70, 20));
  EXPECT_EQ(Marked(1), 20 - 6);
  options_.max_drafts = 3;
  options_.make_drafter = [] { return std::make_unique<FakeDrafter>(61); };
  EngineRequest guessed = AskLike(2, 1, 70, 20);
  guessed.cache_salt = "another";
  Run(guessed);
  EXPECT_EQ(Marked(2), 20 - 6);
}

TEST_F(StepDegradedTest, ChoicesOfOnePromptAreMarkedTogether) {
  DegradeAt(40);
  EngineRequest request = AskLike(1, 1, 70, 4);
  request.n = 3;
  request.sampling.temperature = 1;
  Run(request);
  for (int choice = 0; choice < 3; ++choice) EXPECT_EQ(Marked(1, choice), 4);
  degrade_ = nullptr;
  EXPECT_EQ(Run(AskLike(2, 1, 70, 1)), 70 - 32);
}

TEST_F(StepDegradedTest, WhatIsComputedAgainIsSoundButTheMarkStays) {
  options_.kv_blocks = 8;
  FakeRunner runner(model_);
  StepLoop loop(options_, runner, observer_, outbox_);
  const auto step = [&] {
    if (!loop.BeginStep(now_)) return false;
    EXPECT_EQ(loop.Poll(), ModelRunner::Progress::kDone);
    loop.FinishStep(now_);
    outbox_.Flush(loop.steps());
    return true;
  };
  DegradeAt(40);
  loop.Add(AskLike(1, 1, 100, 60), now_);
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(step());
  degrade_ = nullptr;
  EngineRequest high = AskLike(2, 2, 150, 1);
  high.priority = 1;
  loop.Add(high, now_);
  while (step()) {
  }
  EXPECT_EQ(Marked(1), 60);
  const int64_t before = runner.rows();
  loop.Add(AskLike(3, 1, 100, 1), now_);
  while (step()) {
  }
  EXPECT_EQ(runner.rows() - before, 4);
  EXPECT_EQ(Marked(3), 0);
}

// All layers see the last 64 tokens.
class StepWindowTest : public StepPrefixTest {
 protected:
  static constexpr int kWindow = 64;

  StepWindowTest() : StepPrefixTest({.max_model_len = 1024, .kv_blocks = 32}, kWindow) {}
};

TEST_F(StepWindowTest, ALongGenerationHoldsTheBlocksOfItsWindow) {
  EngineRequest request = AskLike(1, 1, 30, 4 * kWindow);
  loop_.Add(request, now_);
  int64_t most = 0;
  while (Step()) most = std::max(most, loop_.pool().used());
  EXPECT_EQ(most, BlocksFor(kWindow) + 1);  // a window begins inside a block
  ExpectRight(request);
}

TEST_F(StepWindowTest, APromptGivesItsBlocksBackAsItIsComputed) {
  options_.max_batch_tokens = 50;
  EngineRequest request = AskLike(1, 1, 400, 3);
  loop_.Add(request, now_);
  for (int64_t computed = 50; computed <= 400; computed += 50) {
    ASSERT_TRUE(Step());
    EXPECT_EQ(loop_.pool().used(), BlocksFor(computed) - FirstBlockSeen(computed, kWindow));
  }
  Finish();
  ExpectRight(request);
}

TEST_F(StepWindowTest, PromptsMayBeLongerThanTheCache) {
  EngineOptions options = options_;
  options.max_model_len = 4096;
  options.kv_blocks = LeastBlocks(std::vector{kWindow}, 4096);
  FakeRunner runner({.kv_blocks = options.kv_blocks, .window = kWindow});
  StepLoop loop(options, runner, observer_, outbox_);
  std::vector<EngineRequest> requests;
  for (uint64_t id = 1; id <= 5; ++id) {
    requests.push_back(AskLike(id, static_cast<int>(id % 3), 700 + 100 * static_cast<int>(id), 90));
    requests.back().priority = id == 4;
    loop.Add(requests.back(), now_);
  }
  for (int steps = 0; loop.BeginStep(now_); ++steps) {
    ASSERT_LT(steps, 10000);
    ASSERT_EQ(loop.Poll(), ModelRunner::Progress::kDone);
    loop.FinishStep(now_);
    outbox_.Flush(loop.steps());
  }
  for (const EngineRequest& request : requests) {
    EXPECT_EQ(Difference(sink_->Of(request.request), Expected(request, 0, options, model_)), "");
  }
  EXPECT_THAT(runner.errors(), IsEmpty());
  EXPECT_EQ(loop.pool().used(), 0);
}

TEST_F(StepWindowTest, APrefixIsFoundAsFarAsItsWindowIsThere) {
  EXPECT_EQ(Run(AskLike(1, 1, 320, 1)), 320);
  EXPECT_EQ(Run(AskLike(2, 1, 320, 2)), 33);
  EXPECT_EQ(sink_->Of(2).cached_tokens, 288);
  // Others take what was freed first: the beginning of the prefix. Its end is still enough.
  EngineRequest other = AskLike(3, 2, 32 * 24 - 1, 1);
  EXPECT_EQ(Run(other), 32 * 24 - 1);
  EXPECT_EQ(Run(AskLike(4, 1, 320, 1)), 32);
  EXPECT_EQ(sink_->Of(4).cached_tokens, 288);
  // What ends before is not there any more.
  EXPECT_EQ(Run(AskLike(5, 1, 100, 1)), 100);
}

TEST_F(StepWindowTest, ChoicesShareWhatTheWindowLeaves) {
  EngineRequest request = AskLike(1, 1, 200, 150);
  request.n = 3;
  request.sampling.temperature = 1;
  loop_.Add(request, now_);
  ASSERT_TRUE(Step());
  // 137 … 199 in blocks 4 to 6, of which the last is each one's own.
  EXPECT_EQ(loop_.pool().used(), 2 + 3);
  Finish();
  ExpectRight(request);
  EXPECT_EQ(loop_.pool().used(), 0);
}

TEST_F(StepWindowTest, GuessesAndPreemptionChangeNothing) {
  options_.max_drafts = 3;
  options_.make_drafter = [] { return std::make_unique<FakeDrafter>(61); };
  std::vector<EngineRequest> requests;
  for (uint64_t id = 1; id <= 9; ++id) {
    requests.push_back(AskLike(id, static_cast<int>(id % 3), 90 + 10 * static_cast<int>(id), 200));
    requests.back().priority = id > 7;
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    loop_.Add(requests[i], now_);
    for (int steps = 0; steps < 20; ++steps) Step();
  }
  Finish();
  for (const EngineRequest& request : requests) ExpectRight(request);
  EXPECT_EQ(loop_.pool().used(), 0);
}

// Every other layer sees the last 64 tokens, the rest all.
class StepGroupsTest : public StepPrefixTest {
 protected:
  static constexpr int kWindow = 64;

  StepGroupsTest() : StepPrefixTest({.max_model_len = 1024, .kv_blocks = 64}, kWindow, true) {}

  // Of a sequence between steps.
  static int64_t Held(int64_t computed) {
    return 2 * BlocksFor(computed) - FirstBlockSeen(computed, kWindow);
  }
};

TEST_F(StepGroupsTest, ALongSequenceCostsAboutHalf) {
  EngineRequest request = AskLike(1, 1, 40, 900);
  loop_.Add(request, now_);
  for (int64_t computed = 40; computed < 939; ++computed) {
    ASSERT_TRUE(Step());
    ASSERT_LE(loop_.pool().used(), Held(computed) + 1) << computed;  // admitted with a chunk's
  }
  EXPECT_LE(loop_.pool().used(), BlocksFor(939) + BlocksFor(kWindow) + 1);
  Finish();
  ExpectRight(request);
}

TEST_F(StepGroupsTest, APromptTakesTheBlocksOfItsWindowAsItIsComputed) {
  options_.max_batch_tokens = 50;
  EngineRequest request = AskLike(1, 1, 900, 3);
  loop_.Add(request, now_);
  for (int64_t computed = 50; computed <= 900; computed += 50) {
    ASSERT_TRUE(Step());
    EXPECT_EQ(loop_.pool().used(),
              BlocksFor(900) + BlocksFor(computed) - FirstBlockSeen(computed, kWindow));
  }
  Finish();
  ExpectRight(request);
}

TEST_F(StepGroupsTest, APrefixIsFoundWhereEachGroupHasIt) {
  EXPECT_EQ(Run(AskLike(1, 1, 320, 1)), 320);
  EXPECT_EQ(Run(AskLike(2, 1, 320, 2)), 33);
  EXPECT_EQ(sink_->Of(2).cached_tokens, 288);
  EXPECT_EQ(Run(AskLike(3, 1, 100, 2)), 101 - 96);
  // Others take what was given back first: the windows of the beginning.
  EXPECT_EQ(Run(AskLike(4, 2, 32 * 24, 1)), 32 * 24);
  EXPECT_EQ(Run(AskLike(5, 1, 320, 2)), 33);
  EXPECT_EQ(sink_->Of(5).cached_tokens, 288);
  EXPECT_EQ(Run(AskLike(6, 1, 200, 2)), 201);
  EXPECT_EQ(sink_->Of(6).cached_tokens, 0);
}

TEST_F(StepGroupsTest, ChoicesShareWhatIsLeftInEachGroup) {
  EngineRequest request = AskLike(1, 1, 200, 60);
  request.n = 3;
  request.sampling.temperature = 1;
  loop_.Add(request, now_);
  ASSERT_TRUE(Step());
  // Six full blocks and a partial one; 137 … 199 in blocks 4 to 6. The last is each one's own.
  EXPECT_EQ(loop_.pool().used(), 6 + 2 + 2 * 3);
  EXPECT_EQ(runner_.copies(), 2 * 2);
  Finish();
  ExpectRight(request);
  EXPECT_EQ(loop_.pool().used(), 0);
}

TEST_F(StepGroupsTest, GuessesPreemptionAndCancellationGiveEveryBlockBack) {
  options_.max_drafts = 3;
  options_.make_drafter = [] { return std::make_unique<FakeDrafter>(61); };
  std::vector<EngineRequest> requests;
  for (uint64_t id = 1; id <= 12; ++id) {
    requests.push_back(AskLike(id, static_cast<int>(id % 3), 90 + 40 * static_cast<int>(id), 200));
    requests.back().priority = id > 9;
    requests.back().n = 1 + static_cast<int>(id % 2);
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    loop_.Add(requests[i], now_);
    for (int steps = 0; steps < 20; ++steps) Step();
    if (i % 4 == 3) loop_.Cancel({sink_.get(), requests[i].request});
  }
  Finish();
  for (size_t i = 0; i < requests.size(); ++i) {
    if (i % 4 != 3) ExpectRight(requests[i]);
  }
  EXPECT_THAT(runner_.errors(), IsEmpty());
  EXPECT_EQ(loop_.pool().used(), 0);
}

class ForkTest : public StepPrefixTest {
 protected:
  EngineRequest AskChoices(uint64_t id, int n, int prompt_len, int max_tokens) {
    EngineRequest request = AskLike(id, static_cast<int>(id), prompt_len, max_tokens);
    request.n = n;
    request.sampling.temperature = 1;
    request.sampling.seed = 5;
    return request;
  }
};

TEST_F(ForkTest, ChoicesShareThePromptAndItsLogits) {
  EngineRequest request = AskChoices(1, 4, 70, 4);
  EXPECT_EQ(Run(request), 70 + 4 * 3);
  EXPECT_EQ(runner_.copies(), 3);
  EXPECT_NE(sink_->Of(1, 0).tokens, sink_->Of(1, 1).tokens);
  EXPECT_EQ(loop_.pool().used(), 0);
}

TEST_F(ForkTest, NothingIsCopiedWhereThePromptEndsWithABlock) {
  EXPECT_EQ(Run(AskChoices(1, 3, 64, 40)), 64 + 3 * 39);
  EXPECT_EQ(runner_.copies(), 0);
}

TEST_F(ForkTest, WithoutAPrefixCacheToo) {
  options_.prefix_cache = false;
  EXPECT_EQ(Run(AskChoices(1, 4, 70, 4)), 70 + 4 * 3);
}

TEST_F(ForkTest, ChoicesOfOneTokenTakeOneStep) {
  EXPECT_EQ(Run(AskChoices(1, 5, 70, 1)), 70);
  EXPECT_EQ(loop_.steps(), 1u);
}

TEST_F(ForkTest, WhereThereIsNoPlaceTheyWaitAndFindTheirBlocks) {
  options_.max_running = 2;
  EXPECT_EQ(Run(AskChoices(1, 4, 70, 3)), 70 + 2 * 2 + 2 * (6 + 2));
}

TEST_F(ForkTest, ANewFirstComputesThePromptIfTheFirstEndsBeforeItHas) {
  options_.max_batch_tokens = 40;
  EngineRequest request = AskChoices(1, 3, 70, 5);
  loop_.Add(request, now_);
  ASSERT_TRUE(Step());
  loop_.CancelChoice({sink_.get(), 1}, 0);
  loop_.CancelChoice({sink_.get(), 1}, 1);
  Finish();
  EXPECT_THAT(sink_->Of(1, 0).finishes, ElementsAre(Finish::kCancelled));
  EXPECT_THAT(sink_->Of(1, 1).finishes, ElementsAre(Finish::kCancelled));
  EXPECT_EQ(Difference(sink_->Of(1, 2), Expected(request, 2, options_, {})), "");
  EXPECT_TRUE(loop_.idle());
  EXPECT_EQ(loop_.pool().used(), 0);
}

TEST_F(ForkTest, OneThatWaitsForItsFirstCanBeCancelled) {
  options_.max_batch_tokens = 40;
  EngineRequest request = AskChoices(1, 3, 70, 5);
  loop_.Add(request, now_);
  ASSERT_TRUE(Step());
  loop_.CancelChoice({sink_.get(), 1}, 1);
  Finish();
  EXPECT_THAT(sink_->Of(1, 1).finishes, ElementsAre(Finish::kCancelled));
  for (int choice : {0, 2}) {
    EXPECT_EQ(Difference(sink_->Of(1, choice), Expected(request, choice, options_, {})), "");
  }
}

}  // namespace
}  // namespace switchyard::router
