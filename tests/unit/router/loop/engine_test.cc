#include "router/loop/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <random>

#include "absl/synchronization/notification.h"
#include "services/base/text.h"
#include "tests/unit/router/loop/engine_harness.h"

namespace switchyard::router {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

EngineOptions SmallEngine() { return {.max_model_len = 512, .kv_blocks = 64}; }

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

EngineOptions Cut(int batch, int64_t blocks, int running = 256, int logits = 256) {
  return {.max_model_len = 512,
          .kv_blocks = blocks,
          .max_batch_tokens = batch,
          .max_running = running,
          .max_logit_rows = logits};
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, EngineShapeTest,
    testing::Values(Shape{"Roomy", Cut(2048, 256)}, Shape{"OneRow", Cut(1, 256)},
                    Shape{"SevenRows", Cut(7, 256)}, Shape{"SixtyFourRows", Cut(64, 256)},
                    Shape{"TinyCache", Cut(64, 6)}, Shape{"TinyCacheSevenRows", Cut(7, 5)},
                    Shape{"TinyCacheOneRow", Cut(1, 5)}, Shape{"OneRunning", Cut(64, 8, 1)},
                    Shape{"OneLogitRow", Cut(64, 12, 8, 1)}, Shape{"Waiting", Cut(64, 8), 3}),
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

}  // namespace
}  // namespace switchyard::router
