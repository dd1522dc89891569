#include "router/loop/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <time.h>

#include <atomic>
#include <cstdio>
#include <thread>

#include "absl/synchronization/notification.h"
#include "services/base/text.h"
#include "tests/unit/router/loop/engine_harness.h"

namespace switchyard::router {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

EngineRequest Ask(std::shared_ptr<TokenSink> sink, uint64_t id, int prompt_len, int max_tokens) {
  EngineRequest request;
  request.request = id;
  request.trace_id = "trace-" + std::to_string(id);
  for (int i = 0; i < prompt_len; ++i) {
    request.prompt.push_back(static_cast<int32_t>((id * 17 + i * 5 + i * i) % 60 + 1));
  }
  request.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  request.sink = std::move(sink);
  return request;
}

// A request that uses what there is: sampling, several choices, scores and traces.
EngineRequest AskMuch(std::shared_ptr<TokenSink> sink, uint64_t id) {
  EngineRequest request = Ask(std::move(sink), id, 45, 70);
  request.sampling.temperature = 0.9f;
  request.sampling.top_p = 0.95f;
  request.sampling.frequency_penalty = 0.3f;
  request.sampling.seed = id + 99;
  request.n = 2;
  request.top_logprobs = 2;
  request.prompt_logprobs = true;
  request.return_routed_experts = true;
  return request;
}

struct Shape {
  std::string name;
  EngineOptions engine;
  int waits = 0;
};

// The same tokens, scores and traces in whatever company, cut and shortage.
class EngineShapeTest : public testing::TestWithParam<Shape> {};

TEST_P(EngineShapeTest, TokensAreAFunctionOfTheRequestAlone) {
  const FakeRunnerOptions model{.kv_blocks = GetParam().engine.kv_blocks,
                                .waits = GetParam().waits};
  FakeRunner runner(model);
  std::vector<EngineRequest> requests;
  auto sink = std::make_shared<CollectingSink>();
  requests.push_back(AskMuch(sink, 1));
  for (uint64_t id = 2; id < 34; ++id) {
    requests.push_back(Ask(sink, id, 1 + (id * 13) % 90, 1 + (id * 7) % 50));
    requests.back().sampling.temperature = id % 3 == 0 ? 0 : 1;
    requests.back().priority = static_cast<int>(id % 3);
  }
  {
    Engine engine(GetParam().engine, runner, nullptr);
    for (const EngineRequest& request : requests) ASSERT_TRUE(engine.Submit(request).ok());
    for (const EngineRequest& request : requests) sink->AwaitEnd(request.request, request.n);
    absl::Notification drained;
    engine.BeginDrain([&] { drained.Notify(); });
    drained.WaitForNotification();
    EXPECT_EQ(engine.Snapshot().kv_blocks_used, 0);
    EXPECT_EQ(engine.Snapshot().running, 0);
  }
  for (const EngineRequest& request : requests) {
    for (int choice = 0; choice < request.n; ++choice) {
      EXPECT_EQ(Difference(sink->Of(request.request, choice),
                           Expected(request, choice, GetParam().engine, model)),
                "")
          << "request " << request.request << " choice " << choice;
    }
  }
  EXPECT_NE(sink->Of(1, 0).tokens, sink->Of(1, 1).tokens);
  EXPECT_EQ(sink->Of(1, 0).prompt_logprobs.size(), 44u);
  EXPECT_THAT(sink->Of(1, 1).prompt_logprobs, IsEmpty());
  EXPECT_THAT(runner.errors(), IsEmpty());
  EXPECT_LE(runner.max_rows(), GetParam().engine.max_batch_tokens);
  EXPECT_EQ(sink->max_calls_in_step(), 1);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, EngineShapeTest,
    testing::Values(Shape{"Roomy", Cut(2048, 256)}, Shape{"OneRow", Cut(1, 256)},
                    Shape{"SevenRows", Cut(7, 256)}, Shape{"SixtyFourRows", Cut(64, 256)},
                    Shape{"TinyCache", Cut(64, 6)}, Shape{"TinyCacheSevenRows", Cut(7, 5)},
                    Shape{"TinyCacheOneRow", Cut(1, 5)}, Shape{"OneRunning", Cut(64, 8, 1)},
                    Shape{"OneLogitRow", Cut(64, 12, 8, 1)}, Shape{"Waiting", Cut(64, 8), 3},
                    Shape{"Speculating", Speculating(Cut(2048, 256), 4)},
                    Shape{"SpeculatingTinyCache", Speculating(Cut(64, 6), 5)},
                    Shape{"SpeculatingOneRow", Speculating(Cut(1, 256), 3)},
                    Shape{"SpeculatingTwoLogitRows", Speculating(Cut(64, 12, 8, 2), 3)}),
    [](const auto& info) { return info.param.name; });

TEST(EngineTest, AloneIsTheSameAsInCompany) {
  const FakeRunnerOptions model;
  FakeRunner runner(model);
  auto sink = std::make_shared<CollectingSink>();
  Engine engine(SmallEngine(), runner, nullptr);
  const EngineRequest request = AskMuch(sink, 1);
  ASSERT_TRUE(engine.Submit(request).ok());
  sink->AwaitEnd(1, 2);
  for (int choice : {0, 1}) {
    EXPECT_EQ(Difference(sink->Of(1, choice), Expected(request, choice, SmallEngine(), model)), "");
  }
}

TEST(EngineTest, AStepReachesASinkInOneCallWithAllItsRequests) {
  FakeRunner runner({});
  auto sink = std::make_shared<CollectingSink>(), other = std::make_shared<CollectingSink>();
  Engine engine(SmallEngine(), runner, nullptr);
  runner.Hold();
  ASSERT_TRUE(engine.Submit(Ask(sink, 1, 5, 1)).ok());
  runner.AwaitHeld();
  for (uint64_t id = 2; id < 10; ++id) {
    ASSERT_TRUE(engine.Submit(Ask(id % 2 ? sink : other, id, 5, 8)).ok());
  }
  runner.Release();
  for (uint64_t id = 1; id < 10; ++id) (id % 2 ? sink : other)->AwaitEnd(id, 1);
  EXPECT_EQ(sink->max_calls_in_step(), 1);
  EXPECT_EQ(other->max_calls_in_step(), 1);
  EXPECT_EQ(sink->events(), 1 + 4 * 8);
}

TEST(EngineTest, StopTokensAndEndOfSequenceStopAndAreGiven) {
  const FakeRunnerOptions model{.vocab = 7, .eos_ids = {3, 4}};
  FakeRunner runner(model);
  auto sink = std::make_shared<CollectingSink>();
  Engine engine(SmallEngine(), runner, nullptr);
  int stopped = 0;
  for (uint64_t id = 1; id <= 12; ++id) {
    EngineRequest request = Ask(sink, id, 3, 40);
    for (int32_t& token : request.prompt) token %= 7;
    request.sampling = {.temperature = 1, .seed = id, .ignore_eos = id % 3 == 0};
    request.stop_token_ids = {5};
    request.min_tokens = id % 2 == 0 ? 9 : 0;
    ASSERT_TRUE(engine.Submit(request).ok());
    sink->AwaitEnd(id, 1);
    const Output got = sink->Of(id);
    EXPECT_EQ(Difference(got, Expected(request, 0, SmallEngine(), model)), "") << id;
    EXPECT_GE(static_cast<int>(got.tokens.size()), request.min_tokens);
    stopped += got.finishes[0] == Finish::kStop;
    for (size_t i = 0; i + 1 < got.tokens.size(); ++i) {
      EXPECT_NE(got.tokens[i], 5);
      EXPECT_TRUE(request.sampling.ignore_eos || got.tokens[i] < 3 || got.tokens[i] > 4);
    }
  }
  EXPECT_GT(stopped, 8);
}

TEST(EngineTest, TheModelsLengthEndsASequence) {
  FakeRunner runner({});
  auto sink = std::make_shared<CollectingSink>();
  Engine engine({.max_model_len = 40, .kv_blocks = 64}, runner, nullptr);
  ASSERT_TRUE(engine.Submit(Ask(sink, 1, 39, 100)).ok());
  ASSERT_TRUE(engine.Submit(Ask(sink, 2, 30, 100)).ok());
  sink->AwaitEnd(1, 1);
  sink->AwaitEnd(2, 1);
  EXPECT_EQ(sink->Of(1).tokens.size(), 1u);
  EXPECT_EQ(sink->Of(2).tokens.size(), 10u);
  EXPECT_THAT(sink->Of(2).finishes, ElementsAre(Finish::kLength));
}

TEST(EngineTest, CancelReachesARequestWhoseStepWaits) {
  const FakeRunnerOptions model;
  FakeRunner runner(model);
  auto sink = std::make_shared<CollectingSink>();
  Engine engine(SmallEngine(), runner, nullptr);
  const EngineRequest other = Ask(sink, 2, 40, 30);
  runner.Hold();
  EngineRequest doomed = Ask(sink, 1, 40, 300);
  doomed.n = 3;
  ASSERT_TRUE(engine.Submit(doomed).ok());
  ASSERT_TRUE(engine.Submit(other).ok());
  runner.AwaitHeld();
  engine.Cancel(sink.get(), 77);  // unknown
  engine.Cancel(sink.get(), 1);
  engine.Cancel(sink.get(), 1);
  sink->AwaitEnd(1, 3);  // the runner still holds the step
  for (int choice : {0, 1, 2}) {
    EXPECT_THAT(sink->Of(1, choice).finishes, ElementsAre(Finish::kCancelled));
  }
  runner.Release();
  sink->AwaitEnd(2, 1);
  EXPECT_EQ(Difference(sink->Of(2), Expected(other, 0, SmallEngine(), model)), "");
  EXPECT_THAT(sink->Of(1, 0).finishes, ElementsAre(Finish::kCancelled));
  EXPECT_THAT(runner.errors(), IsEmpty());
}

TEST(EngineTest, AStepThatNobodyWantsIsAbandonedAndItsBlocksAreFree) {
  const FakeRunnerOptions model;
  FakeRunner runner(model);
  auto sink = std::make_shared<CollectingSink>();
  Engine engine(SmallEngine(), runner, nullptr);
  runner.Hold();
  ASSERT_TRUE(engine.Submit(Ask(sink, 1, 40, 30)).ok());
  EngineRequest late = Ask(sink, 2, 40, 30);
  late.deadline = absl::Now() + absl::Milliseconds(30);
  ASSERT_TRUE(engine.Submit(late).ok());
  runner.AwaitHeld();
  engine.Cancel(sink.get(), 1);
  absl::Notification drained;
  engine.BeginDrain([&] { drained.Notify(); });
  drained.WaitForNotification();  // without Release
  const absl::Time bound = absl::Now() + absl::Seconds(20);
  while (engine.Snapshot().kv_blocks_used > 0 && absl::Now() < bound) std::this_thread::yield();
  EXPECT_EQ(engine.Snapshot().kv_blocks_used, 0);
  EXPECT_GE(runner.abandoned(), 1);
  EXPECT_THAT(runner.errors(), IsEmpty());
}

TEST(EngineTest, OneChoiceCanBeCancelledAlone) {
  const FakeRunnerOptions model;
  FakeRunner runner(model);
  auto sink = std::make_shared<CollectingSink>();
  Engine engine(SmallEngine(), runner, nullptr);
  EngineRequest request = Ask(sink, 1, 40, 60);
  request.sampling.temperature = 1;
  request.n = 3;
  runner.Hold();
  ASSERT_TRUE(engine.Submit(request).ok());
  runner.AwaitHeld();
  for (int choice : {1, 1, -1, 3}) engine.CancelChoice(sink.get(), 1, choice);
  engine.CancelChoice(sink.get(), 77, 0);
  runner.Release();
  sink->AwaitEnd(1, 3);
  EXPECT_THAT(sink->Of(1, 1).finishes, ElementsAre(Finish::kCancelled));
  EXPECT_LE(sink->Of(1, 1).tokens.size(), 1u);
  for (int choice : {0, 2}) {
    EXPECT_EQ(Difference(sink->Of(1, choice), Expected(request, choice, SmallEngine(), model)), "");
  }
}

TEST(EngineTest, RoutingAndScoresOfAPromptComeAsTheyAreComputed) {
  const FakeRunnerOptions model;
  FakeRunner runner(model);
  auto sink = std::make_shared<CollectingSink>();
  const EngineOptions options = Cut(/*batch=*/16, /*blocks=*/64);
  Engine engine(options, runner, nullptr);
  EngineRequest request = Ask(sink, 1, 100, 3);
  request.prompt_logprobs = request.return_routed_experts = true;
  ASSERT_TRUE(engine.Submit(request).ok());
  sink->AwaitEnd(1, 1);
  EXPECT_EQ(Difference(sink->Of(1), Expected(request, 0, options, model)), "");
  EXPECT_EQ(sink->Of(1).prompt_logprobs.size(), 99u);
  EXPECT_EQ(sink->Of(1).events_without_token, 6);  // 100 rows by 16; the 7th gives a token
}

TEST(EngineTest, AnEventCarriesABoundedPieceOfWhatWasComputed) {
  const FakeRunnerOptions model{.moe_layers = 1000, .top_k = 8};
  FakeRunner runner(model);
  auto sink = std::make_shared<CollectingSink>(8000);
  Engine engine(SmallEngine(), runner, nullptr);
  EngineRequest request = Ask(sink, 1, 30, 2);
  request.return_routed_experts = true;
  ASSERT_TRUE(engine.Submit(request).ok());
  sink->AwaitEnd(1, 1);
  EXPECT_EQ(Difference(sink->Of(1), Expected(request, 0, SmallEngine(), model)), "");
  EXPECT_EQ(sink->Of(1).events_without_token, 7);  // 30 positions by 4
}

TEST(EngineTest, ASinkThatIsGoneHearsNothingMore) {
  FakeRunner runner({.waits = 1});
  auto gone = std::make_shared<CollectingSink>(), stays = std::make_shared<CollectingSink>();
  Engine engine(SmallEngine(), runner, nullptr);
  for (uint64_t id = 1; id < 6; ++id) {
    ASSERT_TRUE(engine.Submit(Ask(gone, id, 20, 400)).ok());
    ASSERT_TRUE(engine.Submit(Ask(stays, id, 20, 60)).ok());
  }
  gone->AwaitTokens(1, 0, 5);
  engine.CancelAll(gone.get());
  const int64_t events = gone->events();
  for (uint64_t id = 1; id < 6; ++id) stays->AwaitEnd(id, 1);
  absl::Notification drained;
  engine.BeginDrain([&] { drained.Notify(); });
  drained.WaitForNotification();
  EXPECT_EQ(gone->events(), events);
  EXPECT_EQ(gone.use_count(), 1);
  EXPECT_EQ(engine.Snapshot().kv_blocks_used, 0);
}

TEST(EngineTest, ADeadlineThatHasPassedCostsNoWork) {
  FakeRunner runner({});
  auto sink = std::make_shared<CollectingSink>();
  Engine engine(SmallEngine(), runner, nullptr);
  EngineRequest request = Ask(sink, 1, 20, 10);
  request.deadline = absl::Now() - absl::Seconds(1);
  ASSERT_TRUE(engine.Submit(request).ok());
  sink->AwaitEnd(1, 1);
  EXPECT_EQ(sink->Of(1).error.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(ToStd(sink->Of(1).error.message()), HasSubstr("trace-1"));
  EXPECT_EQ(runner.steps(), 0);
}

TEST(EngineTest, ADeadlineEndsARequestWhoseStepHangs) {
  FakeRunner runner({});
  auto sink = std::make_shared<CollectingSink>();
  Engine engine(SmallEngine(), runner, nullptr);
  runner.Hold();
  EngineRequest request = Ask(sink, 1, 20, 10);
  request.deadline = absl::Now() + absl::Milliseconds(30);
  ASSERT_TRUE(engine.Submit(request).ok());
  sink->AwaitEnd(1, 1);  // without Release
  EXPECT_EQ(sink->Of(1).error.code(), absl::StatusCode::kDeadlineExceeded);
  runner.Release();
}

TEST(EngineTest, AFullQueueSaysWhenToComeAgain) {
  FakeRunner runner({});
  auto sink = std::make_shared<CollectingSink>();
  EngineOptions options = SmallEngine();
  options.max_queue = 3;
  options.max_running = 1;
  Engine engine(options, runner, nullptr);
  runner.Hold();
  ASSERT_TRUE(engine.Submit(Ask(sink, 1, 5, 5)).ok());
  runner.AwaitHeld();  // it runs, it does not wait
  for (uint64_t id = 2; id < 5; ++id) ASSERT_TRUE(engine.Submit(Ask(sink, id, 5, 5)).ok());
  const absl::Status full = engine.Submit(Ask(sink, 5, 5, 5));
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_GE(RetryAfterMs(full), 100);
  EXPECT_THAT(ToStd(full.message()), HasSubstr("holds 3"));
  EXPECT_EQ(engine.Snapshot().waiting, 3);
  engine.Cancel(sink.get(), 4);
  sink->AwaitEnd(4, 1);
  runner.Release();
  for (uint64_t id = 1; id < 4; ++id) sink->AwaitEnd(id, 1);
  EXPECT_EQ(RetryAfterMs(absl::OkStatus()), 0);
  // A refused request leaves no trace: its id is free.
  ASSERT_TRUE(engine.Submit(Ask(sink, 5, 5, 5)).ok());
  sink->AwaitEnd(5, 1);
  EXPECT_EQ(sink->Of(5).tokens.size(), 5u);
}

TEST(EngineTest, TheLastEighthOfTheQueueIsForClientsOfWhichNothingWaits) {
  FakeRunner runner({});
  auto sink = std::make_shared<CollectingSink>();
  EngineOptions options = SmallEngine();
  options.max_queue = 16;
  options.max_running = 1;
  Engine engine(options, runner, nullptr);
  const auto submit = [&](uint64_t id, const std::string& fair_key) {
    EngineRequest request = Ask(sink, id, 5, 2);
    request.fair_key = fair_key;
    return engine.Submit(request).code();
  };
  runner.Hold();
  ASSERT_EQ(submit(1, "flood"), absl::StatusCode::kOk);
  runner.AwaitHeld();
  for (uint64_t id = 2; id < 16; ++id) ASSERT_EQ(submit(id, "flood"), absl::StatusCode::kOk);
  EXPECT_EQ(submit(16, "flood"), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(submit(17, "other"), absl::StatusCode::kOk);
  EXPECT_EQ(submit(18, "other"), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(submit(19, ""), absl::StatusCode::kOk);  // who has no key has no share
  EXPECT_EQ(submit(20, "third"), absl::StatusCode::kResourceExhausted);
  runner.Release();
  for (uint64_t id = 1; id < 16; ++id) sink->AwaitEnd(id, 1);
  sink->AwaitEnd(17, 1);
  sink->AwaitEnd(19, 1);
  EXPECT_EQ(submit(16, "flood"), absl::StatusCode::kOk);
  sink->AwaitEnd(16, 1);
}

// A queue of few places behind a request that runs.
class DisplacingTest : public ::testing::Test {
 protected:
  explicit DisplacingTest(int places = 16) {
    EngineOptions options = SmallEngine();
    options.max_queue = places;
    options.max_running = 1;
    engine_ = std::make_unique<Engine>(options, runner_, nullptr);
    runner_.Hold();
    EXPECT_EQ(Submit(1, 100), absl::StatusCode::kOk);
    runner_.AwaitHeld();
  }
  absl::StatusCode Submit(uint64_t id, int priority, const std::string& fair_key = "", int n = 1) {
    EngineRequest request = Ask(sink_, id, 5, 2);
    request.priority = priority;
    request.fair_key = fair_key;
    request.n = n;
    return engine_->Submit(std::move(request)).code();
  }
  // Its error, as soon as it has ended.
  absl::Status ErrorOf(uint64_t id, int choice = 0, int choices = 1) {
    sink_->AwaitEnd(id, choices);
    return sink_->Of(id, choice).error;
  }

  FakeRunner runner_{FakeRunnerOptions{}};
  std::shared_ptr<CollectingSink> sink_ = std::make_shared<CollectingSink>();
  std::unique_ptr<Engine> engine_;
};

TEST_F(DisplacingTest, AHigherPriorityTakesThePlaceOfTheYoungestOfTheLowest) {
  ASSERT_EQ(Submit(2, 0), absl::StatusCode::kOk);
  ASSERT_EQ(Submit(3, -100), absl::StatusCode::kOk);
  ASSERT_EQ(Submit(4, -100, "", 2), absl::StatusCode::kOk);
  for (uint64_t id = 5; id < 18; ++id) ASSERT_EQ(Submit(id, -99), absl::StatusCode::kOk);
  EXPECT_EQ(Submit(20, -100), absl::StatusCode::kResourceExhausted) << "a tie displaces nobody";
  EXPECT_EQ(Submit(21, 100), absl::StatusCode::kOk);
  for (int choice : {0, 1}) {
    const absl::Status error = ErrorOf(4, choice, 2);
    EXPECT_EQ(error.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_GE(sink_->Of(4, choice).retry_after_ms, 100);
    EXPECT_THAT(ToStd(error.message()), HasSubstr("the queue is full"));
  }
  EXPECT_EQ(Submit(22, 99), absl::StatusCode::kOk);
  EXPECT_EQ(ErrorOf(3).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Submit(23, 0), absl::StatusCode::kOk);
  EXPECT_EQ(ErrorOf(17).code(), absl::StatusCode::kResourceExhausted);
  runner_.Release();
  for (uint64_t id : {1, 2, 5, 16, 21, 22, 23}) EXPECT_TRUE(ErrorOf(id).ok()) << id;
  // Its id is free, and so are all places.
  for (uint64_t id : {3, 4, 17, 20}) EXPECT_EQ(Submit(id, -100), absl::StatusCode::kOk);
  sink_->AwaitEnd(20, 1);
}

TEST_F(DisplacingTest, WhatRunsOrWasBegunElsewhereIsNotDisplaced) {
  for (uint64_t id = 2; id < 34; ++id) {
    EngineRequest begun = Ask(sink_, id, 5, 40);
    begun.priority = -100;
    begun.choices = {{.tokens = std::vector<int32_t>(38, 9)}};
    ASSERT_TRUE(engine_->Submit(begun).ok());
  }
  EXPECT_EQ(Submit(40, 100), absl::StatusCode::kResourceExhausted);
  runner_.Release();
  for (uint64_t id = 1; id < 34; ++id) EXPECT_TRUE(ErrorOf(id).ok()) << id;
}

TEST_F(DisplacingTest, AFloodOfAHigherPriorityLeavesTheLastEighthToOthers) {
  for (uint64_t id = 2; id < 16; ++id) ASSERT_EQ(Submit(id, 0, "flood"), absl::StatusCode::kOk);
  for (uint64_t id = 16; id < 30; ++id) {
    EXPECT_EQ(Submit(id, 1, "flood"), absl::StatusCode::kOk);
    EXPECT_EQ(ErrorOf(31 - id).code(), absl::StatusCode::kResourceExhausted);
  }
  // Who was displaced last hears of it before its place counts as free.
  while (engine_->Snapshot().waiting > 14) std::this_thread::yield();
  EXPECT_EQ(Submit(30, 1, "flood"), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Submit(31, -100, "second"), absl::StatusCode::kOk);
  ASSERT_EQ(Submit(32, -100, "third"), absl::StatusCode::kOk);
  EXPECT_EQ(Submit(33, 0, "fourth"), absl::StatusCode::kOk) << "in the place of the third";
  EXPECT_EQ(ErrorOf(32).code(), absl::StatusCode::kResourceExhausted);
  runner_.Release();
  for (uint64_t id : {1, 16, 29, 31, 33}) EXPECT_TRUE(ErrorOf(id).ok()) << id;
}

TEST(EngineTest, WhatAnotherRouterBeganFindsPlaces) {
  FakeRunner runner({});
  auto sink = std::make_shared<CollectingSink>();
  EngineOptions options = SmallEngine();
  options.max_queue = 2;
  options.max_running = 1;
  Engine engine(options, runner, nullptr);
  const auto continued = [&](uint64_t id) {
    EngineRequest request = Ask(sink, id, 5, 40);
    request.choices = {{.tokens = std::vector<int32_t>(38, 9)}};
    return engine.Submit(request).code();
  };
  runner.Hold();
  ASSERT_TRUE(engine.Submit(Ask(sink, 1, 5, 5)).ok());
  runner.AwaitHeld();
  for (uint64_t id = 2; id < 4; ++id) ASSERT_TRUE(engine.Submit(Ask(sink, id, 5, 40)).ok());
  EXPECT_EQ(engine.Submit(Ask(sink, 9, 5, 5)).code(), absl::StatusCode::kResourceExhausted);
  for (uint64_t id = 4; id < 6; ++id) EXPECT_EQ(continued(id), absl::StatusCode::kOk);
  EXPECT_EQ(continued(9), absl::StatusCode::kResourceExhausted);
  runner.Release();
  for (uint64_t id = 1; id < 6; ++id) sink->AwaitEnd(id, 1);
}

TEST(EngineTest, AnIdIsTakenUntilItsRequestEnds) {
  FakeRunner runner({});
  auto sink = std::make_shared<CollectingSink>(), other = std::make_shared<CollectingSink>();
  Engine engine(SmallEngine(), runner, nullptr);
  runner.Hold();
  ASSERT_TRUE(engine.Submit(Ask(sink, 1, 5, 5)).ok());
  EXPECT_EQ(engine.Submit(Ask(sink, 1, 5, 5)).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(engine.Submit(Ask(other, 1, 5, 5)).ok());
  runner.Release();
  sink->AwaitEnd(1, 1);
  other->AwaitEnd(1, 1);
}

TEST(EngineTest, DrainFinishesWhatRunsAndRefusesWhatComes) {
  const FakeRunnerOptions model;
  FakeRunner runner(model);
  auto sink = std::make_shared<CollectingSink>();
  Engine engine(SmallEngine(), runner, nullptr);
  runner.Hold();
  const EngineRequest running = Ask(sink, 1, 5, 50);
  ASSERT_TRUE(engine.Submit(running).ok());
  std::atomic<int> calls = 0;
  absl::Notification drained;
  engine.BeginDrain([&] {
    ++calls;
    drained.Notify();
  });
  EXPECT_EQ(engine.Submit(Ask(sink, 2, 5, 5)).code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(engine.Snapshot().draining);
  EXPECT_EQ(calls, 0);
  runner.Release();
  drained.WaitForNotification();
  EXPECT_EQ(Difference(sink->Of(1), Expected(running, 0, SmallEngine(), model)), "");
  EXPECT_EQ(calls, 1);
}

TEST(EngineTest, AnIdleEngineDrainsAtOnceAndUsesNoCpu) {
  FakeRunner runner({});
  Engine engine(SmallEngine(), runner, nullptr);
  timespec before, after;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  absl::SleepFor(absl::Milliseconds(100));  // what is measured, not a synchronisation
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  EXPECT_LT(absl::DurationFromTimespec(after) - absl::DurationFromTimespec(before),
            absl::Milliseconds(20));
  EXPECT_EQ(runner.waits(), 0);
  absl::Notification drained;
  engine.BeginDrain([&] { drained.Notify(); });
  drained.WaitForNotification();
}

TEST(EngineTest, TheEndOfTheEngineCancelsWhatIsLeft) {
  FakeRunner runner({.waits = 1});
  auto sink = std::make_shared<CollectingSink>();
  {
    Engine engine(SmallEngine(), runner, nullptr);
    runner.Hold();  // none is to end by itself
    for (uint64_t id = 1; id < 20; ++id) ASSERT_TRUE(engine.Submit(Ask(sink, id, 50, 400)).ok());
  }
  for (uint64_t id = 1; id < 20; ++id) {
    EXPECT_THAT(sink->Of(id).finishes, ElementsAre(Finish::kCancelled));
  }
}

// A step is never damaged by one of its sequences.
TEST(EngineTest, LostRowsAndNanLogitsEndTheirSequenceAlone) {
  FakeRunnerOptions model;
  model.lose_row = [](const std::vector<int32_t>& t) { return t[0] == 50 && t.size() == 25; };
  model.nan_logits = [](const std::vector<int32_t>& t) { return t[0] == 51 && t.size() == 26; };
  FakeRunner runner(model);
  auto sink = std::make_shared<CollectingSink>();
  Engine engine(SmallEngine(), runner, nullptr);
  std::vector<EngineRequest> requests;
  for (uint64_t id = 1; id <= 8; ++id) {
    requests.push_back(Ask(sink, id, 20, 30));
    requests.back().prompt[0] = id == 3 ? 50 : id == 6 ? 51 : 1;
    ASSERT_TRUE(engine.Submit(requests.back()).ok());
  }
  for (const EngineRequest& request : requests) sink->AwaitEnd(request.request, 1);
  const Output lost = sink->Of(3), nan = sink->Of(6);
  EXPECT_EQ(lost.error.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(lost.tokens.size(), 5u);
  EXPECT_THAT(ToStd(lost.error.message()), HasSubstr("\"trace-3\", choice 0"));
  EXPECT_EQ(nan.error.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(nan.tokens.size(), 6u);
  EXPECT_THAT(ToStd(nan.error.message()),
              HasSubstr("\"trace-6\", choice 0, position 26: a logit is NaN"));
  for (const EngineRequest& request : requests) {
    if (request.request == 3 || request.request == 6) continue;
    EXPECT_EQ(Difference(sink->Of(request.request), Expected(request, 0, SmallEngine(), model)),
              "");
  }
  EXPECT_THAT(runner.errors(), IsEmpty());
}

TEST(EngineTest, PromptLogprobsAreThoseOfThePromptsTokens) {
  const FakeRunnerOptions model;
  FakeRunner runner(model);
  auto sink = std::make_shared<CollectingSink>();
  EngineOptions options = SmallEngine();
  options.max_logit_rows = 6;  // in several chunks
  Engine engine(options, runner, nullptr);
  EngineRequest request = Ask(sink, 1, 40, 3);
  request.prompt_logprobs = true;
  request.top_logprobs = 2;
  ASSERT_TRUE(engine.Submit(request).ok());
  sink->AwaitEnd(1, 1);
  const Output got = sink->Of(1);
  Sampler sampler(model.vocab);
  ASSERT_EQ(got.prompt_logprobs.size(), 39u);
  for (int i = 0; i < 39; ++i) {
    const std::vector<int32_t> before(request.prompt.begin(), request.prompt.begin() + i + 1);
    const auto want =
        sampler.Score(FakeRunner::Logits(before, model.vocab), request.prompt[i + 1], 2);
    EXPECT_EQ(got.prompt_logprobs[i].position, i + 1);
    EXPECT_EQ(got.prompt_logprobs[i].logprob, want->logprob);
    ASSERT_EQ(got.prompt_logprobs[i].top.size(), 2u);
    EXPECT_EQ(got.prompt_logprobs[i].top[0].id, want->top[0].id);
  }
}

class CountingObserver : public EngineObserver {
 public:
  void OnStep(const StepReport& step) override {
    all_rows += step.rows, prefill += step.prefill_rows;
  }
  void OnQueued(absl::Duration) override { ++queued; }
  void OnFirstToken(absl::Duration) override { ++first; }
  void OnToken(absl::Duration) override { ++later; }
  void OnPreempted() override { ++preempted; }
  void OnFinished(Finish, int prompt_tokens, int output_tokens) override {
    ++finished, prompt += prompt_tokens, output += output_tokens;
  }
  // Read after the engine has ended.
  int64_t all_rows = 0, prefill = 0;
  int queued = 0, first = 0, later = 0, preempted = 0, finished = 0, prompt = 0, output = 0;
};

TEST(EngineTest, TheObserverCountsWhatHappened) {
  FakeRunner runner({.kv_blocks = 5});
  CountingObserver observer;
  auto sink = std::make_shared<CollectingSink>();
  {
    Engine engine(Cut(64, 5), runner, &observer);
    for (uint64_t id = 1; id <= 6; ++id) {
      EngineRequest request = Ask(sink, id, 30, 60);
      request.n = 2;
      ASSERT_TRUE(engine.Submit(request).ok());
    }
    for (uint64_t id = 1; id <= 6; ++id) sink->AwaitEnd(id, 2);
  }
  EXPECT_EQ(observer.queued, 6);
  EXPECT_EQ(observer.first, 12);
  EXPECT_EQ(observer.later, 12 * 59);
  EXPECT_EQ(observer.finished, 12);
  EXPECT_EQ(observer.prompt, 6 * 30);
  EXPECT_EQ(observer.output, 12 * 60);
  EXPECT_GT(observer.preempted, 0);
  EXPECT_EQ(observer.all_rows, runner.rows());
  EXPECT_GT(observer.all_rows, 12 * 89);  // preemption computed some twice
  EXPECT_GE(observer.prefill, 12 * 30);
}

}  // namespace
}  // namespace switchyard::router
