// Experts that move to and from a worker while it serves, by what routers say.
#include <gmock/gmock.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "expert-worker/worker.h"
#include "services/base/status.h"
#include "services/expertwire/link_set.h"
#include "tests/support/faulty_source.h"

namespace switchyard::worker {
namespace {

namespace pb = expertwire::pb;
using expertwire::Answer;
using expertwire::Call;
using expertwire::LinkSet;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using testing::FaultySource;
using ::testing::HasSubstr;

const ModelSpec& Spec() {
  static const ModelSpec spec = testing::MoeSpec({});  // layers 1 and 2 of 12 experts
  return spec;
}

// Two rows for each of these experts of layer 1.
Call MakeCall(uint64_t id, const std::vector<uint32_t>& experts) {
  static expertwire::RowBufferPool pool;
  constexpr uint32_t kRows = 2;
  Call call;
  call.call_id = id;
  call.layer = 1;
  call.rows = kRows;
  call.hidden = static_cast<uint32_t>(Spec().hidden);
  const testing::MoeBatch batch(Spec(), DType::kBF16, kRows, 5);
  call.payload = pool.Take(kRows * call.hidden * 2);
  std::memcpy(call.payload.mutable_data(), batch.x.data(), call.payload.bytes());
  for (const uint32_t expert : experts) {
    call.segments.push_back(
        {expert, 0, pb::GROUP_SUMS, static_cast<uint32_t>(call.row_index.size()), kRows});
    for (uint32_t r = 0; r < kRows; ++r) call.row_index.push_back(r);
  }
  call.weights.assign(call.row_index.size(), 0.5f);
  call.answer_bytes = call.row_index.size() * call.hidden * 2;
  return call;
}

std::string Bytes(const Answer& answer) {
  return std::string(answer.payload.as<char>(), answer.payload.bytes());
}

// Experts [first, last] of both layers.
pb::Assign MakeAssign(uint64_t epoch, uint32_t first, uint32_t last, bool also = false) {
  pb::Assign out;
  out.set_epoch(epoch);
  out.set_also(also);
  for (int layer : {1, 2}) {
    pb::HeldExperts* experts = out.add_experts();
    experts->set_layer(layer);
    experts->add_first(first);
    experts->add_last(last);
  }
  return out;
}

// "0-5" of layer 1.
std::string Held(const pb::Hello& hello) {
  std::string out;
  for (const auto& layer : hello.held()) {
    for (int i = 0; i < layer.first_size() && layer.layer() == 1; ++i) {
      out += fmt::format("{}{}-{}", i == 0 ? "" : ",", layer.first(i), layer.last(i));
    }
  }
  return out;
}

std::unique_ptr<Worker> MakeWorker(std::shared_ptr<FaultySource> source, WorkerOptions options) {
  auto made = Worker::Create(Spec(), "f", std::move(source), options);
  EXPECT_TRUE(made.ok()) << made.status();
  return *std::move(made);
}

class Served {
 public:
  explicit Served(WorkerOptions options) : worker_(MakeWorker(source, std::move(options))) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    worker_->Register(builder);
    server_ = builder.BuildAndStart();
    worker_->Start();
    address = "127.0.0.1:" + std::to_string(port);
  }
  ~Served() {
    server_->Shutdown(std::chrono::system_clock::now());
    worker_->Stop();
  }
  Worker& worker() { return *worker_; }
  const std::shared_ptr<FaultySource> source = std::make_shared<FaultySource>(Spec(), 7);
  std::string address;

 private:
  const std::unique_ptr<Worker> worker_;
  std::unique_ptr<grpc::Server> server_;
};

class Router {
 public:
  explicit Router(Served& served, std::string id = "router")
      : links_({.hello = expertwire::MakeHello(id, served.worker().numerics(), {}, false)}) {
    links_.AddGrpc({.target = served.address});
    EXPECT_TRUE(Until([this] { return link().state() == expertwire::LinkState::kUp; }));
  }
  // A local one.
  explicit Router(Worker& worker)
      : links_({.hello = expertwire::MakeHello("local", worker.numerics(), {}, false)}) {
    links_.AddLocal("local", worker);
  }

  expertwire::ExpertLink& link() { return *links_.links()[0]; }
  std::string held() { return Held(*link().peer()); }
  template <typename Condition>
  bool Until(Condition done) {
    const absl::Time bound = absl::Now() + absl::Seconds(20);
    while (!done()) {
      if (absl::Now() > bound) return false;
      links_.Poll(&events_);
      if (!done()) links_.Wait(absl::Now() + absl::Milliseconds(2));
    }
    return true;
  }
  bool UntilHeld(const std::string& what) {
    return Until([&] { return held() == what; });
  }
  Answer Ask(std::vector<uint32_t> experts) {
    EXPECT_TRUE(link().Send(MakeCall(++calls_, std::move(experts))).ok());
    EXPECT_TRUE(Until([this] { return !events_.empty(); }));
    Answer* answer = events_.empty() ? nullptr : std::get_if<Answer>(&events_[0].event);
    EXPECT_NE(answer, nullptr);
    Answer out = answer != nullptr ? std::move(*answer) : Answer();
    events_.clear();
    return out;
  }

 private:
  LinkSet links_;
  std::vector<LinkSet::Event> events_;
  uint64_t calls_ = 0;
};

// Of a worker that held everything from the start.
std::string Expected(const std::vector<uint32_t>& experts) {
  const auto worker = MakeWorker(std::make_shared<FaultySource>(Spec(), 7), {});
  return Bytes(Router(*worker).Ask(experts));
}

TEST(Migration, TheOldIsServedUntilTheNewPlacementIsAcknowledged) {
  Served served({.experts = "0-3"});
  Router router(served);
  EXPECT_EQ(router.held(), "0-3");
  EXPECT_EQ(router.link().peer()->epoch(), 0u);
  router.link().Assign(MakeAssign(3, 2, 5));
  ASSERT_TRUE(router.Until([&] { return router.link().peer()->epoch() == 3; }));
  EXPECT_EQ(router.held(), "0-5");
  const Answer both = router.Ask({0, 1, 5});
  EXPECT_THAT(both.status, Each(pb::OK));
  EXPECT_EQ(Bytes(both), Expected({0, 1, 5}));
  router.link().AckEpoch(3);
  ASSERT_TRUE(router.UntilHeld("2-5"));
  const Answer gone = router.Ask({0, 5});
  EXPECT_THAT(gone.status, ElementsAre(pb::NOT_HERE, pb::OK));
  EXPECT_THAT(gone.error, HasSubstr("expert 0 (version 0) of layer 1 is not held here"));
  // A router that comes now hears the same in its hello.
  Router late(served, "late");
  EXPECT_EQ(late.held(), "2-5");
  EXPECT_EQ(late.link().peer()->epoch(), 3u);
  EXPECT_EQ(late.link().peer()->assigned_epoch(), 3u);
  const WorkerCounters c = served.worker().counters();
  EXPECT_EQ(c.loads.loaded, 4u);
  EXPECT_EQ(c.loads.removed, 4u);
  EXPECT_EQ(c.epoch, 3u);
  EXPECT_EQ(served.worker().experts_held(), 8);
  EXPECT_FALSE(served.source->in_memory(1, 0));
}

TEST(Migration, EveryRouterThatIsConnectedHasASay) {
  Served served({.experts = "0-3"});
  Router router(served);
  auto other = std::make_unique<Router>(served, "other");
  router.link().Assign(MakeAssign(1, 2, 3));
  router.link().AckEpoch(1);
  // What comes after the acknowledgement was handled after it.
  EXPECT_THAT(router.Ask({0}).status, ElementsAre(pb::OK));
  ASSERT_TRUE(router.Until([&] { return router.link().peer()->epoch() == 1; }));
  EXPECT_EQ(router.held(), "0-3");
  EXPECT_THAT(other->Ask({0, 1, 2}).status, Each(pb::OK));
  other.reset();
  EXPECT_TRUE(router.UntilHeld("2-3"));
}

TEST(Migration, WithoutAnythingFromTheStart) {
  Served served({.experts = "none", .node = "n1", .zone = "z1", .memory_bytes = 1 << 20});
  Router router(served);
  const auto hello = router.link().peer();
  EXPECT_EQ(router.held(), "");
  EXPECT_EQ(hello->node(), "n1");
  EXPECT_EQ(hello->zone(), "z1");
  EXPECT_EQ(hello->memory_bytes(), uint64_t{1} << 20);
  EXPECT_EQ(hello->free_bytes(), uint64_t{1} << 20);
  const uint64_t bytes = hello->expert_bytes();
  EXPECT_EQ(bytes, 3u * 64 * 32 * 2);
  EXPECT_THAT(router.Ask({4}).status, ElementsAre(pb::NOT_HERE));
  router.link().Assign(MakeAssign(1, 4, 6));
  ASSERT_TRUE(router.Until([&] { return router.link().peer()->epoch() == 1; }));
  EXPECT_EQ(router.link().peer()->free_bytes(), (uint64_t{1} << 20) - 6 * bytes);
  EXPECT_EQ(router.link().peer()->held_bytes(), 6 * bytes);
  EXPECT_EQ(Bytes(router.Ask({4, 6})), Expected({4, 6}));
}

TEST(Migration, WhatIsOnItsWayIsSaidToBeLoading) {
  Served served({.experts = "0"});
  Router router(served);
  served.source->HoldUp(true);
  router.link().Assign(MakeAssign(1, 0, 2));
  served.source->AwaitReader();
  const Answer answer = router.Ask({0, 1, 2, 3});
  EXPECT_THAT(answer.status, ElementsAre(pb::OK, pb::LOADING, pb::LOADING, pb::NOT_HERE));
  EXPECT_THAT(answer.error, HasSubstr("being loaded"));
  served.source->HoldUp(false);
  EXPECT_TRUE(router.UntilHeld("0-2"));
}

TEST(Migration, WhatCannotBeReadIsToldAndTheRestServes) {
  Served served({.experts = "0-1"});
  Router router(served);
  served.source->SetBad(1, 5, true);
  router.link().Assign(MakeAssign(1, 0, 6));
  ASSERT_TRUE(router.UntilHeld("0-4,6-6"));
  ASSERT_TRUE(router.Until([&] { return router.link().peer()->failed_size() == 1; }));
  const pb::FailedExpert failed = router.link().peer()->failed(0);
  EXPECT_EQ(failed.layer(), 1);
  EXPECT_EQ(failed.expert(), 5u);
  EXPECT_THAT(failed.why(), HasSubstr("experts.5"));
  EXPECT_THAT(router.Ask({5, 6}).status, ElementsAre(pb::NOT_HERE, pb::OK));
  EXPECT_EQ(served.worker().counters().loads.failed, 1u);
  served.source->SetBad(1, 5, false);
  router.link().Assign(MakeAssign(2, 0, 6));
  ASSERT_TRUE(router.Until([&] { return router.link().peer()->epoch() == 2; }));
  EXPECT_EQ(router.link().peer()->failed_size(), 0);
  EXPECT_EQ(Bytes(router.Ask({5, 6})), Expected({5, 6}));
}

// At a byte a second the placement's experts never come.
TEST(Migration, OrphansOvertakeTheRest) {
  Served served({.experts = "0", .load_bytes_per_s = 1});
  Router router(served);
  router.link().Assign(MakeAssign(1, 0, 6));
  router.link().Assign(MakeAssign(1, 9, 10, /*also=*/true));
  ASSERT_TRUE(router.Until([&] { return router.held().find("9-10") != std::string::npos; }));
  EXPECT_EQ(router.link().peer()->epoch(), 0u);
  EXPECT_EQ(Bytes(router.Ask({9, 10})), Expected({9, 10}));
}

TEST(Migration, WhatWaitingCallsNameStays) {
  const auto source = std::make_shared<FaultySource>(Spec(), 7);
  const auto worker = MakeWorker(source, {.experts = "0-3"});
  Router router(*worker);  // computes only where it is polled
  worker->OnAssign(MakeAssign(1, 3, 3));
  ASSERT_TRUE(router.link().Send(MakeCall(1, {1})).ok());
  router.link().AckEpoch(1);
  const absl::Time bound = absl::Now() + absl::Seconds(20);
  while (router.held() != "1-1,3-3" && absl::Now() < bound) std::this_thread::yield();
  ASSERT_EQ(router.held(), "1-1,3-3");
  std::vector<expertwire::LinkEvent> events;
  ASSERT_TRUE(router.link().Poll(&events));
  EXPECT_THAT(std::get<Answer>(events[0]).status, ElementsAre(pb::OK));
  const uint64_t before = router.link().generation();
  while (router.held() != "3-3" && absl::Now() < bound) std::this_thread::yield();
  EXPECT_EQ(router.held(), "3-3");
  EXPECT_NE(router.link().generation(), before);
}

TEST(Migration, ManyRoutersAssignWhileRowsAreComputed) {
  Served served({.experts = "0-5"});
  std::vector<std::thread> threads;
  for (int r = 0; r < 3; ++r) {
    threads.emplace_back([&served, r] {
      Router router(served, fmt::format("router{}", r));
      for (uint64_t epoch = 1; epoch <= 30; ++epoch) {
        const uint32_t first = static_cast<uint32_t>(epoch % 6);
        router.link().Assign(MakeAssign(epoch, first, first + 5));
        router.link().AckEpoch(epoch);
        const Answer answer = router.Ask({4, 5, 6});
        for (size_t s = 0; s < 3; ++s) {
          EXPECT_THAT(answer.status[s], ::testing::AnyOf(pb::OK, pb::LOADING, pb::NOT_HERE));
        }
      }
      EXPECT_TRUE(router.Until([&] { return router.link().peer()->epoch() == 30; }));
      EXPECT_TRUE(router.UntilHeld("0-5"));
      EXPECT_EQ(Bytes(router.Ask({0, 5})), Expected({0, 5}));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// ---- more than memory holds ----

TEST(Tiered, ThreeTimesWhatMemoryHoldsGivesTheSameBits) {
  const auto source = std::make_shared<FaultySource>(Spec(), 7);
  constexpr uint64_t kExpert = 3 * 64 * 32 * 2;
  const auto worker = MakeWorker(source, {.memory_bytes = 8 * kExpert});  // of 24
  Router router(*worker);
  for (uint32_t round = 0; round < 3; ++round) {
    for (uint32_t e = 0; e < 12; ++e) {
      const std::vector<uint32_t> experts =
          e < 11 ? std::vector<uint32_t>{e, e + 1} : std::vector<uint32_t>{0, 11};
      EXPECT_EQ(Bytes(router.Ask(experts)), Expected(experts));
      EXPECT_LE(worker->counters().tiers.resident, 8);
    }
  }
  const WorkerCounters c = worker->counters();
  EXPECT_GT(c.tiers.hits, 0u);
  EXPECT_GT(c.tiers.promotions, 0u);  // waited for, or before that: who is faster, reads
  EXPECT_GT(c.tiers.demotions, 0u);
  EXPECT_EQ(c.tiers.resident, 8);
  const absl::Time bound = absl::Now() + absl::Seconds(20);  // what goes may be on its way
  while (source->experts_in_memory() > 8 && absl::Now() < bound) std::this_thread::yield();
  EXPECT_LE(source->experts_in_memory(), 8u);
  EXPECT_EQ(worker->experts_held(), 24);
}

TEST(Tiered, CallsThatWaitBringTheirExpertsInBeforehand) {
  const auto source = std::make_shared<FaultySource>(Spec(), 7);
  const auto worker = MakeWorker(source, {.memory_bytes = 8 * 3 * 64 * 32 * 2});
  Router router(*worker);
  ASSERT_TRUE(router.link().Send(MakeCall(1, {9, 11})).ok());
  pb::Prefetch hint;
  hint.set_layer(2);
  for (uint32_t e : {3u, 77u}) hint.add_experts(e);
  router.link().Prefetch(hint);
  const absl::Time bound = absl::Now() + absl::Seconds(20);
  while (worker->counters().tiers.prefetched < 3 && absl::Now() < bound) std::this_thread::yield();
  std::vector<expertwire::LinkEvent> events;
  ASSERT_TRUE(router.link().Poll(&events));
  const WorkerCounters c = worker->counters();
  EXPECT_EQ(c.tiers.prefetched, 3u);
  EXPECT_EQ(c.tiers.hits, 2u);
  EXPECT_EQ(c.tiers.misses, 0u);
  EXPECT_TRUE(source->in_memory(2, 3));
}

TEST(Tiered, AnExpertThatCannotBeReadAnyMoreIsLost) {
  const auto source = std::make_shared<FaultySource>(Spec(), 7);
  const auto worker = MakeWorker(source, {.memory_bytes = 8 * 3 * 64 * 32 * 2});
  Router router(*worker);
  source->SetBad(1, 10, true);
  const Answer answer = router.Ask({2, 10});
  EXPECT_THAT(answer.status, ElementsAre(pb::OK, pb::NOT_HERE));
  EXPECT_THAT(answer.error, AllOf(HasSubstr("lost"), HasSubstr("experts.10")));
  const absl::Time bound = absl::Now() + absl::Seconds(20);
  while (router.held() != "0-9,11-11" && absl::Now() < bound) std::this_thread::yield();
  EXPECT_EQ(router.held(), "0-9,11-11");
  EXPECT_EQ(router.link().peer()->failed_size(), 1);
  source->SetBad(1, 10, false);
  router.link().Assign(MakeAssign(0, 10, 10, /*also=*/true));
  while (router.held() != "0-11" && absl::Now() < bound) std::this_thread::yield();
  EXPECT_THAT(router.Ask({10}).status, ElementsAre(pb::OK));
}

}  // namespace
}  // namespace switchyard::worker
