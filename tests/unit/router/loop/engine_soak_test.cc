// Random traffic over a cache that is too small: every choice gives the tokens that it must, and at
// the end every block is free. Five fixed seeds and five fresh ones, which are printed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <random>
#include <vector>

#include "absl/synchronization/notification.h"
#include "router/kv/kv_tables.h"
#include "router/loop/engine.h"
#include "tests/unit/router/loop/engine_harness.h"

namespace switchyard::router {
namespace {

// Random requests of few prefixes, cancels and a vanishing sink, over a cache that is too small.
void Soak(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto below = [&](int n) { return static_cast<int>(random() % n); };
  // All layers see everything, or a window, or every other one that.
  const int window = below(3) == 0 ? 0 : 1 + below(60);
  const bool alternate = window > 0 && below(2) == 0;
  const std::vector<int> windows = alternate ? std::vector{0, window} : std::vector{window};
  const int64_t least = LeastBlocks(windows, 189);  // of the requests below
  EngineOptions options = Cut(1 + below(80), least + below(20), 1 + below(20), 1 + below(20));
  options.prefix_cache = below(4) != 0;
  if (below(2)) options = Speculating(options, 1 + below(5));
  const FakeRunnerOptions model{
      .kv_blocks = options.kv_blocks, .window = window, .alternate = alternate, .waits = below(3)};
  FakeRunner runner(model);
  std::vector<EngineRequest> requests;
  auto sink = std::make_shared<CollectingSink>(), fleeting = std::make_shared<CollectingSink>();
  Engine engine(options, runner, nullptr);
  std::vector<uint64_t> cancelled;
  for (uint64_t id = 1; id <= 60; ++id) {
    EngineRequest request;
    request.request = id;
    request.sink = id % 5 == 0 ? fleeting : sink;
    request.prompt.assign(below(70), below(3));
    for (int i = 1 + below(40); i > 0; --i) request.prompt.push_back(below(model.vocab));
    request.cache_salt.assign(below(2), 's');
    request.max_tokens = 1 + below(80);
    request.sampling.temperature = below(2) ? 0 : 0.8f;
    request.sampling.repetition_penalty = below(3) ? 1 : 1.2f;
    request.sampling.seed = random();
    request.sampling.ignore_eos = below(2) == 0;
    request.n = 1 + below(3);
    request.priority = below(3);
    request.return_routed_experts = below(3) == 0;
    request.prompt_logprobs = below(4) == 0;
    request.top_logprobs = below(3) - 1;
    ASSERT_TRUE(engine.Submit(request).ok());
    requests.push_back(request);
    if (below(4) == 0) sink->AwaitTokens(id % 5 == 0 ? id - 1 : id, 0, below(40));
    if (below(4) == 0) cancelled.push_back(1 + below(static_cast<int>(id)));
    if (!cancelled.empty() && below(2)) engine.Cancel(sink.get(), cancelled.back());
    if (id == 45) engine.CancelAll(fleeting.get());
  }
  engine.CancelAll(fleeting.get());
  absl::Notification drained;
  engine.BeginDrain([&] { drained.Notify(); });
  drained.WaitForNotification();
  for (const EngineRequest& request : requests) {
    if (request.sink != sink) continue;
    for (int choice = 0; choice < request.n; ++choice) {
      const Output got = sink->Of(request.request, choice);
      Output want = Expected(request, choice, options, model);
      if (got.finishes == std::vector{Finish::kCancelled}) {
        ASSERT_THAT(cancelled, testing::Contains(request.request));
        ASSERT_TRUE(got.in_order);
        want.tokens.resize(std::min(want.tokens.size(), got.tokens.size()));
        ASSERT_EQ(got.tokens, want.tokens) << "request " << request.request;
      } else {
        ASSERT_EQ(Difference(got, want), "") << "request " << request.request << "/" << choice;
      }
    }
  }
  ASSERT_EQ(engine.Snapshot().kv_blocks_used, 0);
  ASSERT_THAT(runner.errors(), testing::IsEmpty());
}

TEST(EngineSoakTest, SoaksWithoutLosingABlockOrAToken) {
  std::random_device device;
  const uint64_t fresh = device();
  std::printf("fresh seed %llu\n", static_cast<unsigned long long>(fresh));
  for (uint64_t i = 0; i < 5; ++i) {
    for (uint64_t seed : {i, fresh + i}) {
      SCOPED_TRACE(testing::Message() << "seed " << seed);
      Soak(seed);
      if (HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace switchyard::router
