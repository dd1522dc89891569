#include "router/service/router_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <thread>

#include "absl/synchronization/notification.h"
#include "router/service/convert.h"
#include "services/rpc/channel.h"
#include "services/rpc/server.h"
#include "tests/support/fake_runner.h"

namespace switchyard::router {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
namespace pb = internal::v1;

constexpr absl::Duration kPatience = absl::Seconds(60);

// A gateway's end of the stream, read by the test's own thread.
class Client {
 public:
  explicit Client(const std::string& address) {
    context_.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
    stub_ = pb::Router::NewStub(*rpc::Connect(address, {}));
    stream_ = stub_->Serve(&context_);
  }
  ~Client() {
    context_.TryCancel();
    pb::FromRouter rest;
    while (stream_->Read(&rest)) {
    }
    if (!finished_) stream_->Finish();
  }

  void Hello(const std::string& fingerprint = "text-1", uint32_t version = 1) {
    pb::ToRouter message;
    message.mutable_hello()->set_protocol_version(version);
    message.mutable_hello()->set_gateway_id("gateway-1");
    message.mutable_hello()->set_text_fingerprint(fingerprint);
    stream_->Write(message);
  }
  void Submit(uint64_t id, int max_tokens, int n = 1) {
    pb::ToRouter message;
    Write(id, max_tokens, n, &message);
  }
  // A third attempt behind these tokens of each choice; that of index `ended` is over.
  void Continue(uint64_t id, int max_tokens, const std::vector<std::vector<int32_t>>& tokens,
                int ended) {
    pb::ToRouter message;
    pb::Submit& submit = *message.mutable_submit();
    submit.set_attempt(3);
    for (const std::vector<int32_t>& choice : tokens) {
      submit.add_choices()->mutable_tokens()->Assign(choice.begin(), choice.end());
    }
    submit.mutable_choices(ended)->set_ended(true);
    Write(id, max_tokens, static_cast<int>(tokens.size()), &message);
  }
  void Write(uint64_t id, int max_tokens, int n, pb::ToRouter* message) {
    pb::Submit& submit = *message->mutable_submit();
    submit.set_request(id);
    for (int t : {5, 17, 30}) submit.add_prompt(t);
    submit.mutable_sampling()->set_top_p(1);
    submit.mutable_sampling()->set_repetition_penalty(1);
    submit.mutable_sampling()->set_ignore_eos(true);
    submit.set_max_tokens(max_tokens);
    submit.set_n(n);
    submit.set_top_logprobs(-1);
    stream_->Write(*message);
  }
  // A prompt of `tokens`, of which all routing is wanted.
  void SubmitTraced(uint64_t id, int tokens) {
    pb::ToRouter message;
    pb::Submit& submit = *message.mutable_submit();
    submit.set_request(id);
    for (int i = 0; i < tokens; ++i) submit.add_prompt(1 + i % 50);
    submit.mutable_sampling()->set_top_p(1);
    submit.mutable_sampling()->set_repetition_penalty(1);
    submit.mutable_sampling()->set_ignore_eos(true);
    submit.set_max_tokens(2);
    submit.set_top_logprobs(-1);
    submit.set_return_routed_experts(true);
    stream_->Write(message);
  }
  void Cancel(uint64_t id, int choice = -1) {
    pb::ToRouter message;
    message.mutable_cancel()->set_request(id);
    if (choice >= 0) message.mutable_cancel()->set_choice(choice);
    stream_->Write(message);
  }
  bool Read(pb::FromRouter* message) { return stream_->Read(message); }
  // Reads up to a state message that is ready or not as asked.
  pb::RouterState UntilState(bool ready) {
    pb::FromRouter message;
    while (stream_->Read(&message)) {
      if (message.has_state() && message.state().ready() == ready) return message.state();
    }
    ADD_FAILURE() << "the stream ended";
    return {};
  }
  // Reads until `finishes` choices have ended; all tokens by (request, choice).
  std::map<std::pair<uint64_t, int>, std::vector<pb::Token>> Tokens(int finishes) {
    std::map<std::pair<uint64_t, int>, std::vector<pb::Token>> out;
    pb::FromRouter message;
    while (finishes > 0 && stream_->Read(&message)) {
      for (const pb::Token& token : message.step().tokens()) {
        out[{token.request(), token.choice()}].push_back(token);
        finishes -= token.finish() != pb::Token::NONE;
      }
    }
    EXPECT_EQ(finishes, 0);
    return out;
  }
  void WritesDone() { stream_->WritesDone(); }
  grpc::Status Finish() {
    pb::FromRouter rest;
    while (stream_->Read(&rest)) {
    }
    finished_ = true;
    return stream_->Finish();
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<pb::Router::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<pb::ToRouter, pb::FromRouter>> stream_;
  bool finished_ = false;
};

class RouterServiceTest : public ::testing::Test {
 protected:
  void Start(EngineOptions engine = {.max_model_len = 4096, .kv_blocks = 256},
             size_t max_queued_bytes = 8u << 20, int moe_layers = 2) {
    runner_ = std::make_unique<FakeRunner>(
        FakeRunnerOptions{.moe_layers = moe_layers, .kv_blocks = engine.kv_blocks});
    engine_ = std::make_unique<Engine>(engine, *runner_, nullptr);
    RouterServiceOptions options{.max_queued_bytes = max_queued_bytes, .max_gateways = 2};
    options.hello.set_router_id("router-1");
    options.hello.set_text_fingerprint("text-1");
    options.hello.set_max_model_len(engine.max_model_len);
    service_ = std::make_unique<RouterService>(
        options, *engine_,
        RouterService::Hooks{
            .describe = [](v1::RouterExperts* r) { r->add_workers()->set_address("w"); },
            .on_refused = [this](const absl::Status&) { ++refused_; },
            .on_slow =
                [this] {
                  if (!slow_.HasBeenNotified()) slow_.Notify();
                }});
    auto server = rpc::Server::Start({.listen = "127.0.0.1:0"}, [this](grpc::ServerBuilder& b) {
      b.RegisterService(service_.get());
    });
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(server).value();
  }
  void TearDown() override {
    runner_->Release();
    server_->Shutdown(absl::ZeroDuration());
    EXPECT_EQ(service_->streams(), 0);
    EXPECT_THAT(runner_->errors(), ::testing::IsEmpty());
  }
  const std::string& address() const { return server_->address(); }
  template <typename Condition>
  static bool Until(Condition condition) {
    const absl::Time end = absl::Now() + kPatience;
    while (!condition()) {
      if (absl::Now() > end) return false;
      std::this_thread::yield();
    }
    return true;
  }
  // Holds where nobody submits any more.
  bool BecomesIdle() {
    return Until([&] {
      const EngineSnapshot now = engine_->Snapshot();
      return now.running + now.waiting == 0;
    });
  }

  bool told_ready_ = false;
  std::unique_ptr<FakeRunner> runner_;
  std::unique_ptr<Engine> engine_;
  std::atomic<int> refused_ = 0;
  absl::Notification slow_;
  std::unique_ptr<RouterService> service_;
  std::unique_ptr<rpc::Server> server_;
};

TEST_F(RouterServiceTest, GreetsThenServesTokensOfAllChoices) {
  Start();
  service_->SetState(true, "", false);
  Client client(address());
  client.Hello();
  pb::FromRouter message;
  ASSERT_TRUE(client.Read(&message));
  EXPECT_EQ(message.hello().router_id(), "router-1");
  EXPECT_EQ(message.hello().protocol_version(), 1u);
  EXPECT_EQ(message.hello().max_model_len(), 4096);
  ASSERT_TRUE(client.Read(&message));
  EXPECT_TRUE(message.state().ready());
  client.Submit(7, 5, /*n=*/2);
  auto tokens = client.Tokens(2);
  for (int choice : {0, 1}) {
    const std::vector<pb::Token>& got = tokens[{7, choice}];
    ASSERT_EQ(got.size(), 5u);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(got[i].index(), i);
    EXPECT_EQ(got[4].finish(), pb::Token::LENGTH);
  }
  // Greedy: the argmax of what the fake model says of the prompt.
  const auto logits = FakeRunner::Logits({5, 17, 30}, FakeRunnerOptions{}.vocab);
  const auto first = tokens[{7, 0}][0].id();
  EXPECT_EQ(first, std::max_element(logits.begin(), logits.end()) - logits.begin());
}

TEST_F(RouterServiceTest, ForeignGatewaysAreRefusedByName) {
  Start();
  {
    Client client(address());
    client.Hello("text-2");
    const grpc::Status status = client.Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_THAT(status.error_message(), AllOf(HasSubstr("text-1"), HasSubstr("text-2"),
                                              HasSubstr("router-1"), HasSubstr("gateway-1")));
  }
  {
    Client client(address());
    client.Hello("text-1", 2);
    EXPECT_THAT(client.Finish().error_message(), HasSubstr("version 2"));
  }
  {
    Client client(address());
    client.Submit(1, 1);
    EXPECT_EQ(client.Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  }
  // One after the other: only so many may be open without a hello.
  pb::FromRouter message;
  Client a(address());
  a.Hello();
  ASSERT_TRUE(a.Read(&message));
  Client b(address());
  b.Hello();
  ASSERT_TRUE(b.Read(&message));
  Client c(address());
  c.Hello();
  const grpc::Status status = c.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("serves 2 gateways already"));
}

TEST_F(RouterServiceTest, StreamsWithoutAHelloAreEndedAndBounded) {
  Start();
  Client greeted(address());
  greeted.Hello();
  pb::FromRouter message;
  ASSERT_TRUE(greeted.Read(&message));
  absl::Mutex mutex;
  std::vector<grpc::StatusCode> ends;
  std::vector<std::thread> silent;
  for (int i = 0; i < 3; ++i) {
    silent.emplace_back([&] {
      const grpc::StatusCode code = Client(address()).Finish().error_code();
      absl::MutexLock lock(&mutex);
      ends.push_back(code);
    });
  }
  {  // two may wait
    absl::MutexLock lock(&mutex);
    const auto one = [&] { return ends.size() == 1; };
    ASSERT_TRUE(mutex.AwaitWithTimeout(absl::Condition(&one), kPatience));
  }
  service_->Tick(absl::Now());  // they have time left
  service_->Tick(absl::Now() + absl::Seconds(6));
  for (std::thread& thread : silent) thread.join();
  EXPECT_THAT(ends, ::testing::ElementsAre(grpc::StatusCode::RESOURCE_EXHAUSTED,
                                           grpc::StatusCode::DEADLINE_EXCEEDED,
                                           grpc::StatusCode::DEADLINE_EXCEEDED));
  greeted.Submit(1, 5);
  EXPECT_EQ((greeted.Tokens(1)[{1, 0}].size()), 5u);
}

TEST_F(RouterServiceTest, GatewaysHearOfARouterThatHasNothingToSay) {
  Start();
  Client client(address());
  client.Hello();
  pb::FromRouter message;
  ASSERT_TRUE(client.Read(&message));
  const absl::Duration promised = absl::Milliseconds(message.hello().heartbeat_ms());
  EXPECT_EQ(promised, kHeartbeat);
  ASSERT_TRUE(client.Read(&message));
  EXPECT_TRUE(message.has_state());
  const absl::Time now = absl::Now();
  for (const absl::Time at : {now, now + promised, now - absl::Hours(1)}) {  // the last: set back
    service_->Tick(at);
    service_->Tick(at + absl::Milliseconds(1));  // too early
    ASSERT_TRUE(client.Read(&message));
    EXPECT_TRUE(message.has_heartbeat());
  }
  service_->SetState(true, "", false);
  ASSERT_TRUE(client.Read(&message));
  EXPECT_TRUE(message.has_state());  // and nothing before it
}

TEST_F(RouterServiceTest, GatewaysHearNothingOfARouterWhoseEngineHangs) {
  Start();
  Client client(address());
  client.Hello();
  pb::FromRouter message;
  ASSERT_TRUE(client.Read(&message));
  ASSERT_TRUE(client.Read(&message));
  EXPECT_TRUE(message.has_state());
  absl::Time now = absl::Now();
  // Which message comes next says whether there was a beat before it.
  const auto beats_at = [&](absl::Time at) {
    service_->Tick(at);
    const bool ready = !std::exchange(told_ready_, !told_ready_);
    service_->SetState(ready, ready ? "" : "something", false);
    EXPECT_TRUE(client.Read(&message));
    if (!message.has_heartbeat()) return false;
    EXPECT_TRUE(client.Read(&message));
    return true;
  };
  EXPECT_TRUE(beats_at(now));
  ASSERT_TRUE(Until([&] { return engine_->Pulse().asleep; }));  // its thread may only begin
  EXPECT_TRUE(beats_at(now += absl::Hours(1))) << "an idle engine does not hang";
  // One that takes its turns while a step waits does not either.
  runner_->Hold();
  client.Submit(1, 5);
  runner_->AwaitHeld();
  for (int turn = 0; turn < 3; ++turn) {
    const int64_t before = runner_->waits();
    ASSERT_TRUE(Until([&] { return runner_->waits() > before + 1; }));
    EXPECT_TRUE(beats_at(now += kEnginePatience));
  }
  runner_->Stick();
  runner_->MakeProgress();
  EXPECT_TRUE(beats_at(now += kHeartbeat));  // sees it as it is from now on
  EXPECT_TRUE(beats_at(now += kEnginePatience - absl::Milliseconds(1)));
  runner_->MakeProgress();  // a long step
  EXPECT_TRUE(beats_at(now += kEnginePatience));
  EXPECT_FALSE(beats_at(now += kEnginePatience));
  EXPECT_FALSE(beats_at(now += absl::Hours(1)));
  runner_->Release();
  EXPECT_EQ((client.Tokens(1)[{1, 0}].size()), 5u);
  EXPECT_TRUE(beats_at(now += absl::Hours(1)));
}

TEST_F(RouterServiceTest, GoesOnBehindWhatAnotherRouterMade) {
  Start();
  Client client(address());
  client.Hello();
  client.Submit(1, 6, 2);
  auto whole = client.Tokens(2);
  client.Continue(2, 6, {{whole[{1, 0}][0].id(), whole[{1, 0}][1].id()}, {}}, /*ended=*/1);
  const auto rest = client.Tokens(1)[{2, 0}];
  ASSERT_EQ(rest.size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(rest[i].attempt(), 3u);
    EXPECT_EQ(rest[i].index(), i + 2);
    EXPECT_EQ(rest[i].id(), (whole[{1, 0}][i + 2].id()));
  }
}

TEST_F(RouterServiceTest, ADrainingRouterRefusesForElsewhere) {
  Start();
  Client client(address());
  client.Hello();
  engine_->BeginDrain([] {});
  client.Continue(1, 6, {{5}, {}}, /*ended=*/0);
  const auto tokens = client.Tokens(1);  // the choice that has ended hears nothing
  const pb::Token& refused = tokens.at({1, 1})[0];
  EXPECT_EQ(refused.code(), static_cast<int>(absl::StatusCode::kUnavailable));
  EXPECT_TRUE(refused.elsewhere());
  EXPECT_EQ(tokens.size(), 1u);
}

TEST_F(RouterServiceTest, AChangeOfNumericsIsToldToGateways) {
  Start();
  Client client(address());
  client.Hello();
  pb::FromRouter message;
  ASSERT_TRUE(client.Read(&message));
  EXPECT_EQ(message.hello().numerics_id(), "");
  service_->SetNumericsId("n+mixed");
  service_->SetNumericsId("n+mixed");  // no change
  while (client.Read(&message) && !message.has_hello()) {
  }
  EXPECT_EQ(message.hello().numerics_id(), "n+mixed");
  EXPECT_EQ(message.hello().router_id(), "router-1");
  client.Submit(1, 1);
  ASSERT_TRUE(client.Read(&message));
  EXPECT_TRUE(message.has_step());
}

TEST_F(RouterServiceTest, RefusedRequestsEndEachChoiceWithTheReason) {
  Start({.max_model_len = 16, .kv_blocks = 8});
  Client client(address());
  client.Hello();
  client.Submit(1, 1000, /*n=*/500);
  auto tokens = client.Tokens(500);
  const pb::Token& token = tokens[{1, 499}].at(0);
  EXPECT_EQ(token.finish(), pb::Token::ERROR);
  EXPECT_EQ(token.code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_FALSE(token.message().empty());
  EXPECT_EQ(refused_, 1);
}

TEST_F(RouterServiceTest, FullQueueIsRefusedWithAHint) {
  Start({.max_model_len = 64, .kv_blocks = 8, .max_queue = 1});
  runner_->Hold();
  Client client(address());
  client.Hello();
  client.Submit(1, 2);
  runner_->AwaitHeld();
  for (uint64_t id = 2; id < 40; ++id) client.Submit(id, 2);
  pb::FromRouter message;
  pb::Token refused;
  while (refused.finish() == pb::Token::NONE && client.Read(&message)) {
    if (message.has_step()) refused = message.step().tokens(0);
  }
  EXPECT_EQ(refused.code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_GT(refused.retry_after_ms(), 0);
  runner_->Release();
}

TEST_F(RouterServiceTest, CancelEndsARequestAndLeavesTheOthers) {
  Start();
  Client client(address());
  client.Hello();
  client.Submit(1, 4000);
  client.Submit(2, 20);
  client.Cancel(1);
  client.Cancel(99);
  auto tokens = client.Tokens(2);
  EXPECT_EQ((tokens[{1, 0}].back().finish()), pb::Token::CANCELLED);
  EXPECT_EQ((tokens[{2, 0}].size()), 20u);
  EXPECT_EQ((tokens[{2, 0}].back().finish()), pb::Token::LENGTH);
}

TEST_F(RouterServiceTest, CancelOfAChoiceLeavesTheOtherChoices) {
  Start();
  Client client(address());
  client.Hello();
  runner_->Hold();
  client.Submit(1, 30, /*n=*/2);
  runner_->AwaitHeld();
  client.Cancel(1, 0);
  auto first = client.Tokens(1);
  EXPECT_EQ((first[{1, 0}].back().finish()), pb::Token::CANCELLED);
  runner_->Release();
  auto tokens = client.Tokens(1);
  EXPECT_EQ((tokens[{1, 1}].size()), 30u);
}

TEST_F(RouterServiceTest, AStepLargerThanTheQueueTravelsInSmallMessages) {
  // 300 positions of 4,000 layers with 2 experts: 12 MB and more of routing in one step.
  Start({.max_model_len = 4096, .kv_blocks = 256}, /*max_queued_bytes=*/2u << 20,
        /*moe_layers=*/4000);
  Client client(address());
  client.Hello();
  client.SubmitTraced(1, 300);
  pb::FromRouter message;
  size_t largest = 0, all = 0;
  int positions = 0, finishes = 0;
  while (finishes == 0 && client.Read(&message)) {
    largest = std::max(largest, message.ByteSizeLong());
    all += message.ByteSizeLong();
    for (const pb::Token& token : message.step().tokens()) {
      if (token.routing_experts_size() > 0) {
        EXPECT_EQ(token.routing_first_position(), positions);
      }
      positions += token.routing_experts_size() / 8000;
      finishes += token.finish() != pb::Token::NONE;
    }
  }
  EXPECT_EQ(positions, 301);
  EXPECT_GT(all, 10u << 20);
  EXPECT_LE(largest, 1u << 20);
  EXPECT_FALSE(slow_.HasBeenNotified());
}

TEST_F(RouterServiceTest, BrokenStreamCancelsItsRequestsOnly) {
  Start();
  Client stays(address());
  stays.Hello();
  stays.Submit(1, 2000);
  {
    Client leaves(address());
    leaves.Hello();
    leaves.Submit(1, 4000, 4);
    pb::FromRouter message;
    while (leaves.Read(&message) && !message.has_step()) {
    }
  }
  EXPECT_EQ((stays.Tokens(1)[{1, 0}].size()), 2000u);
  EXPECT_TRUE(BecomesIdle());
}

TEST_F(RouterServiceTest, HalfClosedStreamEnds) {
  Start();
  Client client(address());
  client.Hello();
  client.Submit(1, 4000);
  client.WritesDone();
  EXPECT_TRUE(client.Finish().ok());
  EXPECT_TRUE(BecomesIdle());
}

TEST_F(RouterServiceTest, GatewayThatDoesNotReadLosesItsStreamAndNobodyElse) {
  Start({.max_model_len = 4096, .kv_blocks = 2048, .max_running = 256}, /*max_queued_bytes=*/4096,
        /*moe_layers=*/16);
  Client deaf(address());
  deaf.Hello();
  // More than gRPC's windows and the kernel's buffers take.
  for (uint64_t id = 1; id <= 200; ++id) deaf.SubmitTraced(id, 1000);
  ASSERT_TRUE(slow_.WaitForNotificationWithTimeout(kPatience));
  // Up to then requests come in.
  ASSERT_TRUE(Until([&] { return service_->streams() == 0; }));
  EXPECT_TRUE(BecomesIdle());
  Client other(address());
  other.Hello();
  other.Submit(1, 10);
  EXPECT_EQ((other.Tokens(1)[{1, 0}].size()), 10u);
}

TEST_F(RouterServiceTest, StateIsPushedAndDrainLetsRequestsFinish) {
  Start();
  Client client(address());
  client.Hello();
  client.UntilState(false);
  service_->SetState(false, "layer 3: experts 17 have no live worker", false);
  EXPECT_THAT(client.UntilState(false).missing(), HasSubstr("layer 3"));
  service_->SetState(true, "", false);
  service_->SetState(true, "", false);  // no change: not sent again
  client.UntilState(true);
  runner_->Hold();
  client.Submit(1, 10);
  runner_->AwaitHeld();
  absl::Notification drained;
  service_->SetState(false, "draining", true);
  engine_->BeginDrain([&] { drained.Notify(); });
  EXPECT_TRUE(client.UntilState(false).draining());
  client.Submit(2, 10);
  auto refused = client.Tokens(1);
  EXPECT_EQ((refused[{2, 0}].at(0).code()), static_cast<int>(absl::StatusCode::kUnavailable));
  runner_->Release();
  ASSERT_TRUE(drained.WaitForNotificationWithTimeout(kPatience));
  service_->EndStreams();
  EXPECT_EQ((client.Tokens(1)[{1, 0}].size()), 10u);
  EXPECT_TRUE(client.Finish().ok());
}

TEST_F(RouterServiceTest, DescribesExperts) {
  Start();
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
  v1::RouterExperts response;
  auto stub = pb::Router::NewStub(*rpc::Connect(address(), {}));
  ASSERT_TRUE(stub->DescribeExperts(&context, {}, &response).ok());
  EXPECT_EQ(response.router_id(), "router-1");
  EXPECT_EQ(response.workers(0).address(), "w");
}

TEST(Convert, EveryFieldOfARequestAndOfAnEventTravels) {
  pb::Submit submit;
  submit.set_request(3), submit.set_attempt(2), submit.set_max_tokens(9), submit.set_min_tokens(1);
  submit.set_top_logprobs(4), submit.set_prompt_logprobs(true), submit.set_priority(5);
  submit.set_return_routed_experts(true), submit.set_fair_key("f"), submit.set_cache_salt("s");
  submit.set_trace_id("t"), submit.add_stop_token_ids(8), submit.set_deadline_left_us(1'000'000);
  pb::RouterSampling& s = *submit.mutable_sampling();
  s.set_temperature(0.5f), s.set_top_k(6), s.set_top_p(0.7f), s.set_min_p(0.1f), s.set_seed(11);
  s.set_repetition_penalty(1.1f), s.set_presence_penalty(0.2f), s.set_frequency_penalty(0.3f);
  (*s.mutable_logit_bias())[9] = -1.0f, (*s.mutable_logit_bias())[2] = 4.0f;
  const EngineRequest r = FromProto(submit);
  EXPECT_TRUE(r.request == 3 && r.attempt == 2 && r.max_tokens == 9 && r.min_tokens == 1);
  EXPECT_TRUE(r.top_logprobs == 4 && r.prompt_logprobs && r.priority == 5 && r.n == 1);
  EXPECT_TRUE(r.return_routed_experts && r.fair_key == "f" && r.cache_salt == "s");
  EXPECT_TRUE(r.trace_id == "t" && r.stop_token_ids == std::vector<int32_t>{8});
  EXPECT_TRUE(r.deadline > absl::Now() && r.deadline < absl::Now() + absl::Seconds(2));
  EXPECT_TRUE(r.sampling.temperature == 0.5f && r.sampling.top_k == 6 && r.sampling.seed == 11);
  EXPECT_TRUE(r.sampling.top_p == 0.7f && r.sampling.min_p == 0.1f && !r.sampling.ignore_eos);
  EXPECT_TRUE(r.sampling.repetition_penalty == 1.1f && r.sampling.presence_penalty == 0.2f);
  EXPECT_EQ(r.sampling.frequency_penalty, 0.3f);
  EXPECT_THAT(r.sampling.logit_bias,
              ::testing::ElementsAre(std::pair(2, 4.0f), std::pair(9, -1.0f)));

  TokenEvent event{.request = 3, .attempt = 2, .choice = 1, .index = 4, .id = 77, .logprob = -0.5f};
  event.top = {{.id = 77, .logprob = -0.5f}};
  event.finish = Finish::kStop;
  event.routing_first_position = 6;
  event.routed_experts = {1, 2}, event.routed_weights = {0.25f, 0.75f};
  event.prompt_logprobs = {{.position = 1, .logprob = -2, .top = {{.id = 5, .logprob = -1}}}};
  event.cached_tokens = 32;
  pb::Token token;
  ToProto(event, &token);
  EXPECT_TRUE(token.request() == 3 && token.attempt() == 2 && token.choice() == 1);
  EXPECT_TRUE(token.index() == 4 && token.id() == 77 && token.logprob() == -0.5f);
  EXPECT_TRUE(token.top(0).id() == 77 && token.finish() == pb::Token::STOP);
  EXPECT_TRUE(token.routing_first_position() == 6 && token.routing_experts(1) == 2);
  EXPECT_TRUE(token.routing_weights(1) == 0.75f && token.cached_tokens() == 32);
  EXPECT_TRUE(token.prompt_logprobs(0).top(0).id() == 5 && token.code() == 0);
}

}  // namespace
}  // namespace switchyard::router
