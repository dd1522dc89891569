#include "router/loop/request_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>

#include "services/base/text.h"
#include "tests/unit/router/loop/engine_harness.h"

namespace switchyard::router {
namespace {

using testing::HasSubstr;

const EngineOptions kOptions = {.max_model_len = 100, .kv_blocks = 3};

std::string Refusal(const std::function<void(EngineRequest&)>& change) {
  EngineRequest request;
  request.prompt = {1, 2, 3};
  request.max_tokens = 10;
  request.sink = std::make_shared<CollectingSink>();
  change(request);
  ModelSpec spec;
  spec.vocab = 61;
  const absl::Status status = CheckRequest(request, kOptions, spec);
  EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kInvalidArgument);
  return std::string(ToStd(status.message()));
}

TEST(RequestCheckTest, AcceptsTheEdges) {
  EXPECT_EQ(Refusal([](EngineRequest&) {}), "");
  EXPECT_EQ(Refusal([](EngineRequest& r) {
              r.sampling = {.temperature = 2,
                            .top_k = 1000000,
                            .top_p = 1,
                            .min_p = 1,
                            .repetition_penalty = 0.1f,
                            .presence_penalty = -2,
                            .frequency_penalty = 2,
                            .logit_bias = {{60, -100}, {0, 100}}};
              r.min_tokens = 10, r.n = 128, r.top_logprobs = 20, r.stop_token_ids = {60};
            }),
            "");
  // 97 tokens of which 96 are computed: three blocks.
  EXPECT_EQ(Refusal([](EngineRequest& r) { r.max_tokens = 94; }), "");
}

TEST(RequestCheckTest, NamesTheFieldAndBothNumbers) {
  const auto expect = [](const std::function<void(EngineRequest&)>& change,
                         std::initializer_list<const char*> parts) {
    const std::string message = Refusal(change);
    for (const char* part : parts) EXPECT_THAT(message, HasSubstr(part));
  };
  expect([](EngineRequest& r) { r.sink = nullptr; }, {"sink"});
  expect([](EngineRequest& r) { r.prompt.clear(); }, {"prompt is empty"});
  expect([](EngineRequest& r) { r.prompt.resize(100); }, {"prompt has 100", "length of 100"});
  expect([](EngineRequest& r) { r.max_tokens = 95; }, {"need 4 KV blocks", "has 3"});
  expect([](EngineRequest& r) { r.max_tokens = 2147483647; }, {"need 4 KV blocks", "has 3"});
  expect([](EngineRequest& r) { r.max_tokens = 0; }, {"max_tokens is 0"});
  expect([](EngineRequest& r) { r.min_tokens = 11; }, {"min_tokens is 11", "0 to 10"});
  expect([](EngineRequest& r) { r.prompt[1] = 61; }, {"prompt", "id 61", "vocabulary of 61"});
  expect([](EngineRequest& r) { r.prompt[1] = -1; }, {"prompt", "id -1"});
  expect([](EngineRequest& r) { r.stop_token_ids = {61}; }, {"stop_token_ids", "61"});
  expect([](EngineRequest& r) { r.n = 0; }, {"n is 0", "1 to 128"});
  expect([](EngineRequest& r) { r.n = 129; }, {"n is 129"});
  expect([](EngineRequest& r) { r.top_logprobs = 21; }, {"top_logprobs is 21", "-1 to 20"});
  expect([](EngineRequest& r) { r.sampling.temperature = -1; }, {"temperature is -1"});
  expect([](EngineRequest& r) { r.sampling.temperature = std::nanf(""); }, {"temperature is nan"});
  expect([](EngineRequest& r) { r.sampling.top_k = -1; }, {"top_k is -1"});
  expect([](EngineRequest& r) { r.sampling.top_p = 0; }, {"top_p is 0"});
  expect([](EngineRequest& r) { r.sampling.top_p = std::nanf(""); }, {"top_p is nan"});
  expect([](EngineRequest& r) { r.sampling.min_p = 1.5f; }, {"min_p is 1.5"});
  expect([](EngineRequest& r) { r.sampling.repetition_penalty = 0; }, {"repetition_penalty is 0"});
  expect([](EngineRequest& r) { r.sampling.presence_penalty = 3; }, {"presence_penalty is 3"});
  expect([](EngineRequest& r) { r.sampling.frequency_penalty = -3; }, {"frequency_penalty is -3"});
  expect([](EngineRequest& r) { r.sampling.logit_bias = {{61, 1}}; }, {"logit_bias", "61"});
  expect([](EngineRequest& r) { r.sampling.logit_bias = {{1, 101}}; }, {"logit_bias is 101"});
}

TEST(RequestCheckTest, WhatALostRouterMadeMustFitTheRequest) {
  const auto refusal = [](const std::function<void(EngineRequest&)>& change) {
    return Refusal([&](EngineRequest& r) {  // 3 tokens of prompt, 10 of output
      r.n = 2;
      r.choices = {{.tokens = {4, 5}}, {.tokens = std::vector<int32_t>(10, 7), .ended = true}};
      change(r);
    });
  };
  EXPECT_EQ(refusal([](EngineRequest& r) {
              r.choices[0].tokens.resize(9);
              r.choices[0].routing_until = 11, r.prompt_logprobs_until = 2;
            }),
            "");
  const auto expect = [&](const std::function<void(EngineRequest&)>& change, const char* part) {
    EXPECT_THAT(refusal(change), HasSubstr(part));
  };
  expect([](EngineRequest& r) { r.choices.pop_back(); }, "choices has 1 entries");
  expect([](EngineRequest& r) { r.choices[0].tokens = {61}; }, "id 61");
  expect([](EngineRequest& r) { r.choices[0].tokens.resize(10); }, "choices.tokens has 10 ids");
  expect([](EngineRequest& r) { r.choices[0].ended = true; }, "all of them have ended");
  expect([](EngineRequest& r) { r.choices[0].routing_until = 5; }, "routing_until is 5");
  expect([](EngineRequest& r) { r.choices[0].routing_until = -1; }, "routing_until is -1");
  expect([](EngineRequest& r) { r.prompt_logprobs_until = 3; }, "prompt_logprobs_until is 3");
}

TEST(RequestCheckTest, OptionsAreValidated) {
  EXPECT_TRUE(kOptions.Validate().ok());
  EngineOptions options = kOptions;
  options.max_batch_tokens = 0;
  EXPECT_THAT(ToStd(options.Validate().message()), HasSubstr("max_batch_tokens is 0"));
  options = kOptions, options.kv_blocks = 0;
  EXPECT_THAT(ToStd(options.Validate().message()), HasSubstr("kv_blocks"));
}

}  // namespace
}  // namespace switchyard::router
