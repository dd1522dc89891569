#include "gateway/upstream/router_client.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "services/rpc/channel.h"
#include "services/rpc/server.h"
#include "switchyard/internal/v1/router.grpc.pb.h"

namespace switchyard::gateway {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace pb = internal::v1;

constexpr absl::Duration kPatience = absl::Seconds(20);

// A router that answers as its test says.
class FakeRouter : public pb::Router::Service {
 public:
  using Stream = grpc::ServerReaderWriter<pb::FromRouter, pb::ToRouter>;

  explicit FakeRouter(std::string fingerprint = "text-1", std::string listen = "127.0.0.1:0")
      : fingerprint_(std::move(fingerprint)) {
    auto server = rpc::Server::Start({.listen = std::move(listen)},
                                     [this](grpc::ServerBuilder& b) { b.RegisterService(this); });
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = std::move(server).value();
  }
  ~FakeRouter() override { server_->Shutdown(absl::ZeroDuration()); }

  const std::string& address() const { return server_->address(); }
  void SayHelloWith(int max_model_len, std::string numerics_id) {  // on streams that come now
    absl::MutexLock lock(&mutex_);
    max_model_len_ = max_model_len, numerics_id_ = std::move(numerics_id);
  }
  void PromiseHeartbeats(int ms) { heartbeat_ms_ = ms; }  // on streams that come now
  void StopReading() { deaf_ = true; }                    // on streams that come now

  // Waits for the n-th submit or cancel since the start, counted from 0.
  pb::ToRouter Received(size_t n) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&] { return received_.size() > n; };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&there), kPatience));
    return there() ? received_[n] : pb::ToRouter();
  }
  void Send(const pb::FromRouter& message) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&] { return stream_ != nullptr; };
    ASSERT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&there), kPatience));
    stream_->Write(message);
  }
  void SendToken(uint64_t request, int choice, int index, pb::Token::Finish finish) {
    pb::FromRouter message;
    pb::Token& token = *message.mutable_step()->add_tokens();
    token.set_request(request), token.set_choice(choice), token.set_index(index);
    token.set_id(100 + index), token.set_finish(finish);
    Send(message);
  }
  void SendState(bool ready, const std::string& missing, bool draining = false) {
    pb::FromRouter message;
    message.mutable_state()->set_ready(ready);
    message.mutable_state()->set_missing(missing);
    message.mutable_state()->set_draining(draining);
    Send(message);
  }
  void BreakStream() {
    absl::MutexLock lock(&mutex_);
    if (context_ != nullptr) context_->TryCancel();
  }

  grpc::Status Serve(grpc::ServerContext* context, Stream* stream) override {
    pb::ToRouter message;
    if (!stream->Read(&message) || !message.has_hello()) return grpc::Status::CANCELLED;
    if (message.hello().text_fingerprint() != fingerprint_) {
      return {grpc::StatusCode::FAILED_PRECONDITION,
              "text fingerprint " + fingerprint_ + " here, " + message.hello().text_fingerprint() +
                  " at the gateway"};
    }
    pb::FromRouter hello;
    hello.mutable_hello()->set_router_id(address());
    hello.mutable_hello()->set_text_fingerprint(fingerprint_);
    hello.mutable_hello()->set_model_fingerprint("model-1");
    {
      absl::MutexLock lock(&mutex_);
      hello.mutable_hello()->set_max_model_len(max_model_len_);
      hello.mutable_hello()->set_numerics_id(numerics_id_);
    }
    hello.mutable_hello()->set_heartbeat_ms(heartbeat_ms_);
    hello.mutable_hello()->set_vocab(512);
    hello.mutable_hello()->set_top_k(2);
    hello.mutable_hello()->add_moe_layers(1);
    stream->Write(hello);
    pb::FromRouter state;
    state.mutable_state()->set_ready(true);
    stream->Write(state);
    {
      absl::MutexLock lock(&mutex_);
      stream_ = stream, context_ = context;
    }
    if (deaf_) {
      absl::MutexLock lock(&mutex_);
      const auto gone = [&] { return context->IsCancelled(); };
      while (!gone()) mutex_.AwaitWithTimeout(absl::Condition(&gone), absl::Milliseconds(5));
    }
    while (stream->Read(&message)) {
      absl::MutexLock lock(&mutex_);
      received_.push_back(message);
    }
    absl::MutexLock lock(&mutex_);
    if (stream_ == stream) stream_ = nullptr, context_ = nullptr;  // not that of a newer one
    return grpc::Status::OK;
  }
  grpc::Status DescribeExperts(grpc::ServerContext*, const pb::DescribeExpertsRequest*,
                               v1::RouterExperts* response) override {
    response->set_router_id(address());
    return grpc::Status::OK;
  }

 private:
  const std::string fingerprint_;
  std::atomic<bool> deaf_ = false;
  std::atomic<int> heartbeat_ms_ = 0;
  std::unique_ptr<rpc::Server> server_;
  absl::Mutex mutex_;
  int max_model_len_ = 64;
  std::string numerics_id_ = "numerics-1";
  std::vector<pb::ToRouter> received_;
  Stream* stream_ = nullptr;
  grpc::ServerContext* context_ = nullptr;
};

// "choice.index" of each token, "choice:finish" after a last one, "broken" at the end.
class Recorder : public TokenListener {
 public:
  void OnToken(const pb::Token& token) override {
    std::string event = std::to_string(token.choice()) + "." + std::to_string(token.index());
    if (token.finish() != pb::Token::NONE) event += ":" + pb::Token::Finish_Name(token.finish());
    Add(event);
  }
  void OnBroken(const Loss& loss) override {
    {
      absl::MutexLock lock(&mutex_);
      loss_ = loss;
    }
    Add("broken");
  }
  Loss loss() {
    absl::MutexLock lock(&mutex_);
    return loss_;
  }
  std::vector<std::string> Wait(size_t n) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&] { return events_.size() >= n; };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&there), kPatience));
    return events_;
  }
  std::vector<std::string> events() { return Wait(0); }

 private:
  void Add(std::string event) {
    absl::MutexLock lock(&mutex_);
    events_.push_back(std::move(event));
  }
  absl::Mutex mutex_;
  std::vector<std::string> events_;
  Loss loss_;
};

// Whether the client lets go of a listener; what is just being told still holds it for a moment.
bool Released(const std::shared_ptr<Recorder>& recorder) {
  const absl::Time end = absl::Now() + kPatience;
  while (recorder.use_count() > 1 && absl::Now() < end) std::this_thread::yield();
  return recorder.use_count() == 1;
}

class RouterClientTest : public ::testing::Test {
 protected:
  void Connect(std::vector<std::string> addresses, size_t max_queued = 4096,
               RouterClientOptions options = {}) {
    options.gateway_id = "gateway-1";
    options.text_fingerprint = "text-1";
    options.addresses = std::move(addresses);
    options.max_queued_writes = max_queued;
    options.backoff_min = absl::Milliseconds(5);
    options.backoff_max = absl::Milliseconds(50);
    client_ = std::make_unique<RouterClient>(options, channels_, [this] {
      absl::MutexLock lock(&mutex_);
      ++changes_;
    });
  }
  // Waits until the state is as `wanted` says.
  RoutersState Until(const std::function<bool(const RoutersState&)>& wanted) {
    const absl::Time end = absl::Now() + kPatience;
    RoutersState state = client_->state();
    absl::MutexLock lock(&mutex_);
    while (!wanted(state) && absl::Now() < end) {
      const auto changed = [&] { return changes_ > seen_; };
      mutex_.AwaitWithDeadline(absl::Condition(&changed), end);
      seen_ = changes_;
      mutex_.Unlock();
      state = client_->state();
      mutex_.Lock();
    }
    EXPECT_TRUE(wanted(state)) << state.missing;
    return state;
  }
  RoutersState UntilReady() {
    return Until([](const RoutersState& s) { return s.ready; });
  }
  uint64_t MustSubmit(std::shared_ptr<TokenListener> listener, int n = 1) {
    pb::Submit submit;
    submit.set_n(n);
    submit.set_max_tokens(4);
    auto handle = client_->Submit(submit, std::move(listener));
    EXPECT_TRUE(handle.ok()) << handle.status();
    return handle.value_or(0);
  }

  RouterClient::ChannelFactory channels_ = [](const std::string& address) {
    return *rpc::Connect(address, {});
  };
  absl::Mutex mutex_;
  int changes_ = 0, seen_ = 0;
  std::unique_ptr<RouterClient> client_;
};

TEST_F(RouterClientTest, TokensComeInOrderAndEachChoiceEndsOnce) {
  FakeRouter router;
  Connect({router.address()});
  UntilReady();
  ASSERT_TRUE(client_->model().has_value());
  EXPECT_EQ(client_->model()->max_model_len, 64);
  EXPECT_THAT(client_->model()->moe_layers, ElementsAre(1));
  auto recorder = std::make_shared<Recorder>();
  const uint64_t handle = MustSubmit(recorder, 2);
  EXPECT_EQ(router.Received(0).submit().request(), handle);
  EXPECT_EQ(client_->state().routers[0].requests, 1);
  router.SendToken(handle, 0, 0, pb::Token::NONE);
  router.SendToken(handle, 1, 0, pb::Token::STOP);
  router.SendToken(handle, 1, 1, pb::Token::LENGTH);      // after its end: dropped
  router.SendToken(handle + 7, 0, 0, pb::Token::LENGTH);  // nobody's: dropped
  router.SendToken(handle, 0, 1, pb::Token::LENGTH);
  EXPECT_THAT(recorder->Wait(3), ElementsAre("0.0", "1.0:STOP", "0.1:LENGTH"));
  EXPECT_EQ(client_->state().routers[0].requests, 0);
}

TEST_F(RouterClientTest, CancelReachesTheRouterAndReleasesTheListener) {
  FakeRouter router;
  Connect({router.address()});
  UntilReady();
  auto recorder = std::make_shared<Recorder>();
  const uint64_t handle = MustSubmit(recorder);
  client_->Cancel(handle);
  client_->Cancel(handle);
  EXPECT_TRUE(Released(recorder));
  EXPECT_EQ(router.Received(1).cancel().request(), handle);
  // A later request's token proves that the cancelled one's went nowhere.
  auto next = std::make_shared<Recorder>();
  const uint64_t second = MustSubmit(next);
  router.SendToken(handle, 0, 0, pb::Token::CANCELLED);
  router.SendToken(second, 0, 0, pb::Token::STOP);
  next->Wait(1);
  EXPECT_THAT(recorder->events(), ElementsAre());
  EXPECT_TRUE(router.Received(2).has_submit()) << "a second cancel was sent";
}

TEST_F(RouterClientTest, OneChoiceIsCancelledAloneAndTheLastOneWithItsRequest) {
  FakeRouter router;
  Connect({router.address()});
  UntilReady();
  auto recorder = std::make_shared<Recorder>();
  const uint64_t handle = MustSubmit(recorder, 3);
  client_->CancelChoice(handle, 1);
  client_->CancelChoice(handle, 1);
  client_->CancelChoice(handle, 7);
  const pb::CancelRequest one = router.Received(1).cancel();
  EXPECT_EQ(one.request(), handle);
  ASSERT_TRUE(one.has_choice());
  EXPECT_EQ(one.choice(), 1);
  router.SendToken(handle, 1, 0, pb::Token::CANCELLED);  // dropped
  router.SendToken(handle, 0, 0, pb::Token::STOP);
  EXPECT_THAT(recorder->Wait(1), ElementsAre("0.0:STOP"));
  EXPECT_EQ(client_->state().routers[0].requests, 1);
  client_->CancelChoice(handle, 2);
  EXPECT_TRUE(Released(recorder));
  EXPECT_FALSE(router.Received(2).cancel().has_choice());
  // Load until the router has ended it.
  EXPECT_EQ(client_->state().routers[0].requests, 1);
  router.SendToken(handle, 2, 0, pb::Token::CANCELLED);
  auto next = std::make_shared<Recorder>();
  router.SendToken(MustSubmit(next), 0, 0, pb::Token::STOP);
  next->Wait(1);
  EXPECT_EQ(client_->state().routers[0].requests, 0);
  EXPECT_THAT(recorder->events(), ElementsAre("0.0:STOP"));
}

TEST_F(RouterClientTest, BrokenStreamEndsItsRequestsAndIsMadeAnew) {
  FakeRouter router;
  Connect({router.address()});
  UntilReady();
  auto recorder = std::make_shared<Recorder>();
  const uint64_t handle = MustSubmit(recorder, 2);
  router.Received(0);
  router.SendToken(handle, 0, 0, pb::Token::STOP);
  recorder->Wait(1);
  router.BreakStream();
  EXPECT_THAT(recorder->Wait(2), ElementsAre("0.0:STOP", "broken"));
  UntilReady();
  auto again = std::make_shared<Recorder>();
  const uint64_t second = MustSubmit(again);
  client_->Cancel(handle);  // of the old stream: ignored
  router.Received(1);
  router.SendToken(second, 0, 0, pb::Token::STOP);
  EXPECT_THAT(again->Wait(1), ElementsAre("0.0:STOP"));
}

TEST_F(RouterClientTest, ConnectsToARouterThatStartsLater) {
  std::string address;
  {
    FakeRouter router;
    address = router.address();
  }
  Connect({address});
  auto refused = client_->Submit({}, std::make_shared<Recorder>());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr(address));
  Until([](const RoutersState& s) { return s.missing.find("refused") != std::string::npos; });
  FakeRouter router("text-1", address);
  UntilReady();
}

TEST_F(RouterClientTest, RefusalNamesBothSides) {
  FakeRouter router("text-2");
  Connect({router.address()});
  const RoutersState state =
      Until([](const RoutersState& s) { return s.missing.find("refused") != std::string::npos; });
  EXPECT_THAT(state.missing, AllOf(HasSubstr("text-1"), HasSubstr("text-2")));
  EXPECT_FALSE(client_->model().has_value());
}

TEST_F(RouterClientTest, TheModelIsWhatAllConnectedRoutersHave) {
  FakeRouter a;
  auto b = std::make_unique<FakeRouter>();
  b->SayHelloWith(48, "numerics-2");
  Connect({a.address(), b->address()});
  Until([](const RoutersState& s) { return s.routers[0].ready && s.routers[1].ready; });
  EXPECT_EQ(client_->model()->max_model_len, 48);
  EXPECT_EQ(client_->model()->numerics_id, "numerics-1,numerics-2");
  b = nullptr;
  Until([](const RoutersState& s) { return !s.routers[1].ready; });
  EXPECT_EQ(client_->model()->max_model_len, 64);
  EXPECT_EQ(client_->model()->numerics_id, "numerics-1");
}

TEST_F(RouterClientTest, StateOfTheRouterIsShownAndTheLeastLoadedReadyOneTaken) {
  FakeRouter a, b;
  Connect({a.address(), b.address()});
  Until([](const RoutersState& s) { return s.routers[0].ready && s.routers[1].ready; });
  auto recorder = std::make_shared<Recorder>();
  const auto loads = [this] {
    const RoutersState state = client_->state();
    return std::vector<int>{state.routers[0].requests, state.routers[1].requests};
  };
  MustSubmit(recorder), MustSubmit(recorder);
  EXPECT_THAT(loads(), ElementsAre(1, 1));
  a.SendState(false, "layer 3: experts 17, 40–63 have no live worker");
  const RoutersState state = Until([](const RoutersState& s) { return !s.routers[0].ready; });
  EXPECT_THAT(state.routers[0].state, HasSubstr("layer 3: experts 17"));
  for (int i = 0; i < 3; ++i) MustSubmit(recorder);
  EXPECT_THAT(loads(), ElementsAre(1, 4));
  b.SendState(true, "", /*draining=*/true);
  const RoutersState none = Until([](const RoutersState& s) { return !s.ready; });
  EXPECT_THAT(none.missing, AllOf(HasSubstr("layer 3"), HasSubstr("draining")));
}

TEST_F(RouterClientTest, RouterThatDoesNotReadFillsABoundedQueue) {
  FakeRouter router;
  router.StopReading();
  Connect({router.address()}, /*max_queued=*/8);
  UntilReady();
  auto recorder = std::make_shared<Recorder>();
  pb::Submit submit;
  for (int i = 0; i < 256 * 1024; ++i) submit.add_prompt(1'000'000);
  absl::Status status;
  int accepted = 0;
  // gRPC's own windows and the kernel's buffers take some, the queue eight more.
  for (; accepted < 100 && status.ok(); ++accepted) {
    status = client_->Submit(submit, recorder).status();
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_GT(accepted, 8);
  EXPECT_EQ(client_->state().routers[0].requests, accepted - 1);
  client_.reset();
  EXPECT_EQ(recorder->events().size(), static_cast<size_t>(accepted - 1));
}

TEST_F(RouterClientTest, ARequestWaitsForARouterWhereTheLastOneHasJustGone) {
  FakeRouter router;
  Connect({router.address()}, 1, {.router_wait = kPatience});
  UntilReady();
  router.SendState(false, "layer 3");
  Until([](const RoutersState& s) { return !s.ready; });
  auto recorder = std::make_shared<Recorder>(), other = std::make_shared<Recorder>();
  const uint64_t id = MustSubmit(recorder);
  EXPECT_EQ(client_->Submit({}, other).status().code(), absl::StatusCode::kResourceExhausted);
  client_->Cancel(id);
  EXPECT_TRUE(Released(recorder));
  const uint64_t second = MustSubmit(other);  // in its place
  router.SendState(true, "");
  EXPECT_EQ(router.Received(0).submit().request(), second);
  router.SendToken(second, 0, 0, pb::Token::STOP);
  EXPECT_THAT(other->Wait(1), ElementsAre("0.0:STOP"));
}

TEST_F(RouterClientTest, TheWaitForARouterIsBounded) {
  FakeRouter router;
  Connect({"127.0.0.1:1"}, 4096, {.router_wait = kPatience});
  auto recorder = std::make_shared<Recorder>();
  // There has never been one.
  EXPECT_EQ(client_->Submit({}, recorder).status().code(), absl::StatusCode::kUnavailable);
  Connect({router.address()}, 4096, {.router_wait = absl::Milliseconds(30)});
  UntilReady();
  router.SendState(false, "layer 3");
  Until([](const RoutersState& s) { return !s.ready; });
  pb::Submit again;
  again.set_attempt(2);
  ASSERT_TRUE(client_->Submit(again, recorder, {.continued = true}).ok());
  EXPECT_THAT(recorder->Wait(1), ElementsAre("broken"));
  const Loss loss = recorder->loss();
  EXPECT_EQ(loss.reason, Loss::Reason::kNoRouter);
  EXPECT_EQ(loss.attempt, 2u);
  EXPECT_EQ(loss.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(loss.status.message()), HasSubstr("layer 3"));
  EXPECT_TRUE(Released(recorder));
}

TEST_F(RouterClientTest, ARouterThatBreaksItsPromiseToBeHeardIsLost) {
  FakeRouter silent, quiet;  // the other one promises nothing
  silent.PromiseHeartbeats(10);
  Connect({silent.address(), quiet.address()}, 4096,
          {.router_silence_max = absl::Milliseconds(40)});
  auto lost = std::make_shared<Recorder>(), kept = std::make_shared<Recorder>();
  silent.Send({});  // it is connected
  const absl::Time end = absl::Now() + kPatience;
  while (lost->events().empty() && absl::Now() < end) {
    // It comes back and falls silent again.
    client_->Submit({}, lost).status().IgnoreError();
    std::this_thread::yield();
  }
  EXPECT_EQ(lost->events()[0], "broken");
  EXPECT_EQ(lost->loss().reason, Loss::Reason::kSilent);
  EXPECT_EQ(lost->loss().numerics.numerics_id, "numerics-1");
  EXPECT_THAT(std::string(lost->loss().status.message()), HasSubstr(silent.address()));
  EXPECT_TRUE(client_->state().routers[1].ready);
}

TEST_F(RouterClientTest, AContinuedRequestGoesToARouterOfItsNumericsAndLength) {
  FakeRouter a, b;
  b.SayHelloWith(64, "numerics-2");
  Connect({a.address(), b.address()});
  Until([](const RoutersState& s) { return s.routers[0].ready && s.routers[1].ready; });
  auto recorder = std::make_shared<Recorder>();
  pb::Submit submit;
  submit.set_n(2);
  submit.set_max_tokens(60);
  submit.add_choices()->set_ended(true);
  submit.add_choices();
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(
        client_
            ->Submit(submit, recorder,
                     {.continued = true,
                      .like = {.model_fingerprint = "model-1", .numerics_id = "numerics-2"}})
            .ok());
  }
  EXPECT_EQ(client_->state().routers[1].requests, 3);
  b.Received(2);
  b.SendToken(b.Received(0).submit().request(), 1, 7, pb::Token::STOP);  // its other choice is over
  EXPECT_THAT(recorder->Wait(1), ElementsAre("1.7:STOP"));
  EXPECT_EQ(client_->state().routers[1].requests, 2);
  const auto none = client_->Submit(
      submit, recorder,
      {.continued = true, .like = {.model_fingerprint = "model-1", .numerics_id = "numerics-3"}});
  EXPECT_THAT(
      std::string(none.status().message()),
      AllOf(HasSubstr("numerics-3"), HasSubstr("numerics-2"), HasSubstr("--allow-mixed-numerics")));
  submit.set_max_tokens(65);
  EXPECT_EQ(client_->Submit(submit, recorder, {.continued = true}).status().code(),
            absl::StatusCode::kUnavailable);
  Connect({a.address(), b.address()}, 4096, {.allow_mixed_numerics = true});
  UntilReady();
  submit.set_max_tokens(4);
  EXPECT_TRUE(client_
                  ->Submit(submit, recorder,
                           {.continued = true,
                            .like = {.model_fingerprint = "model-1", .numerics_id = "numerics-3"}})
                  .ok());
}

TEST_F(RouterClientTest, ExpertsOfAllRoutersAreGathered) {
  FakeRouter a, b;
  Connect({a.address(), b.address()});
  Until([](const RoutersState& s) { return s.routers[0].ready && s.routers[1].ready; });
  absl::Notification done;
  std::vector<v1::RouterExperts> answers;
  client_->DescribeExperts(kPatience, [&](std::vector<v1::RouterExperts> got) {
    answers = std::move(got);
    done.Notify();
  });
  ASSERT_TRUE(done.WaitForNotificationWithTimeout(kPatience));
  EXPECT_EQ(answers.size(), 2u);
}

TEST_F(RouterClientTest, DestructorBreaksWhatIsInFlight) {
  FakeRouter router;
  Connect({router.address()});
  UntilReady();
  auto recorder = std::make_shared<Recorder>();
  MustSubmit(recorder);
  client_.reset();
  EXPECT_THAT(recorder->events(), ElementsAre("broken"));
}

TEST_F(RouterClientTest, StopBreaksWhatIsInFlightAndConnectsNoMore) {
  FakeRouter router;
  Connect({router.address()});
  UntilReady();
  auto recorder = std::make_shared<Recorder>();
  MustSubmit(recorder);
  client_->Stop();
  EXPECT_THAT(recorder->events(), ElementsAre("broken"));
  EXPECT_EQ(client_->Submit({}, std::make_shared<Recorder>()).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_FALSE(client_->state().ready);
  client_->Stop();
}

// Counts the contexts of calls; each goes when the client has, or after a while.
struct Contexts {
  std::atomic<int> made = 0, gone = 0;
  absl::Notification client_gone;
};

struct ContextEnd : grpc::experimental::Interceptor {
  explicit ContextEnd(Contexts& c) : contexts(c) { ++contexts.made; }
  ~ContextEnd() override {
    contexts.client_gone.WaitForNotificationWithTimeout(absl::Milliseconds(100));
    ++contexts.gone;
  }
  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    methods->Proceed();
  }
  Contexts& contexts;
};

struct ContextEnds : grpc::experimental::ClientInterceptorFactoryInterface {
  explicit ContextEnds(Contexts& c) : contexts(c) {}
  grpc::experimental::Interceptor* CreateClientInterceptor(
      grpc::experimental::ClientRpcInfo*) override {
    return new ContextEnd(contexts);
  }
  Contexts& contexts;
};

// Else a thread of gRPC's might end the last use of its channels and join itself.
TEST_F(RouterClientTest, DestructorLeavesNothingWithGrpc) {
  FakeRouter router;
  Contexts contexts;
  channels_ = [&](const std::string& address) {
    std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> makers;
    makers.push_back(std::make_unique<ContextEnds>(contexts));
    return grpc::experimental::CreateCustomChannelWithInterceptors(
        address, grpc::InsecureChannelCredentials(), rpc::DefaultChannelArguments(),
        std::move(makers));
  };
  Connect({router.address()});
  UntilReady();
  client_->DescribeExperts(kPatience, [](auto) {});
  client_.reset();
  const int gone = contexts.gone;
  contexts.client_gone.Notify();
  EXPECT_GE(contexts.made, 2);
  EXPECT_EQ(gone, contexts.made);
}

TEST_F(RouterClientTest, RoutersAreFollowedAsTheirAddressesChange) {
  FakeRouter first, second;
  Connect({});
  EXPECT_THAT(client_->state().missing, HasSubstr("no router's address is known"));
  client_->Follow({first.address()});
  UntilReady();
  auto recorder = std::make_shared<Recorder>();
  const uint64_t handle = MustSubmit(recorder);
  EXPECT_EQ(first.Received(0).submit().request(), handle);
  client_->Follow({second.address()});
  Until([](const RoutersState& s) { return s.routers.size() == 2 && s.routers[1].ready; });
  EXPECT_FALSE(client_->state().routers[0].ready) << "it is left, but for its request";
  auto other = std::make_shared<Recorder>();
  const uint64_t later = MustSubmit(other);
  EXPECT_EQ(second.Received(0).submit().request(), later);
  first.SendToken(handle, 0, 0, pb::Token::NONE);
  first.SendToken(handle, 0, 1, pb::Token::LENGTH);
  EXPECT_THAT(recorder->Wait(2), ElementsAre("0.0", "0.1:LENGTH"));
  Until([](const RoutersState& s) { return s.routers.size() == 1; });
  // It comes back, in its old place.
  client_->Follow({first.address(), second.address()});
  Until([](const RoutersState& s) { return s.routers.size() == 2 && s.routers[0].ready; });
  EXPECT_EQ(client_->state().routers[0].address, first.address());
  second.SendToken(later, 0, 0, pb::Token::STOP);
  EXPECT_THAT(other->Wait(1), ElementsAre("0.0:STOP"));
}

}  // namespace
}  // namespace switchyard::gateway
