// The dispatcher over real workers, local and over gRPC, against the fixed tree as plain loops.
#include "router/dispatch/link_dispatcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "tests/support/dispatch_harness.h"

namespace switchyard::router {
namespace {

using expertwire::LinkState;
using testing::Expected;
using testing::ExpectSame;
using ::testing::HasSubstr;
using testing::MakeWorker;
using testing::MemorySource;
using testing::MoeBatch;
using testing::MoeShape;
using testing::Router;
using testing::ServedWorker;
using testing::SocketPath;
using worker::Worker;
using worker::WorkerOptions;

enum class Over { kLocal, kTcp, kUnix };
struct Case {
  MoeShape shape;
  DType dtype;
  std::vector<std::string> experts;  // a worker each
  Over over;
  const char* name;
};

class FixedTree : public ::testing::TestWithParam<Case> {};

TEST_P(FixedTree, IsTheSameForEverySplit) {
  const Case& c = GetParam();
  const ModelSpec spec = testing::MoeSpec(c.shape);
  std::vector<std::unique_ptr<Worker>> local;
  std::vector<std::unique_ptr<ServedWorker>> served;
  kernels::ThreadPool shared(2);
  std::vector<Worker*> local_links;
  std::vector<std::string> addresses;
  for (const std::string& experts : c.experts) {
    const WorkerOptions options{.experts = experts, .dtype = c.dtype, .threads = 2};
    if (c.over == Over::kLocal) {
      local.push_back(MakeWorker(spec, options, &shared));
      local_links.push_back(local.back().get());
    } else {
      served.push_back(std::make_unique<ServedWorker>(
          spec, options, c.over == Over::kTcp ? "127.0.0.1:0" : SocketPath()));
      addresses.push_back(served.back()->address());
    }
  }
  Router router(spec, c.dtype, addresses, {}, local_links);
  ASSERT_TRUE(router.WhenReady()) << router.dispatcher().Missing();
  for (const int64_t tokens : {1, 2, 33, 300}) {
    MoeBatch batch(spec, c.dtype, tokens, static_cast<uint32_t>(tokens));
    router.Run(batch, 2);
    ExpectSame(batch, Expected(spec, c.dtype, 2, batch));
  }
}

const MoeShape kPlain{}, kGroups{.groups = 4}, kWide{.hidden = 1088, .groups = 4},
    kStacked{.experts = 6, .top_k = 3, .stacked = true},
    kBiased{.experts = 6, .top_k = 3, .biased = true};
INSTANTIATE_TEST_SUITE_P(
    Splits, FixedTree,
    ::testing::Values(
        Case{kPlain, DType::kBF16, {""}, Over::kLocal, "OneLocal"},
        Case{kPlain, DType::kF32, {"0-4", "5-10", "11"}, Over::kLocal, "ThreeLocalF32"},
        Case{kGroups, DType::kBF16, {""}, Over::kLocal, "GroupsOneLocal"},
        Case{kGroups, DType::kF32, {"0-3,11", "4", "5-10"}, Over::kLocal, "GroupsSplitLocalF32"},
        Case{kGroups, DType::kBF16, {"0-3,11", "4", "5-10"}, Over::kLocal, "GroupsSplitLocal"},
        Case{kWide, DType::kBF16, {"0-3,11", "4", "5-10"}, Over::kLocal, "WideSplitLocal"},
        Case{kStacked, DType::kBF16, {"0/2", "1/2"}, Over::kLocal, "StackedLocal"},
        Case{kBiased, DType::kBF16, {"0/2", "1/2"}, Over::kLocal, "BiasedLocal"},
        Case{kPlain, DType::kBF16, {"0/3", "1/3", "2/3"}, Over::kTcp, "PlainTcp"},
        Case{kGroups, DType::kBF16, {"0-3,11", "4", "5-10"}, Over::kTcp, "GroupsSplitTcp"},
        Case{kGroups, DType::kF32, {"0/2", "1/2"}, Over::kUnix, "GroupsUnixF32"},
        Case{kStacked, DType::kF32, {"0-1", "2-5"}, Over::kUnix, "StackedUnixF32"}),
    [](const auto& info) { return info.param.name; });

TEST(LinkDispatcher, MergesTheFramesOfSeveralRouters) {
  const ModelSpec spec = testing::MoeSpec(kGroups);
  ServedWorker served(spec, {});
  std::vector<std::thread> threads;
  for (uint32_t r = 0; r < 3; ++r) {
    threads.emplace_back([&, r] {
      Router router(spec, DType::kBF16, {served.address()});
      ASSERT_TRUE(router.WhenReady());
      for (uint32_t i = 0; i < 50; ++i) {
        MoeBatch a(spec, DType::kBF16, 1 + (i % 5), 100 * r + i), b(spec, DType::kBF16, 9, i);
        const MoeTicket first = router.Start(a, 1), second = router.Start(b, 1);
        router.Finish(second);
        router.Finish(first);
        ExpectSame(a, Expected(spec, DType::kBF16, 1, a));
        ExpectSame(b, Expected(spec, DType::kBF16, 1, b));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(served.worker().counters().parts_merged, 0u);
}

TEST(LinkDispatcher, ALostWorkerLosesItsRowsAloneAndComesBack) {
  const ModelSpec spec = testing::MoeSpec(kPlain);
  ServedWorker left(spec, {.experts = "0-5"});
  const std::string socket = SocketPath();
  auto right = std::make_unique<ServedWorker>(spec, WorkerOptions{.experts = "6-11"}, socket);
  Router router(spec, DType::kBF16, {left.address(), socket});
  ASSERT_TRUE(router.WhenReady());
  right.reset();
  ASSERT_TRUE(router.Until([&] { return router.links().links()[1]->state() != LinkState::kUp; }));
  EXPECT_THAT(router.dispatcher().Missing(),
              HasSubstr("layers 1–2: experts 6–11 have no live worker"));
  EXPECT_THAT(router.dispatcher().Missing(), HasSubstr(socket));

  MoeBatch batch(spec, DType::kBF16, 40, 1);
  for (int k = 0; k < spec.gate.top_k; ++k) batch.experts[k] = k;  // token 0 stays on the left
  router.Run(batch);
  const std::vector<float> expected = Expected(spec, DType::kBF16, 1, batch);
  int whole = 0;
  for (int64_t t = 0; t < batch.tokens; ++t) {
    const bool needs_right = batch.experts[t * spec.gate.top_k + spec.gate.top_k - 1] > 5;
    EXPECT_EQ(batch.lost[t], needs_right);
    if (needs_right) continue;
    ++whole;
    EXPECT_EQ(std::memcmp(&batch.out[t * spec.hidden], &expected[t * spec.hidden],
                          spec.hidden * sizeof(float)),
              0);
  }
  EXPECT_GE(whole, 1);
  EXPECT_EQ(router.dispatcher().Report().lost_rows, static_cast<uint64_t>(40 - whole));

  right = std::make_unique<ServedWorker>(spec, WorkerOptions{.experts = "6-11"}, socket);
  ASSERT_TRUE(router.WhenReady());
  batch.lost.assign(batch.lost.size(), 0);
  router.Run(batch);
  ExpectSame(batch, expected);
}

TEST(LinkDispatcher, AWorkerKilledInMidCallNeverHangsAJob) {
  const ModelSpec spec = testing::MoeSpec(kPlain);
  auto served = std::make_unique<ServedWorker>(spec, WorkerOptions{});
  Router router(spec, DType::kBF16, {served->address()});
  ASSERT_TRUE(router.WhenReady());
  std::vector<std::unique_ptr<MoeBatch>> batches;
  std::vector<MoeTicket> tickets;
  for (uint32_t i = 0; i < 8; ++i) {
    batches.push_back(std::make_unique<MoeBatch>(spec, DType::kBF16, 200, i));
    tickets.push_back(router.Start(*batches.back()));
  }
  served.reset();
  for (size_t i = 0; i < tickets.size(); ++i) {
    router.Finish(tickets[i]);
    const auto expected = Expected(spec, DType::kBF16, 1, *batches[i]);
    for (int64_t t = 0; t < 200; ++t) {
      if (batches[i]->lost[t]) continue;
      EXPECT_EQ(std::memcmp(&batches[i]->out[t * spec.hidden], &expected[t * spec.hidden],
                            spec.hidden * sizeof(float)),
                0);
    }
  }
}

// Jobs of 150 rows that are in flight together.
struct Jobs {
  std::vector<std::unique_ptr<MoeBatch>> batches;
  std::vector<MoeTicket> tickets;
};

Jobs StartMany(Router& router, const ModelSpec& spec, uint32_t count) {
  Jobs jobs;
  for (uint32_t i = 0; i < count; ++i) {
    jobs.batches.push_back(std::make_unique<MoeBatch>(spec, DType::kBF16, 150, i));
    jobs.tickets.push_back(router.Start(*jobs.batches.back()));
  }
  return jobs;
}

TEST(LinkDispatcher, TinyCreditsSlowThingsDownAndNothingElse) {
  const ModelSpec spec = testing::MoeSpec(kPlain);
  const expertwire::CreditGrant tiny{.bytes = 64 << 10, .frames = 2};
  ServedWorker served(spec, {.grant = tiny});
  Router router(spec, DType::kBF16, {served.address()}, tiny);
  ASSERT_TRUE(router.WhenReady());
  auto [batches, tickets] = StartMany(router, spec, 6);
  for (size_t i = 0; i < tickets.size(); ++i) {
    router.Finish(tickets[i]);
    ExpectSame(*batches[i], Expected(spec, DType::kBF16, 1, *batches[i]));
  }
  EXPECT_GT(router.dispatcher().Links()[0].wire.frames_sent, 12u);
  EXPECT_EQ(served.worker().counters().streams_broken, 0u);
}

TEST(LinkDispatcher, TheWiresTimeIsWhatTheWorkerDoesNotAccountFor) {
  const ModelSpec spec = testing::MoeSpec(kPlain);
  ServedWorker served(spec, {});
  Router router(spec, DType::kBF16, {served.address()});
  ASSERT_TRUE(router.WhenReady());
  for (uint32_t i = 0; i < 5; ++i) {  // one part each
    MoeBatch batch(spec, DType::kBF16, 3, i);
    router.Run(batch);
  }
  const LinkReport link = router.dispatcher().Links()[0];
  const worker::WorkerCounters worker = served.worker().counters();
  EXPECT_EQ(link.wire_us.count, 5u);
  EXPECT_EQ(link.latency_us.sum, link.wire_us.sum + worker.queue_us.sum + worker.compute_us.sum);
}

TEST(LinkDispatcher, AnAbandonedJobLeavesTheOthersAlone) {
  const ModelSpec spec = testing::MoeSpec(kPlain);
  const expertwire::CreditGrant tiny{.bytes = 64 << 10, .frames = 2};
  ServedWorker served(spec, {.grant = tiny});
  Router router(spec, DType::kBF16, {served.address()}, tiny);
  ASSERT_TRUE(router.WhenReady());
  auto [batches, tickets] = StartMany(router, spec, 8);
  for (size_t i = 0; i < tickets.size(); i += 2) {
    router.dispatcher().Abandon(tickets[i]);
    batches[i].reset();  // its memory is not used any more
  }
  for (size_t i = 1; i < tickets.size(); i += 2) {
    router.Finish(tickets[i]);
    ExpectSame(*batches[i], Expected(spec, DType::kBF16, 1, *batches[i]));
  }
  EXPECT_EQ(router.dispatcher().Report().lost_rows, 0u);
}

TEST(LinkDispatcher, ADeadlineThatHasPassedLosesTheRows) {
  const ModelSpec spec = testing::MoeSpec(kPlain);
  ServedWorker served(spec, {});
  Router router(spec, DType::kBF16, {served.address()});
  ASSERT_TRUE(router.WhenReady());
  MoeBatch batch(spec, DType::kBF16, 5, 1);
  router.Finish(router.Start(batch, 1, absl::Now() - absl::Seconds(1)));
  EXPECT_THAT(batch.lost, ::testing::Each(1));
  EXPECT_THAT(batch.out, ::testing::Each(0.0f));
  MoeBatch next(spec, DType::kBF16, 5, 2);  // whatever came late is not taken for an answer
  router.Run(next);
  ExpectSame(next, Expected(spec, DType::kBF16, 1, next));
}

TEST(LinkDispatcher, RefusesAWorkerOfOtherNumericsAndNamesBoth) {
  const ModelSpec spec = testing::MoeSpec(kPlain);
  ServedWorker served(spec, {.worker_id = "worker-a", .dtype = DType::kF32});
  Router router(spec, DType::kBF16, {served.address()});
  ASSERT_TRUE(
      router.Until([&] { return router.links().links()[0]->state() == LinkState::kRefused; }));
  const std::string missing = router.dispatcher().Missing();
  EXPECT_THAT(missing, HasSubstr("worker-a"));
  EXPECT_THAT(missing, HasSubstr("test-router"));
  EXPECT_THAT(missing, HasSubstr("float32"));
  EXPECT_THAT(missing, HasSubstr("bfloat16"));
}

TEST(LinkDispatcher, ADrainingWorkerFinishesAndGetsNoMore) {
  const ModelSpec spec = testing::MoeSpec(kPlain);
  ServedWorker first(spec, {}), second(spec, {});
  Router router(spec, DType::kBF16, {first.address(), second.address()});
  ASSERT_TRUE(router.Until([&] {
    return router.links().links()[0]->state() == LinkState::kUp &&
           router.links().links()[1]->state() == LinkState::kUp;
  }));
  MoeBatch open(spec, DType::kBF16, 100, 1), after(spec, DType::kBF16, 10, 2);
  const MoeTicket ticket = router.Start(open);
  first.worker().BeginDrain();
  router.Finish(ticket);
  ExpectSame(open, Expected(spec, DType::kBF16, 1, open));
  ASSERT_TRUE(
      router.Until([&] { return router.links().links()[0]->state() == LinkState::kDraining; }));
  ASSERT_TRUE(router.Until([&] { return first.worker().Drained(); }));
  const uint64_t rows = router.dispatcher().Links()[1].rows;
  EXPECT_EQ(router.dispatcher().Links()[0].rows + rows, 400u);
  router.Run(after);
  ExpectSame(after, Expected(spec, DType::kBF16, 1, after));
  EXPECT_EQ(router.dispatcher().Links()[1].rows, rows + 40);
}

}  // namespace
}  // namespace switchyard::router
