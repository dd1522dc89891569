// Chunks of a generation in, OpenAI's JSON out: no sockets, no model.
#include "gateway/api/openai_answer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "nlohmann/json.hpp"

namespace switchyard::gateway {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class Exchange final : public HttpExchange {
 public:
  void Respond(HttpResponse response) override { answer = std::move(response); }
  void StartStream(HttpResponse head) override { answer = std::move(head); }
  bool Write(std::string_view data) override {
    answer.body += data;
    return true;
  }
  void End() override {}
  void OnGone(std::function<void()>) override {}

  HttpResponse answer;
};

class OpenAiAnswerTest : public ::testing::Test {
 protected:
  // The answer to one prompt whose only chunk is `chunk`.
  json Answer(const v1::GenerateResponse& chunk) {
    auto answer =
        std::make_shared<OpenAiAnswer>(format_, exchange_, [this](int status) { ended_ = status; });
    const auto sink = answer->Sink(0);
    if (sink->OnChunk(chunk)) sink->OnEnd(absl::OkStatus(), 0);
    return json::parse(exchange_->answer.body, nullptr, false);
  }

  AnswerFormat format_;
  std::shared_ptr<Exchange> exchange_ = std::make_shared<Exchange>();
  int ended_ = 0;
};

TEST_F(OpenAiAnswerTest, RefusesATooLargeAnswerForGoodAndNamesTheLimit) {
  format_.whole_bytes_max = 2 << 20;
  v1::GenerateResponse chunk;
  chunk.add_choices()->set_text(std::string(3 << 20, 'x'));
  const json error = Answer(chunk)["error"];
  EXPECT_EQ(exchange_->answer.status, 400);  // not 429, which clients try again
  EXPECT_EQ(ended_, 400);
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("2 MiB"));
}

TEST_F(OpenAiAnswerTest, StopReasonsAreStringsOrTokenIds) {
  v1::GenerateResponse chunk;
  v1::Choice* choice = chunk.add_choices();
  choice->set_finish_reason(v1::FINISH_REASON_STOP);
  EXPECT_FALSE(Answer(chunk)["choices"][0].contains("stop_reason"));
  choice->set_stop_reason("42");
  format_.stops = {"42"};
  EXPECT_EQ(Answer(chunk)["choices"][0]["stop_reason"], "42");
  format_.stops = {"4"};
  format_.stop_token_ids = {7, 42};
  EXPECT_EQ(Answer(chunk)["choices"][0]["stop_reason"], 42);
}

TEST_F(OpenAiAnswerTest, SaysWhatReplacedExperts) {
  v1::GenerateResponse chunk;
  v1::Choice* choice = chunk.add_choices();
  choice->set_finish_reason(v1::FINISH_REASON_STOP);
  for (const bool stream : {false, true}) {
    format_.stream = stream;
    const auto said = [&](v1::Degraded how) {
      choice->set_degraded(how);
      Answer(chunk);
      const std::string& body = exchange_->answer.body;
      const size_t begin = body.find('{');
      const json event = json::parse(body.substr(begin, body.find('\n') - begin));
      return event["choices"][0].value("degraded", "nothing");
    };
    EXPECT_EQ(said(v1::DEGRADED_NO), "nothing");
    EXPECT_EQ(said(v1::DEGRADED_RENORMALISE), "renormalise");
    EXPECT_EQ(said(v1::DEGRADED_NEXT_BEST), "next-best");
  }
}

TEST_F(OpenAiAnswerTest, TextOffsetsLeaveHiddenTokensOut) {
  const auto tokenizer =
      Tokenizer::Load(std::string(std::getenv("SWITCHYARD_SOURCE_DIR")) + "/models/tiny-r1");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  format_.logprobs = true;
  format_.tokenizer = tokenizer->get();
  ASSERT_TRUE((*tokenizer)->IsSpecial(0));
  v1::GenerateResponse chunk;
  v1::Choice* choice = chunk.add_choices();
  for (const char* token : {"<s>", "né", "<s>", "x", "y"}) {
    v1::TokenLogprob* entry = choice->add_logprobs();
    entry->set_id(*token == '<' ? 0 : 100);
    entry->set_token(token);
  }
  EXPECT_EQ(Answer(chunk)["choices"][0]["logprobs"]["text_offset"], json({0, 0, 2, 2, 3}));
  format_.skip_special = false;
  EXPECT_EQ(Answer(chunk)["choices"][0]["logprobs"]["text_offset"], json({0, 3, 5, 8, 9}));
}

TEST_F(OpenAiAnswerTest, TokensThatLookAlikeAreOneKeyWithTheBest) {
  format_.logprobs = true;
  v1::GenerateResponse chunk;
  v1::TokenLogprob* entry = chunk.add_choices()->add_logprobs();
  entry->set_token("a");
  for (const auto& [token, logprob] :
       {std::pair{"\x80", -3.0f}, std::pair{"b", -2.0f}, std::pair{"\x81", -1.0f}}) {
    v1::TokenLogprob* top = entry->add_top();
    top->set_token(token);
    top->set_logprob(logprob);
  }
  const json all = Answer(chunk)["choices"][0]["logprobs"]["top_logprobs"][0];
  EXPECT_EQ(all, json({{"\uFFFD", -1.0}, {"b", -2.0}}));
  const std::string& body = exchange_->answer.body;
  EXPECT_EQ(body.find("\xEF\xBF\xBD"), body.rfind("\xEF\xBF\xBD")) << body;
}

}  // namespace
}  // namespace switchyard::gateway
