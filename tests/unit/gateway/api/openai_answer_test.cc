// Chunks of a generation in, OpenAI's JSON out: no sockets, no model.
#include "gateway/api/openai_answer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

}  // namespace
}  // namespace switchyard::gateway
