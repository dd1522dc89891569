#include "router/fleet/takeover.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

namespace switchyard::router {
namespace {

std::vector<Orphan> Orphans(int n) {
  std::vector<Orphan> out;
  for (int e = 0; e < n; ++e)
    out.push_back({.layer = e % 7, .expert = e, .wanted = uint64_t(e % 5)});
  return out;
}

// Who takes each orphan, by name.
std::map<size_t, std::string> Homes(const std::vector<Orphan>& orphans,
                                    const std::vector<Survivor>& survivors) {
  std::map<size_t, std::string> homes;
  const auto spread = SpreadOrphans(orphans, survivors);
  for (size_t s = 0; s < spread.size(); ++s) {
    for (const size_t o : spread[s]) {
      EXPECT_TRUE(homes.emplace(o, survivors[s].name).second) << "an orphan with two homes";
    }
  }
  return homes;
}

TEST(SpreadOrphans, FollowsFreeMemoryAndAgreesInAnyOrder) {
  const auto orphans = Orphans(3000);
  std::vector<Survivor> survivors = {{.name = "a", .free_bytes = 10000},
                                     {.name = "b", .free_bytes = 20000},
                                     {.name = "c", .free_bytes = 30000}};
  const auto homes = Homes(orphans, survivors);
  EXPECT_EQ(homes.size(), orphans.size());
  std::map<std::string, int> count;
  for (const auto& [o, name] : homes) ++count[name];
  EXPECT_NEAR(count["a"], 500, 80);
  EXPECT_NEAR(count["b"], 1000, 100);
  EXPECT_NEAR(count["c"], 1500, 110);
  std::reverse(survivors.begin(), survivors.end());
  EXPECT_EQ(Homes(orphans, survivors), homes) << "another router, another order";
}

TEST(SpreadOrphans, WhenOneMoreIsLostOnlyItsOwnMove) {
  const auto orphans = Orphans(1000);
  std::vector<Survivor> survivors = {{.name = "a", .free_bytes = 5000},
                                     {.name = "b", .free_bytes = 5000},
                                     {.name = "c", .free_bytes = 5000}};
  const auto before = Homes(orphans, survivors);
  survivors.pop_back();
  for (const auto& [o, name] : Homes(orphans, survivors)) {
    EXPECT_TRUE(before.at(o) == "c" || before.at(o) == name) << o;
  }
}

TEST(SpreadOrphans, TheMostWantedAreTakenFirstAndWhatHasNoRoomByAllAlike) {
  const auto orphans = Orphans(1000);
  const auto spread = SpreadOrphans(
      orphans, std::vector<Survivor>{{.name = "a", .free_bytes = 39, .expert_bytes = 2},
                                     {.name = "b", .free_bytes = 0}});
  for (size_t i = 0; i < 19; ++i) EXPECT_EQ(orphans[spread[0][i]].wanted, 4u);
  EXPECT_EQ(spread[0].size() + spread[1].size(), 1000u);
  EXPECT_NEAR(static_cast<double>(spread[0].size()), 19 + 490, 60);
}

TEST(SpreadOrphans, WhoFailedToLoadOneIsNotAskedForIt) {
  const auto orphans = Orphans(50);
  std::vector<Survivor> survivors = {
      {.name = "a", .free_bytes = 1000, .refuses = std::vector<bool>(50, true)},
      {.name = "b", .free_bytes = 1}};
  const auto homes = Homes(orphans, survivors);
  EXPECT_EQ(homes.size(), 50u);
  for (const auto& [o, name] : homes) EXPECT_EQ(name, "b");
  survivors[1].refuses = survivors[0].refuses;
  EXPECT_TRUE(Homes(orphans, survivors).empty());
}

}  // namespace
}  // namespace switchyard::router
