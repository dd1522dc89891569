// A StepLoop over a FakeRunner under virtual time, driven by the test.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "router/loop/step_loop.h"
#include "tests/unit/router/loop/engine_harness.h"

namespace switchyard::router {

class StepLoopTest : public testing::Test {
 protected:
  explicit StepLoopTest(EngineOptions options = {.max_model_len = 256, .kv_blocks = 8},
                        int window = 0, bool alternate = false)
      : options_(std::move(options)),
        model_({.kv_blocks = options_.kv_blocks,
                .window = window,
                .alternate = alternate,
                .degrade_row = [this](const std::vector<int32_t>& tokens) {
                  return degrade_ ? degrade_(tokens) : LostExperts::kFail;
                }}) {}

  EngineRequest Ask(uint64_t id, int prompt_len, int max_tokens, int priority = 0) {
    EngineRequest request;
    request.request = id;
    request.trace_id = "trace-" + std::to_string(id);
    request.prompt.assign(prompt_len, static_cast<int32_t>(id % 60));
    request.max_tokens = max_tokens;
    request.priority = priority;
    request.sampling.ignore_eos = true;
    request.sink = sink_;
    return request;
  }

  bool Step() {
    now_ += absl::Milliseconds(10);
    if (!loop_.BeginStep(now_)) return false;
    while (loop_.Poll() == ModelRunner::Progress::kWaiting) {
    }
    loop_.FinishStep(now_);
    outbox_.Flush(loop_.steps());
    return true;
  }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  EngineOptions options_;
  std::function<LostExperts(const std::vector<int32_t>&)> degrade_;  // see FakeRunnerOptions
  const FakeRunnerOptions model_;
  FakeRunner runner_{model_};
  EngineObserver observer_;
  Outbox outbox_;
  StepLoop loop_{options_, runner_, observer_, outbox_};
  std::shared_ptr<CollectingSink> sink_ = std::make_shared<CollectingSink>();
};

}  // namespace switchyard::router
