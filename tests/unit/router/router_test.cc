// A router assembled of its real parts, with the experts in this process and over a socket.
#include "router/router.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "expert-worker/held_weights.h"
#include "expert-worker/worker.h"
#include "expert-worker/worker_metrics.h"
#include "gateway/upstream/router_client.h"
#include "services/model/text_fingerprint.h"
#include "services/rpc/channel.h"
#include "services/rpc/server.h"

namespace switchyard::router {
namespace {

using ::testing::HasSubstr;
namespace pb = internal::v1;

constexpr absl::Duration kPatience = absl::Seconds(60);

std::string Model(const std::string& name) {
  const char* root = std::getenv("SWITCHYARD_SOURCE_DIR");
  return std::string(root == nullptr ? "." : root) + "/" + name;
}

// Collects the ids of one choice.
class Collector : public gateway::TokenListener {
 public:
  void OnToken(const pb::Token& token) override {
    absl::MutexLock lock(&mutex_);
    if (token.index() >= 0) ids_.push_back(token.id());
    experts_ += token.routing_experts_size();
    if (token.finish() == pb::Token::NONE) return;
    finish_ = token.finish();
    error_ = token.message();
    done_.Notify();
  }
  void OnBroken(const gateway::Loss& loss) override {
    absl::MutexLock lock(&mutex_);
    error_ = loss.status.ToString();
    done_.Notify();
  }
  std::vector<int32_t> Await() {
    EXPECT_TRUE(done_.WaitForNotificationWithTimeout(kPatience));
    absl::MutexLock lock(&mutex_);
    EXPECT_EQ(finish_, pb::Token::LENGTH) << error_;
    return ids_;
  }
  int experts() {
    absl::MutexLock lock(&mutex_);
    return experts_;
  }

 private:
  absl::Mutex mutex_;
  absl::Notification done_;
  std::vector<int32_t> ids_;
  int experts_ = 0;
  pb::Token::Finish finish_ = pb::Token::NONE;
  std::string error_;
};

class RouterTest : public ::testing::Test {
 protected:
  RouterTest() {
    auto model = OpenModel(dir_);
    EXPECT_TRUE(model.ok()) << model.status();
    if (model.ok()) model_ = *std::move(model);
  }
  std::unique_ptr<worker::Worker> MakeWorker(const std::string& experts, DType dtype,
                                             kernels::ThreadPool* pool) {
    auto made = worker::Worker::Create(model_.spec, model_.fingerprint, model_.source,
                                       {.experts = experts, .dtype = dtype}, pool);
    EXPECT_TRUE(made.ok()) << made.status();
    return std::move(made).value();
  }
  RouterOptions Options(DType dtype) {
    return {.model_dir = dir_, .dtype = dtype, .threads = 1, .kv_bytes = 8 << 20};
  }
  // Asks through a gateway's client and gives the tokens.
  std::vector<int32_t> Generate(const gateway::RouterClient::ChannelFactory& channels) {
    absl::Mutex mutex;
    int changes = 0;
    gateway::RouterClient client(
        {.gateway_id = "g", .text_fingerprint = *TextFingerprint(dir_), .addresses = {"router"}},
        channels, [&] {
          absl::MutexLock lock(&mutex);
          ++changes;
        });
    const absl::Time end = absl::Now() + kPatience;
    while (!client.state().ready && absl::Now() < end) {
      absl::MutexLock lock(&mutex);
      const auto changed = [&] { return changes > 0; };
      mutex.AwaitWithTimeout(absl::Condition(&changed), absl::Milliseconds(50));
      changes = 0;
    }
    EXPECT_TRUE(client.state().ready) << client.state().missing;
    pb::Submit submit;
    for (int t : {5, 17, 300, 41}) submit.add_prompt(t);
    submit.mutable_sampling()->set_top_p(1);
    submit.mutable_sampling()->set_repetition_penalty(1);
    submit.mutable_sampling()->set_ignore_eos(true);
    submit.set_max_tokens(12);
    submit.set_n(1);
    submit.set_top_logprobs(-1);
    submit.set_return_routed_experts(true);
    auto collector = std::make_shared<Collector>();
    EXPECT_TRUE(client.Submit(submit, collector).ok());
    std::vector<int32_t> ids = collector->Await();
    EXPECT_GT(collector->experts(), 0);
    return ids;
  }

  const std::string dir_ = Model("models/tiny-r1");
  OpenedModel model_;
};

TEST_F(RouterTest, LocalAndRemoteWorkersGiveTheSameTokens) {
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    telemetry::Metrics metrics;
    kernels::ThreadPool pool(2);
    auto local = MakeWorker("", dtype, &pool);
    ASSERT_TRUE(worker::CheckHeldWeights(model_.spec, *model_.source, local->hello(), {}).ok());
    auto embedded = Router::Create(Options(dtype), {.model = &model_,
                                                    .pool = &pool,
                                                    .workers = {{"local", local.get()}},
                                                    .metrics = &metrics});
    ASSERT_TRUE(embedded.ok()) << embedded.status();
    const std::vector<int32_t> expected = Generate([&](const std::string&) {
      return (*embedded)->server().InProcessChannel(rpc::DefaultChannelArguments());
    });
    EXPECT_EQ(expected.size(), 12u);
    EXPECT_THAT(metrics.Render(),
                ::testing::AllOf(
                    HasSubstr("switchyard_router_output_tokens_total{service=\"router\"} 12"),
                    HasSubstr("switchyard_router_worker_up{service=\"router\",worker=\"local\"} 1"),
                    HasSubstr("switchyard_router_expert_imbalance_ratio{layer=\"1\"")));

    std::vector<std::unique_ptr<worker::Worker>> workers;
    std::vector<std::unique_ptr<rpc::Server>> servers;
    RouterOptions options = Options(dtype);
    options.listen = "127.0.0.1:0";
    for (const char* experts : {"0-40", "41-127"}) {
      workers.push_back(MakeWorker(experts, dtype, nullptr));
      auto server = rpc::Server::Start(
          {.listen = "127.0.0.1:0"}, [&](grpc::ServerBuilder& b) { workers.back()->Register(b); });
      ASSERT_TRUE(server.ok()) << server.status();
      workers.back()->Start();
      options.workers.push_back((*server)->address());
      servers.push_back(std::move(*server));
    }
    {
      auto cluster = Router::Create(options, {});
      ASSERT_TRUE(cluster.ok()) << cluster.status();
      const auto got =
          Generate([&](const std::string&) { return *rpc::Connect((*cluster)->address(), {}); });
      EXPECT_EQ(got, expected);
      (*cluster)->BeginDrain();
      EXPECT_TRUE((*cluster)->WaitDrained(kPatience));
      (*cluster)->Stop(absl::Seconds(1));
    }
    for (size_t i = 0; i < workers.size(); ++i) {
      EXPECT_GT(workers[i]->counters().rows, 0u);
      servers[i]->Shutdown(absl::ZeroDuration());
      workers[i]->Stop();
    }
  }
}

TEST(RouterOptions, AWorkerNamedTwiceIsToldBeforeTheModelIsRead) {
  const auto router =
      Router::Create({.model_dir = "/nowhere", .workers = {"a:1", "b:2", "a:1"}}, {});
  EXPECT_EQ(router.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(router.status().message()), "--workers names a:1 twice");
}

TEST_F(RouterTest, ReadinessNamesWhatIsMissing) {
  auto half = MakeWorker("0-63", DType::kBF16, nullptr);
  absl::Notification told;
  std::string missing;
  auto router = Router::Create(Options(DType::kBF16), {.workers = {{"half", half.get()}}},
                               [&](bool ready, const std::string& what) {
                                 EXPECT_FALSE(ready);
                                 missing = what;
                                 told.Notify();
                               });
  ASSERT_TRUE(router.ok()) << router.status();
  ASSERT_TRUE(told.WaitForNotificationWithTimeout(kPatience));
  EXPECT_THAT(missing, HasSubstr("64–127"));
}

TEST_F(RouterTest, WorkerOfAnotherDTypeIsRefusedAndNamed) {
  auto other = MakeWorker("", DType::kF32, nullptr);
  std::string missing;
  auto router = Router::Create(Options(DType::kBF16), {.workers = {{"other", other.get()}}},
                               [&](bool, const std::string& what) { missing = what; });
  ASSERT_TRUE(router.ok()) << router.status();
  EXPECT_THAT(missing, ::testing::AllOf(HasSubstr("float32"), HasSubstr("bfloat16")));
}

TEST_F(RouterTest, WhatCannotBeServedIsRefusedAtStart) {
  RouterOptions options = Options(DType::kBF16);
  options.kv_bytes = int64_t{900} << 40;
  EXPECT_THAT(std::string(Router::Create(options, {}).status().message()), HasSubstr("900.0 TiB"));
  options = Options(DType::kBF16);
  options.model_dir = "/nowhere";
  EXPECT_THAT(std::string(Router::Create(options, {}).status().message()), HasSubstr("/nowhere"));
}

}  // namespace
}  // namespace switchyard::router
