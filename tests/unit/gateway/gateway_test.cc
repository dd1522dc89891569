// A whole gateway on real sockets, HTTP and gRPC, before a router whose tokens are scripted.
#include "gateway/gateway.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "nlohmann/json.hpp"
#include "services/rpc/channel.h"
#include "tests/support/fake_router.h"
#include "tests/support/raw_client.h"
#include "tests/support/tiny_r1.h"

namespace switchyard::gateway {
namespace {

using nlohmann::json;
using ::switchyard::testing::BodyOf;
using ::switchyard::testing::FakeRouter;
using ::switchyard::testing::IdOf;
using ::switchyard::testing::Ids;
using ::switchyard::testing::RawClient;
using ::switchyard::testing::StatusOf;
using ::switchyard::testing::Submit;
using ::switchyard::testing::TinyR1;
using ::switchyard::testing::TinyR1Dir;
using ::switchyard::testing::Token;
using ::switchyard::testing::TokensOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(20);

class GatewayTest : public ::testing::Test {
 protected:
  GatewayTest() : router_(TinyR1().text_fingerprint()) {
    options_.model_dir = TinyR1Dir();
    options_.routers = {router_.address()};
    options_.http.address = "127.0.0.1:0";
    options_.grpc_address = "127.0.0.1:0";
    // "thinking", "</think>", "The answer."
    std::vector<int32_t> ids = Ids("hm");
    ids.push_back(IdOf("</think>"));
    for (const int32_t id : Ids("It is \"4\".")) ids.push_back(id);
    ids.push_back(1);
    router_.SetScript([ids](const Submit& submit) {
      std::vector<Token> all;
      for (int choice = 0; choice < submit.n(); ++choice) {
        for (Token& token : TokensOf(ids, Token::STOP, choice)) all.push_back(std::move(token));
      }
      return all;
    });
  }

  void Start() {
    metrics_ = std::make_shared<telemetry::Metrics>();
    auto gateway = Gateway::Create(
        options_, GatewayFiles::Load(options_).value(),
        [](const std::string& a) { return rpc::Connect(a, {}).value(); }, metrics_);
    ASSERT_TRUE(gateway.ok()) << gateway.status();
    gateway_ = std::move(*gateway);
    WaitUntil("");
  }
  // Readiness comes by the router's stream: polled, as a probe polls it.
  void WaitUntil(const std::string& missing) {
    const absl::Time limit = absl::Now() + kPatience;
    while (gateway_->Missing().find(missing) == std::string::npos ||
           gateway_->Missing().empty() != missing.empty()) {
      ASSERT_LT(absl::Now(), limit) << gateway_->Missing();
      absl::SleepFor(absl::Milliseconds(2));
    }
  }

  std::string Ask(const std::string& method, const std::string& path, const std::string& body = "",
                  const std::string& headers = "") {
    RawClient client(gateway_->http_address());
    client.Send(method + " " + path + " HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + headers +
                "content-length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
    return client.ReadAll();
  }
  json AskJson(const std::string& method, const std::string& path, const std::string& body = "") {
    return json::parse(BodyOf(Ask(method, path, body)), nullptr, false);
  }
  // The data of a stream's events.
  static std::vector<std::string> Events(const std::string& answer) {
    std::vector<std::string> out;
    std::string body = BodyOf(answer);
    size_t at = 0, end = 0;
    while ((end = body.find("\n\n", at)) != std::string::npos) {
      EXPECT_EQ(body.substr(at, 6), "data: ");
      out.push_back(body.substr(at + 6, end - at - 6));
      at = end + 2;
    }
    EXPECT_EQ(at, body.size());
    return out;
  }
  std::unique_ptr<v1::Inference::Stub> Stub() {
    return v1::Inference::NewStub(rpc::Connect(gateway_->grpc_address(), {}).value());
  }

  FakeRouter router_;
  GatewayOptions options_;
  std::shared_ptr<telemetry::Metrics> metrics_;
  std::unique_ptr<Gateway> gateway_;
};

const char kChat[] = R"({"model":"tiny-r1","messages":[{"role":"user","content":"2+2?"}])";

TEST_F(GatewayTest, AGrpcMessageOverTheBodysBoundIsRefusedUnread) {
  Start();
  v1::TokenizeRequest request;
  v1::TokenizeResponse response;
  request.set_prompt(std::string((8 << 20) + 1, 'x'));
  grpc::ClientContext context;
  const grpc::Status status = Stub()->Tokenize(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("8388608"));
}

TEST_F(GatewayTest, ChatsWhole) {
  Start();
  const std::string answer =
      Ask("POST", "/v1/chat/completions", std::string(kChat) + R"(,"n":2,"return_token_ids":true})",
          "x-request-id: my-id\r\n");
  EXPECT_EQ(StatusOf(answer), 200);
  EXPECT_THAT(answer, HasSubstr("x-request-id: my-id\r\n"));
  const json body = json::parse(BodyOf(answer));
  EXPECT_EQ(body["id"], "chatcmpl-my-id");
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_EQ(body["model"], "tiny-r1");
  EXPECT_EQ(body["system_fingerprint"], "numerics-1");
  ASSERT_EQ(body["choices"].size(), 2u);
  for (int i = 0; i < 2; ++i) {
    const json& choice = body["choices"][i];
    EXPECT_EQ(choice["index"], i);
    EXPECT_EQ(choice["message"]["role"], "assistant");
    EXPECT_EQ(choice["message"]["content"], "It is \"4\".");
    EXPECT_EQ(choice["message"]["reasoning_content"], "hm");
    EXPECT_EQ(choice["finish_reason"], "stop");
    EXPECT_TRUE(choice["logprobs"].is_null());
    EXPECT_EQ(choice["token_ids"].back(), 1);
  }
  const json& usage = body["usage"];
  EXPECT_EQ(usage["total_tokens"].get<int>(),
            usage["prompt_tokens"].get<int>() + usage["completion_tokens"].get<int>());
  EXPECT_GT(usage["completion_tokens_details"]["reasoning_tokens"], 0);
  EXPECT_EQ(body["prompt_token_ids"].size(), usage["prompt_tokens"].get<size_t>());
}

TEST_F(GatewayTest, ChatsAsAStream) {
  Start();
  const std::string answer =
      Ask("POST", "/v1/chat/completions",
          std::string(kChat) + R"(,"stream":true,"stream_options":{"include_usage":true}})");
  EXPECT_EQ(StatusOf(answer), 200);
  EXPECT_THAT(answer, HasSubstr("content-type: text/event-stream"));
  const std::vector<std::string> events = Events(answer);
  ASSERT_GT(events.size(), 4u);
  EXPECT_EQ(events.back(), "[DONE]");
  std::string content, reasoning, finish;
  for (size_t i = 0; i + 2 < events.size(); ++i) {
    const json event = json::parse(events[i]);
    EXPECT_EQ(event["object"], "chat.completion.chunk");
    EXPECT_TRUE(event["usage"].is_null());
    const json& choice = event["choices"][0];
    EXPECT_EQ(choice["delta"].contains("role"), i == 0);
    content += choice["delta"].value("content", "");
    reasoning += choice["delta"].value("reasoning_content", "");
    if (choice["finish_reason"].is_string()) finish = choice["finish_reason"];
  }
  EXPECT_EQ(content, "It is \"4\".");
  EXPECT_EQ(reasoning, "hm");
  EXPECT_EQ(finish, "stop");
  const json last = json::parse(events[events.size() - 2]);
  EXPECT_TRUE(last["choices"].empty());
  EXPECT_GT(last["usage"]["completion_tokens"], 0);
}

TEST_F(GatewayTest, CompletesSeveralPromptsInOneAnswer) {
  Start();
  const json body = AskJson("POST", "/v1/completions",
                            R"({"prompt":["a","b"],"n":2,"logprobs":0,"max_tokens":50})");
  ASSERT_EQ(body["choices"].size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(body["choices"][i]["index"], i);
    EXPECT_EQ(body["choices"][i]["text"], "hm</think>It is \"4\".");
    const json& logprobs = body["choices"][i]["logprobs"];
    EXPECT_EQ(logprobs["tokens"].size(), logprobs["token_logprobs"].size());
    EXPECT_EQ(logprobs["text_offset"][0], 0);
    EXPECT_EQ(logprobs["text_offset"][1], logprobs["tokens"][0].get<std::string>().size());
  }
  EXPECT_EQ(body["object"], "text_completion");
}

TEST_F(GatewayTest, GivesLogprobsAndRoutingOfChats) {
  router_.SetScript([](const Submit&) {
    auto tokens = TokensOf({Ids("a")[0], 1}, Token::STOP);
    tokens[0].set_logprob(-1.5f);
    tokens[0].add_top()->set_id(Ids("a")[0]);
    for (int i = 0; i < 4; ++i) {
      tokens[0].add_routing_experts(i);
      tokens[0].add_routing_weights(0.25f);
    }
    return tokens;
  });
  Start();
  const json body = AskJson(
      "POST", "/v1/chat/completions",
      std::string(kChat) + R"(,"logprobs":true,"top_logprobs":1,"return_routed_experts":true})");
  const json& entry = body["choices"][0]["logprobs"]["content"][0];
  EXPECT_EQ(entry["token"], "a");
  EXPECT_EQ(entry["logprob"], -1.5);
  EXPECT_THAT(entry["bytes"], ElementsAre(97));
  EXPECT_EQ(entry["top_logprobs"][0]["token"], "a");
  EXPECT_EQ(body["moe_layers"], json::array({1, 2}));
  EXPECT_EQ(body["choices"][0]["routed_experts"][0]["experts"], json::parse("[[0,1],[2,3]]"));
}

TEST_F(GatewayTest, ErrorsHaveOpenAisShapeAndCodes) {
  Start();
  struct Case {
    const char *method, *path, *body;
    int status;
    const char* param;
  };
  for (const Case& c : {
           Case{"POST", "/v1/chat/completions", "{", 400, nullptr},
           Case{"POST", "/v1/chat/completions", R"({"messages":[]})", 400, "messages"},
           Case{"POST", "/v1/completions", R"({"prompt":"x","temperature":9})", 400, "temperature"},
           Case{"POST", "/v1/completions", R"({"prompt":"x","n":2000000000})", 400, "n"},
           Case{"POST", "/v1/completions", R"({"prompt":[2560]})", 400, "prompt"},
           Case{"POST", "/v1/completions", R"({"prompt":"x","priority":101})", 400, "priority"},
           Case{"POST", "/v1/completions", R"({"prompt":"x","priority":-101})", 400, "priority"},
           Case{"POST", "/v1/completions", R"({"prompt":"x","model":"gpt"})", 404, "model"},
           Case{"POST", "/v1/completions", R"({"prompt":"x","request_id":"a b"})", 400,
                "request_id"},
           Case{"GET", "/v1/models/gpt", "", 404, "model"},
           Case{"GET", "/v1/chat/completions", "", 405, nullptr},
           Case{"GET", "/nothing", "", 404, nullptr},
       }) {
    const std::string answer = Ask(c.method, c.path, c.body);
    EXPECT_EQ(StatusOf(answer), c.status) << c.path << c.body;
    const json error = json::parse(BodyOf(answer))["error"];
    EXPECT_EQ(error["type"], "invalid_request_error");
    EXPECT_EQ(error["param"], c.param == nullptr ? json() : json(c.param)) << c.body;
    EXPECT_FALSE(error["message"].get<std::string>().empty());
    EXPECT_THAT(answer, HasSubstr("x-request-id: " + error["request_id"].get<std::string>()));
  }
}

TEST_F(GatewayTest, AFullQueueIs429WithRetryAfterAlsoForStreams) {
  router_.SetScript([](const Submit&) {
    Token token;
    token.set_index(-1);
    token.set_finish(Token::ERROR);
    token.set_code(8);
    token.set_message("the queue is full");
    token.set_retry_after_ms(2500);
    return std::vector<Token>{token};
  });
  Start();
  for (const char* stream : {"true", "false"}) {
    const std::string answer =
        Ask("POST", "/v1/chat/completions", std::string(kChat) + ",\"stream\":" + stream + "}");
    EXPECT_EQ(StatusOf(answer), 429);
    EXPECT_THAT(answer, HasSubstr("retry-after: 3\r\n"));
    EXPECT_EQ(json::parse(BodyOf(answer))["error"]["type"], "rate_limit_error");
  }
}

TEST_F(GatewayTest, AnErrorInAStreamIsItsLastEvent) {
  router_.SetScript([](const Submit&) {
    auto tokens = TokensOf(Ids("one two"), Token::ERROR);
    tokens.back().set_code(13);
    tokens.back().set_message("a row was lost");
    return tokens;
  });
  Start();
  const auto events =
      Events(Ask("POST", "/v1/chat/completions", std::string(kChat) + ",\"stream\":true}"));
  ASSERT_GE(events.size(), 3u);
  EXPECT_EQ(json::parse(events[events.size() - 2])["error"]["message"], "a row was lost");
  EXPECT_EQ(events.back(), "[DONE]");
}

TEST_F(GatewayTest, AClientThatLeavesIsCancelledAtTheRouter) {
  // A stream's client is known to be gone by what is written to it next; one that waits for a whole
  // answer by the server's own question.
  router_.SetScript(
      [](const Submit&) { return TokensOf(std::vector<int32_t>(3000, Ids("a")[0]), Token::NONE); });
  Start();
  for (const char* stream : {"true", "false"}) {
    RawClient client(gateway_->http_address());
    const std::string body = std::string(kChat) + ",\"stream\":" + stream + "}";
    client.Send("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: " +
                std::to_string(body.size()) + "\r\n\r\n" + body);
    if (*stream == 't') {
      client.ReadUntil("data: ");
    } else {
      router_.WaitForSubmit(1);
    }
    client.Close();
    EXPECT_TRUE(router_.WaitForCancels(*stream == 't' ? 1 : 2));
  }
}

TEST_F(GatewayTest, AsksForKeys) {
  const std::string path = ::testing::TempDir() + "/keys." + std::to_string(::getpid());
  std::ofstream(path) << "secret-1\n";
  options_.api_key_file = path;
  Start();
  ::unlink(path.c_str());
  EXPECT_EQ(StatusOf(Ask("GET", "/v1/models")), 401);
  EXPECT_EQ(StatusOf(Ask("GET", "/v1/models", "", "authorization: Bearer wrong\r\n")), 401);
  EXPECT_EQ(StatusOf(Ask("GET", "/v1/models", "", "authorization: Bearer secret-1\r\n")), 200);
  EXPECT_EQ(StatusOf(Ask("GET", "/health")), 200);
  EXPECT_EQ(StatusOf(Ask("GET", "/ready")), 200);
  EXPECT_EQ(StatusOf(Ask("POST", "/v1/completions", R"({"prompt":"x"})",
                         "authorization: bearer secret-1\r\n")),
            200);
  const Submit submit = router_.WaitForSubmit(0);
  EXPECT_EQ(submit.fair_key().size(), 16u);
  EXPECT_EQ(submit.fair_key().find("secret"), std::string::npos);

  grpc::ClientContext bare, keyed;
  v1::ListModelsResponse models;
  EXPECT_EQ(Stub()->ListModels(&bare, {}, &models).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  keyed.AddMetadata("authorization", "Bearer secret-1");
  EXPECT_TRUE(Stub()->ListModels(&keyed, {}, &models).ok());
}

TEST_F(GatewayTest, ReadinessSaysWhatIsMissing) {
  Start();
  EXPECT_EQ(AskJson("GET", "/ready")["ready"], true);
  router_.SetState(false, "layer 3: experts 17, 40–63 have no live worker");
  WaitUntil("layer 3");
  const std::string answer = Ask("GET", "/ready");
  EXPECT_EQ(StatusOf(answer), 503);
  EXPECT_THAT(BodyOf(answer), HasSubstr("layer 3: experts 17, 40–63 have no live worker"));
  const std::string refused = Ask("POST", "/v1/completions", R"({"prompt":"x"})");
  EXPECT_EQ(StatusOf(refused), 503);
  EXPECT_THAT(refused, HasSubstr("retry-after: "));
  EXPECT_EQ(StatusOf(Ask("GET", "/health")), 200);
}

TEST_F(GatewayTest, ServesTheOtherPages) {
  Start();
  const json models = AskJson("GET", "/v1/models");
  EXPECT_EQ(models["data"][0]["id"], "tiny-r1");
  EXPECT_EQ(models["data"][0]["max_model_len"], 4096);
  EXPECT_EQ(AskJson("GET", "/v1/models/tiny-r1")["object"], "model");
  const json tokens = AskJson("POST", "/tokenize", R"({"prompt":"hello"})");
  EXPECT_EQ(tokens["count"], tokens["tokens"].size());
  EXPECT_EQ(tokens["tokens"][0], 0);
  EXPECT_EQ(
      AskJson("POST", "/detokenize", json{{"tokens", Ids("hello \"world\"")}}.dump())["prompt"],
      "hello \"world\"");
  const json experts = AskJson("GET", "/admin/experts");
  EXPECT_EQ(experts["routers"][0]["experts"][0]["rows"], 11);
  EXPECT_TRUE(experts["routers"][0]["runs_on"].is_null());  // as of an older router
  // A large body goes by the other thread.
  const json large =
      AskJson("POST", "/tokenize", json{{"prompt", std::string(100'000, 'a')}}.dump());
  EXPECT_GT(large["count"], 1000);
  Ask("POST", "/v1/completions", R"({"prompt":"x"})");
  const std::string metrics = BodyOf(Ask("GET", "/metrics"));
  EXPECT_THAT(metrics,
              HasSubstr("switchyard_gateway_requests_total{api=\"http\",code=\"200\",route="
                        "\"/v1/completions\",service=\"gateway\"} 1"));
  EXPECT_THAT(metrics, HasSubstr("switchyard_gateway_time_to_first_token_seconds_count"));
  EXPECT_THAT(metrics, HasSubstr("switchyard_gateway_router_ready"));
  EXPECT_THAT(metrics, HasSubstr("switchyard_gateway_refused_connections_total"));
}

TEST_F(GatewayTest, SpeaksGrpc) {
  Start();
  const auto stub = Stub();
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "g-1");
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(100));
  v1::GenerateRequest request;
  auto* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("2+2?");
  const auto reader = stub->Generate(&context, request);
  v1::GenerateResponse chunk, last;
  std::string text, reasoning;
  while (reader->Read(&chunk)) {
    text += chunk.choices(0).text();
    reasoning += chunk.choices(0).reasoning_content();
    EXPECT_EQ(chunk.request_id(), "g-1");
    last = chunk;
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text, "It is \"4\".");
  EXPECT_EQ(reasoning, "hm");
  EXPECT_GT(last.usage().completion_tokens(), 0);
  EXPECT_GT(router_.WaitForSubmit(0).deadline_left_us(), 0);

  grpc::ClientContext bad;
  request.mutable_sampling()->set_temperature(9);
  const auto refused = stub->Generate(&bad, request);
  EXPECT_FALSE(refused->Read(&chunk));
  const grpc::Status status = refused->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("temperature: 9 is not in [0, 2]"));
}

TEST_F(GatewayTest, GrpcCancelsAndDeadlinesReachTheRouter) {
  router_.SetScript([](const Submit&) { return TokensOf(Ids("one"), Token::NONE); });
  Start();
  v1::GenerateRequest request;
  request.set_prompt("x");
  v1::GenerateResponse chunk;
  grpc::ClientContext cancelled, late;
  const auto stub = Stub();
  auto reader = stub->Generate(&cancelled, request);
  ASSERT_TRUE(reader->Read(&chunk));
  cancelled.TryCancel();
  EXPECT_TRUE(router_.WaitForCancels(1));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  late.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  auto second = stub->Generate(&late, request);
  while (second->Read(&chunk)) {
  }
  EXPECT_EQ(second->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(router_.WaitForCancels(2));
}

TEST_F(GatewayTest, HttpRequestsHaveTheServersDeadline) {
  options_.http.exchange_timeout = absl::Seconds(100);
  Start();
  AskJson("POST", "/v1/completions", R"({"prompt":"x"})");
  const int64_t left_us = router_.WaitForSubmit(0).deadline_left_us();
  EXPECT_GT(left_us, 50'000'000);
  EXPECT_LE(left_us, 99'000'000);
}

TEST_F(GatewayTest, RefusalsOfTheServerHaveARequestIdToo) {
  options_.http.limits.body_bytes = 1000;
  Start();
  const std::string answer = Ask("POST", "/v1/completions", std::string(1001, 'x'));
  EXPECT_EQ(StatusOf(answer), 413);
  const std::string id = json::parse(BodyOf(answer))["error"]["request_id"];
  EXPECT_FALSE(id.empty());
  EXPECT_THAT(answer, HasSubstr("x-request-id: " + id + "\r\n"));
}

TEST_F(GatewayTest, DrainsOnlyWhenASlowReaderHasItsLargeAnswer) {
  router_.SetScript([](const Submit&) {
    auto tokens = TokensOf(std::vector<int32_t>(100, Ids("a")[0]));
    for (Token& token : tokens) {
      for (int i = 0; i < 1500; ++i) token.add_top()->set_id(i);
    }
    return tokens;
  });
  Start();
  RawClient client(gateway_->http_address());
  const std::string body = std::string(kChat) + R"(,"logprobs":true,"top_logprobs":1})";
  client.Send("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: " +
              std::to_string(body.size()) + "\r\n\r\n" + body);
  std::string answer = client.ReadUntil("\r\n\r\n");  // the generation has ended
  std::thread drain([this] { gateway_->Drain(kPatience); });
  WaitUntil("shutting down");
  answer += client.ReadAll();
  drain.join();
  EXPECT_GT(answer.size(), size_t{6} << 20);
  EXPECT_TRUE(json::accept(BodyOf(answer)));
}

TEST_F(GatewayTest, DrainsAndRefusesAnotherModel) {
  Start();
  gateway_->Drain(absl::Seconds(5));
  EXPECT_EQ(gateway_->Missing(), "the gateway is shutting down");
  gateway_.reset();
  options_.model_dir = "/no/such/model";
  EXPECT_EQ(GatewayFiles::Load(options_).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(GatewayTest, RefusesARouterThatIsNamedTwice) {
  options_.routers = {router_.address(), router_.address()};
  const auto gateway = Gateway::Create(
      options_, GatewayFiles::Load(options_).value(),
      [](const std::string& a) { return rpc::Connect(a, {}).value(); },
      std::make_shared<telemetry::Metrics>());
  EXPECT_EQ(gateway.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(gateway.status().message()), HasSubstr("--routers names"));
}

}  // namespace
}  // namespace switchyard::gateway
