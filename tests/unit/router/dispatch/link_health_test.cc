#include "router/dispatch/link_health.h"

#include <gtest/gtest.h>

#include "router/dispatch/replica_choice.h"

namespace switchyard::router {
namespace {

namespace pb = expertwire::pb;

const absl::Time kStart = absl::UnixEpoch();

TEST(LatencyPercentile, IsOfPartsOfTheSameSize) {
  LatencyPercentile latency;
  EXPECT_EQ(latency.P99(4, absl::Seconds(1)), absl::Seconds(1)) << "nothing is known yet";
  for (int i = 0; i < 1000; ++i) {
    latency.Add(4, absl::Microseconds(100 + i % 50));
    latency.Add(400, absl::Milliseconds(20));
  }
  EXPECT_GE(latency.P99(4, absl::Seconds(1)), absl::Microseconds(140));
  EXPECT_LE(latency.P99(4, absl::Seconds(1)), absl::Microseconds(180));
  EXPECT_GE(latency.P99(400, absl::Seconds(1)), absl::Milliseconds(19));
}

TEST(LatencyPercentile, FollowsWhatIsRecent) {
  LatencyPercentile latency;
  for (int i = 0; i < 3000; ++i) latency.Add(4, absl::Microseconds(100));
  for (int i = 0; i < 30; ++i) latency.Add(4, absl::Milliseconds(50));  // one in a hundred
  EXPECT_LT(latency.P99(4, absl::Seconds(1)), absl::Milliseconds(1));
  for (int i = 0; i < 40000; ++i) latency.Add(4, absl::Milliseconds(50));
  for (int i = 0; i < 40000; ++i) latency.Add(4, absl::Microseconds(100));
  EXPECT_LT(latency.P99(4, absl::Seconds(1)), absl::Milliseconds(1));
}

TEST(LinkHealth, RestsLongerEachTimeAndIsTriedByOnePart) {
  LinkHealth health;
  absl::Time now = kStart;
  EXPECT_FALSE(health.Ejected(now));
  health.OnBad(now);
  EXPECT_TRUE(health.Ejected(now));
  health.OnBad(now);  // other parts of the same fault
  EXPECT_EQ(health.ejections(), 1u);
  now += LinkHealth::kFirstRest;
  EXPECT_FALSE(health.Ejected(now)) << "half-open";
  health.OnSend(now);
  EXPECT_TRUE(health.Ejected(now)) << "one part at a time";
  health.OnBad(now);
  now += LinkHealth::kFirstRest;
  EXPECT_TRUE(health.Ejected(now)) << "longer this time";
  now += LinkHealth::kFirstRest;
  EXPECT_FALSE(health.Ejected(now));
  health.OnSend(now);
  health.OnGood();
  EXPECT_FALSE(health.Ejected(now));
  health.OnBad(now);
  EXPECT_FALSE(health.Ejected(now + LinkHealth::kFirstRest)) << "all was forgiven";
}

TEST(LinkHealth, AProbeThatToldNothingMakesRoomForAnother) {
  LinkHealth health;
  absl::Time now = kStart;
  EXPECT_EQ(health.OnSend(now), 0u) << "it is well";
  health.OnBad(now);
  EXPECT_EQ(health.OnSend(now), 0u) << "it rests";
  now += LinkHealth::kFirstRest;
  const uint64_t first = health.OnSend(now);
  EXPECT_NE(first, 0u);
  EXPECT_EQ(health.OnSend(now), first) << "another part of the same";
  health.OnProbeOver(first);
  EXPECT_FALSE(health.Ejected(now));
  const uint64_t second = health.OnSend(now);
  EXPECT_NE(second, first);
  health.OnProbeOver(first);
  EXPECT_TRUE(health.Ejected(now)) << "the second is out";
  health.OnBad(now);
  health.OnProbeOver(second);
  EXPECT_TRUE(health.Ejected(now + LinkHealth::kFirstRest)) << "it rests longer";
}

TEST(LinkHealth, ThreeBeatingsInARowEject) {
  LinkHealth health;
  health.OnBeaten(kStart), health.OnBeaten(kStart), health.OnGood();
  health.OnBeaten(kStart), health.OnBeaten(kStart);
  EXPECT_FALSE(health.Ejected(kStart));
  health.OnBeaten(kStart);
  EXPECT_TRUE(health.Ejected(kStart));
}

TEST(HedgeBudget, IsATwentiethOfAllRows) {
  HedgeBudget budget;
  while (budget.Take(1)) {
  }
  for (int i = 0; i < 2000; ++i) budget.OnRows(1);
  EXPECT_TRUE(budget.Take(99));
  EXPECT_FALSE(budget.Take(2));
}

// Two layers of 8 experts in groups of 4; three links hold all of layer 1, link 0 alone the rest.
ExpertMap ThreeOfAll() {
  ExpertMap map({true, true}, 8);
  for (int16_t link = 0; link < 3; ++link) {
    pb::Hello hello;
    for (int layer = link == 0 ? 0 : 1; layer < 2; ++layer) {
      pb::HeldExperts* held = hello.add_held();
      held->set_layer(layer);
      held->add_first(0), held->add_last(7);
    }
    map.Add(link, hello);
  }
  return map;
}

struct Chosen {
  std::vector<uint64_t> given;
  std::vector<int16_t> owner;
};
Chosen Choose(const ExpertMap& map, int layer, std::vector<Standing> standings,
              std::vector<uint64_t> busy = {0, 0, 0}, uint64_t seed = 1) {
  Chosen out;
  const std::vector<uint32_t> rows = {1, 2, 1, 0, 5, 1, 1, 1};
  ChooseReplicas(map,
                 {.layer = layer,
                  .experts_per_group = 4,
                  .seed = seed,
                  .rows = rows,
                  .standings = standings,
                  .busy = busy},
                 &out.given, &out.owner);
  return out;
}

constexpr Standing kWell = Standing::kWell, kSuspect = Standing::kSuspect,
                   kNever = Standing::kNever;

TEST(ChooseReplicas, KeepsGroupsTogetherAndMeetsAllInTime) {
  const ExpertMap map = ThreeOfAll();
  std::vector<int> met(3, 0);
  for (uint64_t seed = 0; seed < 100; ++seed) {
    const auto owner = Choose(map, 1, {kWell, kWell, kWell}, {0, 0, 0}, seed).owner;
    EXPECT_EQ(owner[0], owner[1]);
    EXPECT_EQ(owner[1], owner[2]);
    EXPECT_EQ(owner[3], ExpertMap::kNone) << "no row is wanted of it";
    EXPECT_EQ(owner[4], owner[7]);
    ++met[static_cast<size_t>(owner[0])];
  }
  for (int times : met) EXPECT_GT(times, 15);
}

TEST(ChooseReplicas, TakesTheOneWithLessToDo) {
  const ExpertMap map = ThreeOfAll();
  for (uint64_t seed = 0; seed < 50; ++seed) {
    EXPECT_NE(Choose(map, 1, {kWell, kWell, kWell}, {1000, 0, 0}, seed).owner[0], 0);
  }
}

TEST(ChooseReplicas, TakesTheSuspectOnlyWhereNobodyElseIs) {
  const ExpertMap map = ThreeOfAll();
  for (uint64_t seed = 0; seed < 50; ++seed) {
    EXPECT_EQ(Choose(map, 1, {kSuspect, kWell, kNever}, {0, 9, 0}, seed).owner[0], 1);
    EXPECT_EQ(Choose(map, 0, {kSuspect, kWell, kWell}, {0, 0, 0}, seed).owner[0], 0);
    EXPECT_EQ(Choose(map, 0, {kNever, kWell, kWell}, {0, 0, 0}, seed).owner[0], ExpertMap::kNone);
  }
}

}  // namespace
}  // namespace switchyard::router
