// A request that another router began goes on as if nothing had happened, wherever it was cut.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "router/loop/request_check.h"
#include "router/loop/step_loop.h"
#include "tests/unit/router/loop/engine_harness.h"

namespace switchyard::router {
namespace {

class EventLog : public TokenSink {
 public:
  void OnStep(uint64_t, std::vector<TokenEvent> more) override {
    for (TokenEvent& event : more) events.push_back(std::move(event));
  }
  std::vector<TokenEvent> events;
};

void RunAlone(EngineRequest request, std::shared_ptr<TokenSink> sink,
              const EngineOptions& options) {
  FakeRunner runner({.kv_blocks = options.kv_blocks});
  EngineObserver observer;
  Outbox outbox;
  StepLoop loop(options, runner, observer, outbox);
  request.sink = std::move(sink);
  const absl::Status valid = CheckRequest(request, options, runner.spec());
  ASSERT_TRUE(valid.ok()) << valid;
  const absl::Time now = absl::FromUnixSeconds(1000);
  loop.Add(std::move(request), now);
  while (loop.BeginStep(now)) {
    while (loop.Poll() == ModelRunner::Progress::kWaiting) {
    }
    loop.FinishStep(now);
    outbox.Flush(loop.steps());
  }
  EXPECT_EQ(runner.errors(), std::vector<std::string>{});
}

// What a gateway that has seen these events asks of the next router.
EngineRequest ContinuedBehind(EngineRequest request, const std::vector<TokenEvent>& seen) {
  request.choices.resize(static_cast<size_t>(request.n));
  const int width = 4;  // of a FakeRunner's routing
  for (const TokenEvent& event : seen) {
    ChoiceSoFar& choice = request.choices[static_cast<size_t>(event.choice)];
    if (event.index >= 0) choice.tokens.push_back(event.id);
    if (event.finish != Finish::kNone) choice.ended = true;
    if (!event.routed_experts.empty()) {
      choice.routing_until =
          event.routing_first_position + static_cast<int>(event.routed_experts.size()) / width;
    }
    for (const PromptLogprob& p : event.prompt_logprobs) request.prompt_logprobs_until = p.position;
  }
  ++request.attempt;
  return request;
}

struct Case {
  std::string name;
  bool routing = false, sampled = true;
  EngineOptions before = SmallEngine(), after = SmallEngine();
};

class ContinueTest : public testing::TestWithParam<Case> {
 protected:
  EngineRequest Ask() const {
    EngineRequest request;
    request.request = 7;
    request.trace_id = "cut";
    for (int i = 0; i < 45; ++i) request.prompt.push_back(i * (i + 5) % 60 + 1);
    request.max_tokens = 26;
    request.min_tokens = 9;
    request.n = 3;
    request.stop_token_ids = {5, 11, 23, 41};  // some choices end earlier than others
    request.top_logprobs = 2;
    request.prompt_logprobs = true;
    request.return_routed_experts = GetParam().routing;
    request.sampling.seed = 99;
    if (GetParam().sampled) {
      request.sampling.temperature = 0.9f;
      request.sampling.top_p = 0.95f;
      request.sampling.frequency_penalty = 0.3f;
      request.sampling.presence_penalty = 0.2f;
      request.sampling.repetition_penalty = 1.1f;
      request.sampling.logit_bias = {{3, 0.5f}, {17, -2.0f}};
    }
    return request;
  }
};

void ExpectEqual(const Output& got, const Output& whole, const std::string& where) {
  EXPECT_EQ(Difference(got, whole), "") << where;
  ASSERT_EQ(got.tops.size(), whole.tops.size()) << where;
  for (size_t i = 0; i < got.tops.size(); ++i) {
    ASSERT_EQ(got.tops[i].size(), whole.tops[i].size()) << where;
    for (size_t k = 0; k < got.tops[i].size(); ++k) {
      EXPECT_EQ(got.tops[i][k].id, whole.tops[i][k].id) << where;
      EXPECT_EQ(got.tops[i][k].logprob, whole.tops[i][k].logprob) << where;
    }
  }
  ASSERT_EQ(got.prompt_logprobs.size(), whole.prompt_logprobs.size()) << where;
  for (size_t i = 0; i < got.prompt_logprobs.size(); ++i) {
    EXPECT_EQ(got.prompt_logprobs[i].position, whole.prompt_logprobs[i].position) << where;
    EXPECT_EQ(got.prompt_logprobs[i].logprob, whole.prompt_logprobs[i].logprob) << where;
  }
}

TEST_P(ContinueTest, EveryCutGivesTheSameTokensOnce) {
  const EngineRequest request = Ask();
  auto log = std::make_shared<EventLog>();
  RunAlone(request, log, GetParam().before);
  CollectingSink whole;
  whole.OnStep(0, log->events);
  const size_t events = log->events.size();
  ASSERT_GT(events, 30u);
  bool ended_alone = false;  // a cut where one choice was over and others were not
  for (size_t cut = 0; cut < events; ++cut) {
    const std::vector<TokenEvent> seen(log->events.begin(),
                                       log->events.begin() + static_cast<std::ptrdiff_t>(cut));
    const EngineRequest continued = ContinuedBehind(request, seen);
    for (const ChoiceSoFar& choice : continued.choices) ended_alone |= choice.ended;
    auto sink = std::make_shared<CollectingSink>();
    sink->OnStep(0, seen);
    RunAlone(continued, sink, GetParam().after);
    for (int c = 0; c < request.n; ++c) {
      ExpectEqual(sink->Of(7, c), whole.Of(7, c),
                  "cut behind event " + std::to_string(cut) + ", choice " + std::to_string(c));
    }
  }
  EXPECT_TRUE(ended_alone);
}

EngineOptions NoCache(EngineOptions options) {
  options.prefix_cache = false;
  return options;
}

INSTANTIATE_TEST_SUITE_P(
    Cases, ContinueTest,
    testing::Values(Case{.name = "Sampled"}, Case{.name = "Greedy", .sampled = false},
                    Case{.name = "Routed", .routing = true},
                    Case{.name = "ElsewhereInChunks", .after = Cut(7, 64)},
                    Case{.name = "ElsewhereWithoutCache", .after = NoCache(SmallEngine())},
                    Case{.name = "ElsewhereOneAtATime", .after = Cut(64, 5, 1)},
                    Case{.name = "RoutedInChunks", .routing = true, .before = Cut(7, 64)},
                    Case{.name = "Guessing",
                         .before = Speculating(SmallEngine(), 3),
                         .after = Speculating(SmallEngine(), 4)}),
    [](const auto& info) { return info.param.name; });

TEST(ContinueOrderTest, WhatAnotherRouterBeganGoesAheadOfWhatIsNewHere) {
  const EngineOptions options = Cut(64, 64, /*running=*/1);
  FakeRunner runner({.kv_blocks = options.kv_blocks});
  EngineObserver observer;
  Outbox outbox;
  StepLoop loop(options, runner, observer, outbox);
  auto log = std::make_shared<EventLog>();
  for (uint64_t id = 1; id <= 4; ++id) {
    EngineRequest request;
    request.request = id;
    request.prompt = {3, 4, 5};
    request.max_tokens = 4;
    request.sampling.ignore_eos = true;
    request.sink = log;
    if (id >= 3) request.choices = {{.tokens = {7, 8}}};
    loop.Add(std::move(request), absl::FromUnixSeconds(1));
  }
  while (loop.BeginStep(absl::FromUnixSeconds(1))) {
    while (loop.Poll() == ModelRunner::Progress::kWaiting) {
    }
    loop.FinishStep(absl::FromUnixSeconds(1));
    outbox.Flush(loop.steps());
  }
  std::vector<uint64_t> ended;
  for (const TokenEvent& event : log->events) {
    if (event.finish != Finish::kNone) ended.push_back(event.request);
  }
  EXPECT_EQ(ended, (std::vector<uint64_t>{3, 4, 1, 2}));
}

// Choices of a long prompt compute it once, also where they go on.
TEST(ContinueShareTest, ThePromptIsComputedOnceForAllChoices) {
  EngineRequest request;
  request.request = 1;
  request.prompt.assign(320, 7);
  request.max_tokens = 40;
  request.n = 4;
  request.sampling.ignore_eos = true;
  request.choices.resize(4, {.tokens = {1, 2, 3}});
  struct Rows : EngineObserver {
    void OnStep(const StepReport& step) override { rows += step.rows; }
    void OnFinished(Finish, int, int made) override { outputs += made; }
    int64_t rows = 0;
    int outputs = 0;
  } counted;
  FakeRunner runner({.kv_blocks = 64});
  Outbox outbox;
  const EngineOptions options = SmallEngine();
  StepLoop loop(options, runner, counted, outbox);
  request.sink = std::make_shared<EventLog>();
  loop.Add(request, absl::FromUnixSeconds(1));
  while (loop.BeginStep(absl::FromUnixSeconds(1))) {
    while (loop.Poll() == ModelRunner::Progress::kWaiting) {
    }
    loop.FinishStep(absl::FromUnixSeconds(1));
  }
  EXPECT_EQ(counted.outputs, 4 * 37);  // those of the other router are its own
  EXPECT_LT(counted.rows, 320 + 4 * (40 + kBlockTokens));
}

}  // namespace
}  // namespace switchyard::router
