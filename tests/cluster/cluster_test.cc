// The real gateway, router and workers in one process, over local links and over real sockets: the
// goldens through the whole stack, the same bits however the cluster is cut, and what happens when
// a worker dies.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "services/model/spec_from_hf.h"
#include "tests/cluster/cluster_fixture.h"
#include "tests/support/golden.h"

namespace switchyard::test {
namespace {

using testing::HasSubstr;

// Three uneven parts that cut through the gate's groups.
std::vector<std::string> UnevenParts(const std::string& model) {
  const int experts = LoadSpec(ServableModel(model))->experts.count;
  const int a = experts / 3 - 1, b = experts / 2 + 1;
  return {"0-" + std::to_string(a), std::to_string(a + 1) + "-" + std::to_string(b),
          std::to_string(b + 1) + "-" + std::to_string(experts - 1)};
}

// Whose workers are reached over TCP alone; by default the rows go through shared memory.
router::RouterOptions OverTcp() {
  router::RouterOptions router;
  router.shared_memory = false;
  return router;
}

class EveryModel : public testing::TestWithParam<std::string> {};

// A golden run ends at eos where the case says so; asking for as many tokens gives a longer answer
// whose beginning must be the golden.
std::vector<Ask> AsksOf(const GoldenModel& golden) {
  std::vector<Ask> asks;
  for (const GoldenCase& c : golden.cases) {
    asks.push_back({.prompt = c.prompt_ids, .max_tokens = static_cast<int>(c.output_ids.size())});
  }
  return asks;
}

TEST_P(EveryModel, GoldensInFloat32AndTheSameBitsOverThreeWorkersOnTcp) {
  const GoldenModel golden = LoadGolden(GetParam());
  const std::vector<Ask> asks = AsksOf(golden);
  const auto one = StartCluster(GetParam(), DType::kF32, {});
  const std::vector<Answer> expected = GenerateAll(*one, asks);
  for (size_t i = 0; i < asks.size(); ++i) {
    EXPECT_TRUE(expected[i].status.ok()) << golden.cases[i].name << ": " << expected[i].status;
    EXPECT_EQ(expected[i].ids, golden.cases[i].output_ids) << golden.cases[i].name;
  }
  const auto many = StartCluster(GetParam(), DType::kF32, UnevenParts(GetParam()), OverTcp());
  EXPECT_EQ(GenerateAll(*many, asks), expected);
}

TEST_P(EveryModel, TheSameBitsInBFloat16OverThreeWorkersOnTcp) {
  const std::vector<Ask> asks = AsksOf(LoadGolden(GetParam()));
  const auto one = StartCluster(GetParam(), DType::kBF16, {});
  const std::vector<Answer> expected = GenerateAll(*one, asks);
  for (const Answer& answer : expected) EXPECT_TRUE(answer.status.ok()) << answer.status;
  const auto many = StartCluster(GetParam(), DType::kBF16, UnevenParts(GetParam()), OverTcp());
  EXPECT_EQ(GenerateAll(*many, asks), expected);
}

class EveryQuantisation : public testing::TestWithParam<std::string> {};

TEST_P(EveryQuantisation, TheSameBitsInBFloat16OverThreeWorkers) {
  const std::vector<Ask> asks = AsksOf(LoadGolden(GetParam().substr(0, GetParam().find('.'))));
  const auto one = StartCluster(GetParam(), DType::kBF16, {});
  const std::vector<Answer> expected = GenerateAll(*one, asks);
  for (const Answer& answer : expected) EXPECT_TRUE(answer.status.ok()) << answer.status;
  const auto many = StartCluster(GetParam(), DType::kBF16, UnevenParts(GetParam()));
  EXPECT_EQ(GenerateAll(*many, asks), expected);
}

INSTANTIATE_TEST_SUITE_P(Quantised, EveryQuantisation,
                         testing::Values("olmoe-tiny.int8-32", "qwen3-moe-tiny.int4-row",
                                         "deepseek-v3-tiny.fp8", "gpt-oss-tiny.mxfp4",
                                         "deepseek-v3-tiny.gptq", "mixtral-tiny.awq"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           std::replace(name.begin(), name.end(), '.', '_');
                           return name;
                         });

INSTANTIATE_TEST_SUITE_P(Goldens, EveryModel, testing::ValuesIn(GoldenModelNames()),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

std::vector<Ask> Probes() {
  std::vector<Ask> asks;
  for (int i = 0; i < 3; ++i) {
    asks.push_back({.prompt = {0, 2546, 57, 300 + i, 12},
                    .max_tokens = 24,
                    .temperature = 0.6f * i,
                    .seed = static_cast<uint64_t>(7 + i)});
  }
  Ask longer{.max_tokens = 12};
  for (int i = 0; i < 500; ++i) longer.prompt.push_back(3 + (7 * i) % 2000);
  asks.push_back(longer);
  return asks;
}

// The probes' answers while 16 other requests run.
std::vector<Answer> BesideOthers(embedded::LocalCluster& cluster) {
  std::vector<Ask> asks = Probes();
  const size_t probes = asks.size();
  for (int i = 0; i < 16; ++i) {
    Ask other{.max_tokens = 10 + i, .temperature = 1, .seed = static_cast<uint64_t>(i)};
    for (int k = 0; k < 4 + 9 * i; ++k) other.prompt.push_back(3 + (i * 37 + k) % 2500);
    asks.push_back(other);
  }
  std::vector<Answer> answers = GenerateAll(cluster, asks);
  for (const Answer& answer : answers) EXPECT_TRUE(answer.status.ok()) << answer.status;
  answers.resize(probes);
  return answers;
}

struct Shape {
  const char* name;
  std::vector<std::string> parts;
  router::RouterOptions router;
};

TEST(Sameness, CompanyChunksPreemptionAndPlacementChangeNothing) {
  std::vector<Answer> alone;
  {
    const auto cluster = StartCluster("tiny-r1", DType::kBF16, {});
    for (const Ask& ask : Probes()) alone.push_back(Generate(*cluster, ask));
  }
  router::RouterOptions chunks, small, few;
  chunks.max_batch_tokens = 13;
  small.kv_bytes = 20 * 32 * 800 + 4096;  // 20 blocks: the long probe takes 16 of them
  small.max_model_len = 600;
  few.max_running = 2;
  const Shape shapes[] = {{"beside others", {}, {}},
                          {"small chunks", {}, chunks},
                          {"little memory", {}, small},
                          {"few at once", {}, few},
                          {"four workers through shared memory", {"0/4", "1/4", "2/4", "3/4"}, {}},
                          {"split groups", {"0-2,5,64-127", "3-4,6-63"}, chunks}};
  for (const Shape& shape : shapes) {
    const auto cluster = StartCluster("tiny-r1", DType::kBF16, shape.parts, shape.router);
    EXPECT_EQ(BesideOthers(*cluster), alone) << shape.name;
  }
}

// News of a stream that ended while nothing ran must not hit the first call over the next one.
// Nobody takes over, no row waits.
router::RouterOptions Strict() {
  router::RouterOptions options;
  options.takeover = false;
  options.expert_patience = absl::ZeroDuration();
  return options;
}

TEST(Failure, AWorkerThatRestartsWhileTheRouterIsIdleIsNoticedByNobody) {
  const auto cluster = StartCluster("tiny-r1", DType::kBF16, {"0-63", "64-127"}, Strict());
  const Answer before = Generate(*cluster, Probes()[0]);
  ASSERT_TRUE(before.status.ok()) << before.status;
  for (int round = 0; round < 3; ++round) {
    cluster->StopWorker(1);
    while (cluster->gateway().Missing().empty()) std::this_thread::yield();
    ASSERT_TRUE(cluster->StartWorker(1).ok());
    ASSERT_TRUE(cluster->WaitReady(absl::Seconds(60)).ok());
    EXPECT_EQ(Generate(*cluster, Probes()[0]), before);
  }
}

TEST(Failure, TheExpertsOfAWorkerThatDiesAreTakenOverAndNothingChanges) {
  std::vector<Ask> asks = Probes();
  for (Ask& ask : asks) ask.max_tokens = 200;
  const auto cluster = StartCluster("tiny-r1", DType::kBF16, {"0-63", "64-127"});
  const std::vector<Answer> before = GenerateAll(*cluster, asks);
  std::vector<Answer> during;
  std::thread clients([&] { during = GenerateAll(*cluster, asks); });
  while (cluster->router().Snapshot().running == 0) std::this_thread::yield();
  cluster->StopWorker(1);
  clients.join();
  ASSERT_EQ(during.size(), before.size());
  for (size_t i = 0; i < during.size(); ++i) {
    EXPECT_TRUE(during[i] == before[i]) << "ask " << i << ": " << during[i].status;
  }
}

TEST(Failure, AWorkerThatDiesFailsRequestsClearlyAndComesBack) {
  const auto cluster = StartCluster("tiny-r1", DType::kBF16, {"0-63", "64-127"}, Strict());
  const Ask ask = Probes()[0];
  const Answer before = Generate(*cluster, ask);
  ASSERT_TRUE(before.status.ok()) << before.status;

  std::vector<Answer> during;
  std::thread clients([&] {
    during = GenerateAll(*cluster, std::vector<Ask>(4, Ask{.prompt = {5, 6}, .max_tokens = 2000}));
  });
  while (cluster->router().Snapshot().running == 0) std::this_thread::yield();
  cluster->StopWorker(1);
  clients.join();
  for (const Answer& answer : during) {
    EXPECT_EQ(answer.status.code(), absl::StatusCode::kUnavailable) << answer.status;
  }
  // The gateway hears of it a moment after the requests have failed.
  std::string missing;
  while ((missing = cluster->gateway().Missing()).empty()) std::this_thread::yield();
  EXPECT_THAT(missing, HasSubstr("experts 64–127"));

  ASSERT_TRUE(cluster->StartWorker(1).ok());
  ASSERT_TRUE(cluster->WaitReady(absl::Seconds(60)).ok());
  EXPECT_EQ(Generate(*cluster, ask), before);
}

class LostExpertsTest : public testing::TestWithParam<router::LostExperts> {};

TEST_P(LostExpertsTest, AnswersThatNeedThemSaySoAndTheOthersAreTheSame) {
  router::RouterOptions options;
  options.takeover = false;
  options.expert_patience = absl::Milliseconds(50);
  options.lost_experts = GetParam();
  const auto cluster = StartCluster("tiny-r1", DType::kBF16, {"0-126", "127"}, options);
  std::vector<Ask> asks;
  for (int i = 0; i < 24; ++i) asks.push_back({.prompt = {5 + i, 600 + 7 * i}, .max_tokens = 2});
  const Ask longer = Probes().back();  // of many blocks of KV
  const std::vector<Answer> before = GenerateAll(*cluster, asks);
  Ask elsewhere = longer;
  elsewhere.prompt[0] = 1;  // not found in the prefix cache

  std::vector<Answer> during;
  std::thread clients([&] {
    during = GenerateAll(*cluster, std::vector<Ask>(4, Ask{.prompt = {5, 6}, .max_tokens = 500}));
  });
  while (cluster->router().Snapshot().running == 0) std::this_thread::yield();
  cluster->StopWorker(1);
  clients.join();
  const v1::Degraded marked = GetParam() == router::LostExperts::kRenormalise
                                  ? v1::DEGRADED_RENORMALISE
                                  : v1::DEGRADED_NEXT_BEST;
  for (const Answer& answer : during) {
    EXPECT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_EQ(answer.ids.size(), 500u);
    EXPECT_EQ(answer.degraded, marked);
  }
  int changed = 0;
  const std::vector<Answer> without = GenerateAll(*cluster, asks);
  for (size_t i = 0; i < asks.size(); ++i) {
    EXPECT_TRUE(without[i].status.ok()) << without[i].status;
    changed += without[i].degraded == marked;
    if (without[i].degraded == v1::DEGRADED_NO) {
      EXPECT_EQ(without[i], before[i]);
    }
  }
  EXPECT_GT(changed, 0);
  EXPECT_LT(changed, 24);
  const Answer poor = Generate(*cluster, elsewhere);
  EXPECT_EQ(poor.degraded, marked);

  // Nothing of it is left once the experts are back.
  ASSERT_TRUE(cluster->StartWorker(1).ok());
  while (Generate(*cluster, {.prompt = longer.prompt, .max_tokens = 1}).degraded == marked) {
  }
  EXPECT_EQ(GenerateAll(*cluster, asks), before);
  const Answer found = Generate(*cluster, elsewhere);
  const auto fresh = StartCluster("tiny-r1", DType::kBF16, {});
  EXPECT_EQ(found, Generate(*fresh, elsewhere));
}

INSTANTIATE_TEST_SUITE_P(Failure, LostExpertsTest,
                         testing::Values(router::LostExperts::kRenormalise,
                                         router::LostExperts::kNextBest));

// The gateway's streams go on at the other router, or at the same one when it is back.
TEST(Failure, ARouterThatStopsUnderStreamsChangesNothing) {
  std::vector<Ask> asks = Probes();
  for (Ask& ask : asks) ask.max_tokens = 200;
  const auto cluster = StartCluster("tiny-r1", DType::kBF16, {"0-63", "64-127"}, {}, 2);
  const auto await_both = [&] {
    while (cluster->gateway().ready_routers() < 2) std::this_thread::yield();
  };
  await_both();
  const std::vector<Answer> before = GenerateAll(*cluster, asks);
  for (const int lost : {0, 1}) {
    std::vector<Answer> during;
    std::thread clients([&] { during = GenerateAll(*cluster, asks); });
    while (cluster->router(lost).Snapshot().running == 0) std::this_thread::yield();
    cluster->StopRouter(lost);
    clients.join();
    ASSERT_EQ(during.size(), before.size());
    for (size_t i = 0; i < during.size(); ++i) {
      EXPECT_TRUE(during[i] == before[i]) << "ask " << i << ": " << during[i].status;
    }
    ASSERT_TRUE(cluster->StartRouter(lost).ok());
    await_both();
  }
}

class Drain : public testing::TestWithParam<std::vector<std::string>> {};

TEST_P(Drain, FinishesWhatRunsAndTakesNothingNew) {
  const auto cluster = StartCluster("tiny-r1", DType::kBF16, GetParam());
  Answer running;
  std::thread client([&] { running = Generate(*cluster, {.prompt = {5, 6}, .max_tokens = 300}); });
  while (cluster->router().Snapshot().running == 0) std::this_thread::yield();
  cluster->Drain(absl::Seconds(60));
  client.join();
  EXPECT_TRUE(running.status.ok()) << running.status;
  EXPECT_EQ(running.ids.size(), 300u);
  EXPECT_FALSE(Generate(*cluster, {.prompt = {5}, .max_tokens = 1}).status.ok());
}

INSTANTIATE_TEST_SUITE_P(Shapes, Drain,
                         testing::Values(std::vector<std::string>{},
                                         std::vector<std::string>{"0/2", "1/2"}));

}  // namespace
}  // namespace switchyard::test
