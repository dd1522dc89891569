// Failover of the dispatcher: under a seeded simulation with virtual time, and over real streams.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <map>

#include "tests/support/dispatch_harness.h"
#include "tests/support/simulated_link.h"

namespace switchyard::router {
namespace {

using testing::ExpectSame;
using testing::MoeBatch;
using testing::ServedWorker;
using testing::SimulatedLink;
using testing::virtual_now;

constexpr testing::MoeShape kShape{.groups = 4};

std::vector<float> Expected(const ModelSpec& spec, const MoeBatch& batch) {
  return testing::Expected(spec, DType::kBF16, 1, batch);
}

// Workers of these experts behind simulated links, and a dispatcher over them.
class Simulation {
 public:
  Simulation(std::vector<std::string> experts, DispatchOptions options = {})
      : spec_(testing::MoeSpec(kShape)), pool_(1), links_({.hello = {}}) {
    virtual_now = absl::UnixEpoch() + absl::Hours(1);
    for (const std::string& held : experts) {
      workers_.push_back(testing::MakeWorker(spec_, {.experts = held}, &pool_));
      auto link =
          std::make_unique<SimulatedLink>("w" + std::to_string(sims_.size()), *workers_.back());
      sims_.push_back(link.get());
      links_.Add(std::move(link));
    }
    options.now = &testing::VirtualNow;
    dispatcher_ = std::make_unique<LinkDispatcher>(spec_, DType::kBF16, links_, pool_, options);
  }

  void At(absl::Duration from_now, std::function<void()> fault) {
    faults_.emplace(virtual_now + from_now, std::move(fault));
  }

  // Those whose time has come.
  void DoFaults() {
    while (!faults_.empty() && faults_.begin()->first <= virtual_now) {
      auto fault = std::move(faults_.begin()->second);
      faults_.erase(faults_.begin());
      fault();
    }
  }

  MoeTicket Start(MoeBatch& batch, absl::Time deadline = absl::InfiniteFuture()) {
    DoFaults();
    batch.lost.assign(batch.lost.size(), 0);
    return dispatcher_->Start({.layer = 1,
                               .tokens = batch.tokens,
                               .top_k = spec_.gate.top_k,
                               .x = {batch.x.data(), DType::kBF16, spec_.hidden},
                               .experts = batch.experts.data(),
                               .weights = batch.weights.data(),
                               .out = batch.out.data(),
                               .lost = batch.lost.data(),
                               .deadline = deadline});
  }

  // How long it took; infinite if it has not come to an end within an hour.
  absl::Duration Finish(MoeTicket ticket) {
    const absl::Time start = virtual_now;
    while (!dispatcher_->Finished(ticket)) {
      if (virtual_now > start + absl::Hours(1)) return absl::InfiniteDuration();
      absl::Time next = virtual_now + absl::Milliseconds(5);  // as the engine looks
      for (const SimulatedLink* link : sims_) next = std::min(next, link->next());
      if (!faults_.empty()) next = std::min(next, faults_.begin()->first);
      virtual_now = std::max(virtual_now + absl::Microseconds(1), next);
      DoFaults();
    }
    return virtual_now - start;
  }

  absl::Duration Run(MoeBatch& batch) { return Finish(Start(batch)); }
  // Until latencies are known.
  void Warm(MoeBatch& batch) {
    for (int i = 0; i < 100; ++i) Run(batch);
  }

  // While link 0 takes calls and says for ever that it computes them.
  absl::Duration RunStuck(MoeBatch& batch) {
    link(0).set_latency(absl::Hours(2));
    link(0).set_computing(true);
    const absl::Duration took = Run(batch);
    link(0).set_latency(absl::Microseconds(200));
    link(0).set_computing(false);
    return took;
  }

  const ModelSpec& spec() const { return spec_; }
  SimulatedLink& link(size_t i) { return *sims_[i]; }
  LinkDispatcher& dispatcher() { return *dispatcher_; }

 private:
  const ModelSpec spec_;
  kernels::ThreadPool pool_;
  std::vector<std::unique_ptr<worker::Worker>> workers_;
  std::vector<SimulatedLink*> sims_;
  expertwire::LinkSet links_;
  std::unique_ptr<LinkDispatcher> dispatcher_;
  std::multimap<absl::Time, std::function<void()>> faults_;
};

// Each expert on two of three, no two layouts alike.
const std::vector<std::string> kTwice = {"0-7", "4-11", "0-3,8-11"};

TEST(Failover, AKilledReplicaCostsNothingButARetry) {
  Simulation sim(kTwice);
  MoeBatch batch(sim.spec(), DType::kBF16, 40, 1);
  const std::vector<float> expected = Expected(sim.spec(), batch);
  sim.At(absl::Microseconds(100), [&] { sim.link(1).Fall(); });
  EXPECT_LE(sim.Run(batch), absl::Milliseconds(6));
  ExpectSame(batch, expected);
  const DispatchReport report = sim.dispatcher().Report();
  EXPECT_GT(report.retried_rows, 0u);
  EXPECT_EQ(report.lost_rows + report.parked_rows + report.hedged_rows, 0u);
}

TEST(Failover, ASilentWorkerIsReplacedAtOnceAndLeftAlone) {
  Simulation sim(kTwice, {.hedge = false});  // by suspicion alone
  MoeBatch batch(sim.spec(), DType::kBF16, 40, 1);
  const std::vector<float> expected = Expected(sim.spec(), batch);
  sim.Warm(batch);
  sim.link(0).Stall(true);
  EXPECT_LE(sim.Run(batch), absl::Milliseconds(175));
  ExpectSame(batch, expected);
  EXPECT_TRUE(sim.dispatcher().Links()[0].ejected);
  for (int i = 0; i < 10; ++i) EXPECT_LE(sim.Run(batch), absl::Milliseconds(1));
  sim.link(0).Stall(false);
  virtual_now += LinkHealth::kFirstRest;
  const uint64_t rows = sim.dispatcher().Links()[0].rows;
  for (int i = 0; i < 10; ++i) EXPECT_LE(sim.Run(batch), absl::Milliseconds(1));
  EXPECT_FALSE(sim.dispatcher().Links()[0].ejected) << "a probe brought it back";
  EXPECT_GT(sim.dispatcher().Links()[0].rows, rows);
}

TEST(Failover, ALateAnswerIsHedgedWithinTheBudget) {
  Simulation sim(kTwice);
  MoeBatch batch(sim.spec(), DType::kBF16, 4, 1);
  const std::vector<float> expected = Expected(sim.spec(), batch);
  sim.Warm(batch);
  sim.link(0).set_latency(absl::Milliseconds(80));
  EXPECT_LE(sim.Run(batch), absl::Milliseconds(11));
  ExpectSame(batch, expected);
  EXPECT_GT(sim.dispatcher().Report().hedges_won, 0u);
  for (int i = 0; i < 300; ++i) sim.Run(batch);
  ExpectSame(batch, expected);
  uint64_t rows = 0;
  for (const LinkReport& link : sim.dispatcher().Links()) rows += link.rows;
  EXPECT_LE(static_cast<double>(sim.dispatcher().Report().hedged_rows),
            256 + HedgeBudget::kShare * static_cast<double>(rows));
  EXPECT_GT(sim.dispatcher().Links()[0].ejections, 0u);
}

TEST(Failover, WhoSaysThatItComputesIsNotHedged) {
  Simulation sim(kTwice);
  MoeBatch batch(sim.spec(), DType::kBF16, 4, 1);
  sim.Warm(batch);
  for (size_t i = 0; i < 3; ++i) {
    sim.link(i).set_latency(absl::Milliseconds(80));
    sim.link(i).set_computing(true);
  }
  EXPECT_GE(sim.Run(batch), absl::Milliseconds(80));
  EXPECT_EQ(sim.dispatcher().Report().hedged_rows, 0u);
}

// As a worker whose thread hangs in a read: its keeper goes on telling what it is at.
TEST(Failover, WhoSaysForEverThatItComputesIsReplaced) {
  for (const bool hedge : {true, false}) {
    Simulation sim({"0-11", "0-11"}, {.hedge = hedge});
    MoeBatch batch(sim.spec(), DType::kBF16, 40, 1);
    const std::vector<float> expected = Expected(sim.spec(), batch);
    const auto expect_after = [&](absl::Duration bound, const char* why) {
      const absl::Duration took = sim.RunStuck(batch);
      EXPECT_GE(took, bound) << why;
      EXPECT_LE(took, bound + absl::Milliseconds(21)) << why;
      ExpectSame(batch, expected);
      EXPECT_TRUE(sim.dispatcher().Links()[0].ejected);
      for (int i = 0; i < 10; ++i) EXPECT_LE(sim.Run(batch), absl::Milliseconds(1));
      virtual_now += LinkHealth::kLongestRest;
      for (int i = 0; i < 10; ++i) EXPECT_LE(sim.Run(batch), absl::Milliseconds(1));
      EXPECT_FALSE(sim.dispatcher().Links()[0].ejected);
    };
    expect_after(absl::Seconds(10), "nobody knows yet what is usual");
    for (int i = 0; i < 10; ++i) sim.Warm(batch);
    expect_after(absl::Seconds(1), "all know");
    expect_after(absl::Seconds(1), "one that hung is not what is usual");
  }
}

// Of what it alone holds nobody else can have the rows; the others' go on.
TEST(Failover, AStuckWorkersOwnRowsAreLostWhenPatienceIs) {
  for (const char* other : {"4-11", "8-11"}) {
    Simulation sim({"0-7", other}, {.patience = absl::Seconds(3)});
    MoeBatch batch(sim.spec(), DType::kBF16, 40, 1);
    for (int k = 0; k < sim.spec().gate.top_k; ++k) batch.experts[k] = 8 + k;
    const std::vector<float> expected = Expected(sim.spec(), batch);
    const absl::Duration took = sim.RunStuck(batch);
    EXPECT_GE(took, absl::Seconds(13)) << other;
    EXPECT_LE(took, absl::Milliseconds(13100)) << other;
    EXPECT_EQ(batch.lost[0], 0) << "its experts are elsewhere";
    EXPECT_THAT(batch.lost, ::testing::Contains(1));
    EXPECT_TRUE(sim.dispatcher().Stuck(0));
    EXPECT_FALSE(sim.dispatcher().Stuck(1));
    EXPECT_EQ(sim.link(0).open(), 0u) << "it was told";
    EXPECT_LE(sim.Run(batch), absl::Milliseconds(6));
    ExpectSame(batch, expected);
    EXPECT_FALSE(sim.dispatcher().Stuck(0));
  }
}

TEST(Failover, WhatItsOnlyHolderRefusesIsAskedForLessAndLessAndThenLost) {
  Simulation sim({"0-7", "8-11"}, {.patience = absl::Seconds(30)});
  MoeBatch batch(sim.spec(), DType::kBF16, 40, 1);
  sim.link(1).set_refusing(true);
  const uint64_t before = sim.link(1).sent();
  const absl::Duration took = sim.Run(batch);
  EXPECT_GE(took, absl::Seconds(30));
  EXPECT_LE(took, absl::Seconds(32));
  EXPECT_THAT(batch.lost, ::testing::Contains(1));
  EXPECT_LE(sim.link(1).sent() - before, 60u);
}

// Workers that come back at once, each time.
TEST(Failover, RowsThatBreakStreamAfterStreamAreGivenUp) {
  Simulation sim({"0-11", "0-11", "0-11"}, {.patience = absl::Hours(1)});
  MoeBatch batch(sim.spec(), DType::kBF16, 4, 1);
  const std::vector<float> expected = Expected(sim.spec(), batch);
  for (int i = 0; i < 100; ++i) {
    sim.At(absl::Microseconds(100 * (i + 1)), [&] {
      for (size_t link = 0; link < 3; ++link) sim.link(link).Fall(), sim.link(link).Rise();
    });
  }
  EXPECT_LE(sim.Run(batch), absl::Milliseconds(2500));
  EXPECT_THAT(batch.lost, ::testing::Contains(1));
  virtual_now += absl::Seconds(60);
  sim.Run(batch);
  sim.Run(batch);
  ExpectSame(batch, expected);
}

TEST(Failover, AProbeOfAWorkerThatStillHangsCostsAMoment) {
  Simulation sim(kTwice);
  MoeBatch batch(sim.spec(), DType::kBF16, 40, 1);
  sim.Warm(batch), sim.Warm(batch), sim.Warm(batch);
  sim.link(0).set_latency(absl::Hours(2));
  sim.link(0).set_computing(true);
  sim.Run(batch);
  for (int i = 0; i < 5; ++i) {
    const uint64_t rows = sim.dispatcher().Links()[0].rows;
    virtual_now += LinkHealth::kLongestRest;
    for (int k = 0; k < 3; ++k) EXPECT_LE(sim.Run(batch), absl::Milliseconds(11));
    EXPECT_GT(sim.dispatcher().Links()[0].rows, rows);
  }
}

// Links 0 and 1 have all experts; link 0 has just been away and may be tried after kFirstRest.
struct HalfOpen {
  HalfOpen() : sim({"0-11", "0-11"}), batch(sim.spec(), DType::kBF16, 40, 1) {
    sim.Warm(batch), sim.Warm(batch), sim.Warm(batch);
    sim.link(0).Fall();
    fell_at = virtual_now;
    sim.Warm(batch);  // of the sizes that link 1 has alone
    sim.link(0).Rise();
    EXPECT_TRUE(ejected());
  }
  bool ejected() { return sim.dispatcher().Links()[0].ejected; }
  bool ComesBack() {
    sim.link(0).set_latency(absl::Microseconds(200));
    sim.link(1).set_latency(absl::Microseconds(200));
    for (int i = 0; i < 20; ++i) sim.Run(batch);
    return !ejected();
  }

  Simulation sim;
  MoeBatch batch;
  absl::Time fell_at;
};

TEST(Failover, AProbeThatIsHedgedMayAnswerFirst) {
  HalfOpen test;
  virtual_now += LinkHealth::kFirstRest;
  test.sim.link(0).set_latency(absl::Milliseconds(12));
  test.sim.link(1).set_latency(absl::Milliseconds(80));
  test.sim.Run(test.batch);
  EXPECT_GT(test.sim.dispatcher().Report().hedged_rows, 0u);
  EXPECT_TRUE(test.ComesBack());
}

TEST(Failover, AProbeThatIsAHedgeMayComeTooLate) {
  HalfOpen test;
  virtual_now = test.fell_at + LinkHealth::kFirstRest - absl::Milliseconds(2);
  test.sim.link(0).set_latency(absl::Milliseconds(80));
  test.sim.link(1).set_latency(absl::Milliseconds(12));
  const uint64_t rows = test.sim.dispatcher().Links()[0].rows;
  test.sim.Run(test.batch);
  EXPECT_GT(test.sim.dispatcher().Links()[0].rows, rows);
  EXPECT_TRUE(test.ComesBack());
}

TEST(Failover, AProbeMayBeAbandonedOrPastItsDeadline) {
  for (const bool abandon : {true, false}) {
    HalfOpen test;
    virtual_now += LinkHealth::kFirstRest;
    test.sim.link(0).set_latency(absl::Milliseconds(80));
    const uint64_t rows = test.sim.dispatcher().Links()[0].rows;
    const MoeTicket ticket = test.sim.Start(test.batch, virtual_now + absl::Milliseconds(2));
    if (abandon) {
      test.sim.dispatcher().Abandon(ticket);
    } else {
      test.sim.Finish(ticket);
    }
    EXPECT_GT(test.sim.dispatcher().Links()[0].rows, rows);
    EXPECT_TRUE(test.ComesBack());
  }
}

TEST(Failover, AProbeMayBeRefused) {
  HalfOpen test;
  virtual_now += LinkHealth::kFirstRest;
  test.sim.link(0).set_refusing(true);
  test.sim.Run(test.batch);
  test.sim.link(0).set_refusing(false);
  EXPECT_TRUE(test.ComesBack());
}

// Each rest is longer, whatever way the probe fails.
TEST(Failover, AProbeThatDiesWithItsWorkerMakesTheRestLonger) {
  HalfOpen test;
  virtual_now += LinkHealth::kFirstRest;
  test.sim.At(absl::Microseconds(100), [&] { test.sim.link(0).Fall(); });
  test.sim.Run(test.batch);
  test.sim.link(0).Rise();
  virtual_now += LinkHealth::kFirstRest;
  const uint64_t rows = test.sim.dispatcher().Links()[0].rows;
  test.sim.Run(test.batch);
  EXPECT_EQ(test.sim.dispatcher().Links()[0].rows, rows);
}

TEST(Failover, RowsOfAnExpertCountOnceHoweverOftenTheyAreSent) {
  Simulation sim(kTwice, {.patience = absl::Seconds(1)});
  MoeBatch batch(sim.spec(), DType::kBF16, 40, 1);
  std::vector<uint64_t> wanted(static_cast<size_t>(sim.spec().experts.count));
  for (const int32_t expert : batch.experts) ++wanted[static_cast<size_t>(expert)];
  uint64_t runs = 0;
  const auto run = [&] {
    sim.Run(batch);
    for (uint64_t& rows : wanted) rows = rows / std::max<uint64_t>(runs, 1) * (runs + 1);
    ++runs;
    const std::vector<uint64_t> all = sim.dispatcher().ExpertRows();
    EXPECT_TRUE(std::equal(wanted.begin(), wanted.end(),
                           all.begin() + static_cast<int64_t>(wanted.size())));
  };
  run();
  sim.At(absl::Microseconds(100), [&] { sim.link(1).Fall(); });
  run();
  EXPECT_GT(sim.dispatcher().Report().retried_rows, 0u);
  sim.At(absl::Microseconds(100), [&] { sim.link(0).Fall(); });
  sim.At(absl::Milliseconds(500), [&] { sim.link(0).Rise(), sim.link(1).Rise(); });
  run();
  EXPECT_GT(sim.dispatcher().Report().parked_rows, 0u);
  virtual_now += LinkHealth::kLongestRest;
  for (int i = 0; i < 100; ++i) run();
  sim.link(2).set_latency(absl::Milliseconds(80));
  run();
  EXPECT_GT(sim.dispatcher().Report().hedged_rows, 0u);
}

TEST(Failover, AWorkerInThePlaceOfAnotherBeginsAnew) {
  HalfOpen test;
  const LinkReport first = test.sim.dispatcher().Links()[0];
  EXPECT_GT(first.rows, 0u);
  EXPECT_GT(first.ejections, 0u);
  test.sim.link(0).Rename("another");
  for (int i = 0; i < 3; ++i) test.sim.Run(test.batch);
  const LinkReport second = test.sim.dispatcher().Links()[0];
  EXPECT_EQ(second.name, "another");
  EXPECT_GT(second.rows, 0u) << "what the other did is not held against it";
  EXPECT_LE(second.rows, 3u * static_cast<uint64_t>(test.batch.tokens) * 4u);
  EXPECT_LE(second.latency_us.count, 3u);
  EXPECT_EQ(second.wire_us.count, second.latency_us.count);
  EXPECT_EQ(second.ejections + second.lost_parts + second.stale_answers, 0u);
  EXPECT_FALSE(second.ejected);
}

TEST(Failover, WhoRefusesAnExpertIsPassedOver) {
  Simulation sim(kTwice);
  MoeBatch batch(sim.spec(), DType::kBF16, 40, 1);
  const std::vector<float> expected = Expected(sim.spec(), batch);
  sim.link(2).set_refusing(true);
  for (int i = 0; i < 20; ++i) {
    EXPECT_LE(sim.Run(batch), absl::Milliseconds(6));
    ExpectSame(batch, expected);
  }
}

TEST(Failover, ADrainingWorkerIsUsedOnlyWhereNobodyElseIs) {
  Simulation sim({"0-7", "4-11"});
  MoeBatch batch(sim.spec(), DType::kBF16, 40, 1);
  const std::vector<float> expected = Expected(sim.spec(), batch);
  sim.link(0).set_draining(true);
  sim.Run(batch);
  ExpectSame(batch, expected);
  for (int k = 0; k < sim.spec().gate.top_k; ++k) {
    for (int64_t t = 0; t < batch.tokens; ++t) batch.experts[t * sim.spec().gate.top_k + k] = 4 + k;
  }
  const uint64_t rows = sim.dispatcher().Links()[0].rows;
  EXPECT_GT(rows, 0u);
  sim.Run(batch);
  EXPECT_EQ(sim.dispatcher().Links()[0].rows, rows);
}

TEST(Failover, RowsWaitForTheirExpertsAsLongAsIsPatient) {
  Simulation sim({"0-7", "8-11"}, {.patience = absl::Seconds(3)});
  MoeBatch batch(sim.spec(), DType::kBF16, 40, 1);
  const std::vector<float> expected = Expected(sim.spec(), batch);
  sim.At(absl::Microseconds(100), [&] { sim.link(1).Fall(); });
  sim.At(absl::Seconds(2), [&] { sim.link(1).Rise(); });
  const absl::Duration took = sim.Run(batch);
  EXPECT_GE(took, absl::Seconds(2));
  EXPECT_LE(took, absl::Milliseconds(2010));
  ExpectSame(batch, expected);

  sim.link(1).Fall();
  const MoeTicket first = sim.Start(batch);
  EXPECT_NEAR(absl::ToDoubleSeconds(sim.Finish(first)), 3, 0.05);
  EXPECT_THAT(batch.lost, ::testing::Contains(1));
  const auto lost = batch.lost;
  EXPECT_LE(sim.Run(batch), absl::Milliseconds(1)) << "nobody waits for it twice";
  EXPECT_EQ(batch.lost, lost);
  sim.link(1).Rise();
  sim.Run(batch);
  ExpectSame(batch, expected);
}

// Nobody waits for each of them in turn, nor for one that has been missed for long.
TEST(Failover, ExpertsThatNobodyHeldForSoLongAreGoneTogether) {
  Simulation sim({"0-7", "8-11"}, {.patience = absl::Seconds(3)});
  MoeBatch batch(sim.spec(), DType::kBF16, 40, 1);
  const std::vector<float> expected = Expected(sim.spec(), batch);
  sim.Run(batch);
  const auto gone = [&] {
    const std::span<const uint8_t> g = sim.dispatcher().Gone(1);
    return std::vector<int>(g.begin(), g.end());
  };
  EXPECT_THAT(gone(), ::testing::IsEmpty());
  sim.link(1).Fall();
  EXPECT_THAT(gone(), ::testing::IsEmpty());
  virtual_now += absl::Milliseconds(2990);
  EXPECT_THAT(gone(), ::testing::IsEmpty());
  virtual_now += absl::Milliseconds(10);
  EXPECT_LE(sim.Run(batch), absl::Milliseconds(1));
  EXPECT_THAT(batch.lost, ::testing::Contains(1));
  EXPECT_THAT(gone(), ::testing::ElementsAre(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1));
  sim.link(1).Rise();
  EXPECT_THAT(gone(), ::testing::IsEmpty());
  sim.Run(batch);
  ExpectSame(batch, expected);
}

TEST(Failover, ARowOfNoExpertsIsZero) {
  Simulation sim({"0-11"});
  MoeBatch batch(sim.spec(), DType::kBF16, 4, 1);
  std::fill(batch.experts.begin(), batch.experts.end(), kNoExpert);
  std::fill(batch.out.begin(), batch.out.end(), 1.0f);
  sim.Run(batch);
  EXPECT_THAT(batch.lost, ::testing::Each(0));
  EXPECT_THAT(batch.out, ::testing::Each(0.0f));
}

TEST(Failover, ADeadlineEndsAJobThatWaits) {
  Simulation sim({"0-7", "8-11"}, {.patience = absl::Hours(1)});
  MoeBatch batch(sim.spec(), DType::kBF16, 40, 1);
  for (int k = 0; k < sim.spec().gate.top_k; ++k) batch.experts[k] = k;
  sim.link(1).Fall();
  const absl::Duration took = sim.Finish(sim.Start(batch, virtual_now + absl::Seconds(1)));
  EXPECT_LE(took, absl::Milliseconds(1010));
  EXPECT_THAT(batch.lost, ::testing::Contains(1));
  EXPECT_THAT(batch.lost, ::testing::Contains(0)) << "rows of the others are here";
}

// Random faults for five virtual seconds.
void ScheduleFaults(Simulation& sim, std::mt19937& random, bool one_at_a_time) {
  const auto ms = [&](uint32_t from, uint32_t to) {
    return absl::Milliseconds(from + random() % (to - from));
  };
  absl::Duration at = absl::ZeroDuration();
  while (at < absl::Seconds(5)) {
    at += ms(1, 200);
    const absl::Duration lasts = ms(10, 800);
    SimulatedLink& link = sim.link(random() % 3);
    switch (random() % 6) {
      case 4:
        sim.At(at, [&] { link.set_refusing_some(true); });
        sim.At(at + lasts, [&] { link.set_refusing_some(false); });
        break;
      case 0:
        sim.At(at, [&] { link.Fall(); });
        sim.At(at + lasts, [&] { link.Rise(); });
        break;
      case 1:
        sim.At(at, [&] { link.Stall(true); });
        sim.At(at + lasts, [&] { link.Stall(false); });
        break;
      case 2:
        sim.At(at, [&] { link.set_latency(absl::Milliseconds(60)); });
        sim.At(at + lasts, [&] { link.set_latency(absl::Microseconds(200)); });
        break;
      case 3:
        sim.At(at, [&] { link.set_draining(true); });
        sim.At(at + lasts, [&] { link.set_draining(false); });
        break;
      default:
        sim.At(at, [&] { link.set_refusing(true); });
        sim.At(at + lasts, [&] { link.set_refusing(false); });
    }
    if (one_at_a_time) at += lasts + absl::Milliseconds(1);
  }
}

TEST(Failover, WithOneFaultAtATimeNothingIsLostOrChangedOrSlow) {
  for (uint32_t seed = 0; seed < 12; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    Simulation sim(kTwice, {.patience = absl::Seconds(10)});
    MoeBatch batch(sim.spec(), DType::kBF16, 1 + random() % 20, seed);
    const std::vector<float> expected = Expected(sim.spec(), batch);
    ScheduleFaults(sim, random, true);
    const absl::Time end = virtual_now + absl::Seconds(5);
    while (virtual_now < end) {
      ASSERT_LE(sim.Run(batch), absl::Milliseconds(300));
      ExpectSame(batch, expected);
      if (::testing::Test::HasFailure()) return;
      virtual_now += absl::Milliseconds(1);
    }
    EXPECT_EQ(sim.dispatcher().Report().lost_rows, 0u);
  }
}

TEST(Failover, WithAnyFaultsNothingHangsAndNoRowIsWrong) {
  for (uint32_t seed = 100; seed < 112; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    Simulation sim(kTwice, {.patience = absl::Milliseconds(200)});
    MoeBatch batch(sim.spec(), DType::kBF16, 1 + random() % 20, seed);
    const std::vector<float> expected = Expected(sim.spec(), batch);
    ScheduleFaults(sim, random, false);
    const absl::Time end = virtual_now + absl::Seconds(7);
    while (virtual_now < end) {
      if (random() % 8 == 0) sim.dispatcher().Abandon(sim.Start(batch));
      const bool hurried = random() % 8 == 0;
      const absl::Time deadline =
          hurried ? virtual_now + absl::Milliseconds(random() % 20) : absl::InfiniteFuture();
      ASSERT_LE(sim.Finish(sim.Start(batch, deadline)), absl::Seconds(6));
      for (int64_t t = 0; t < batch.tokens; ++t) {
        if (batch.lost[t]) continue;
        ASSERT_EQ(std::memcmp(&batch.out[t * sim.spec().hidden], &expected[t * sim.spec().hidden],
                              sim.spec().hidden * sizeof(float)),
                  0);
      }
      virtual_now += absl::Milliseconds(1);
    }
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(sim.link(i).open(), 0u) << "calls left behind";
    for (const absl::Time well = virtual_now + absl::Seconds(60); virtual_now < well;) {
      sim.Run(batch);
      virtual_now += absl::Milliseconds(100);
    }
    ExpectSame(batch, expected);
    for (const LinkReport& link : sim.dispatcher().Links()) EXPECT_FALSE(link.ejected) << link.name;
  }
}

// Three jobs at a time while one worker of three is killed and comes back, over and over.
TEST(Failover, OverRealStreamsWorkersMayDieInMidCall) {
  const ModelSpec spec = testing::MoeSpec(kShape);
  std::vector<std::string> addresses;
  std::vector<std::unique_ptr<ServedWorker>> workers;
  for (const std::string& experts : kTwice) {
    addresses.push_back(testing::SocketPath());
    workers.push_back(std::make_unique<ServedWorker>(
        spec, worker::WorkerOptions{.experts = experts}, addresses.back()));
  }
  testing::Router router(spec, DType::kBF16, addresses, {}, {}, {.patience = absl::Seconds(20)});
  const auto all_up = [&] {
    const auto links = router.links().links();
    return std::all_of(links.begin(), links.end(), [](const auto& link) {
      return link->state() == expertwire::LinkState::kUp;
    });
  };
  for (uint32_t round = 0; round < 6; ++round) {
    ASSERT_TRUE(router.Until(all_up));
    std::vector<std::unique_ptr<MoeBatch>> batches;
    std::vector<MoeTicket> tickets;
    for (uint32_t i = 0; i < 3; ++i) {
      batches.push_back(std::make_unique<MoeBatch>(spec, DType::kBF16, 150, 10 * round + i));
      tickets.push_back(router.Start(*batches.back()));
    }
    workers[round % 3].reset();
    for (size_t i = 0; i < tickets.size(); ++i) {
      router.Finish(tickets[i]);
      ExpectSame(*batches[i], Expected(spec, *batches[i]));
    }
    workers[round % 3] = std::make_unique<ServedWorker>(
        spec, worker::WorkerOptions{.experts = kTwice[round % 3]}, addresses[round % 3]);
  }
  EXPECT_EQ(router.dispatcher().Report().lost_rows, 0u);
}

}  // namespace
}  // namespace switchyard::router
