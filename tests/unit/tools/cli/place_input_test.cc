#include "tools/cli/place_input.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/base/text.h"

namespace switchyard::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const placement::ExpertGrid kGrid{.moe_layers = {false, true, true}, .experts = 4};

std::string SaidOf(const absl::Status& status) { return std::string(ToStd(status.message())); }

std::vector<std::string> AddressesOf(const MeasuredLoad& load) {
  std::vector<std::string> out;
  for (const placement::PlanWorker& worker : load.workers) out.push_back(worker.address);
  return out;
}

TEST(PlaceInput, RowsOfAllRoutersAddUp) {
  const auto load = ParseLoad(R"({"routers": [
      {"workers": [{"address": "b:1"}, {"address": "c:1"}],
       "experts": [{"layer": 1, "expert": 3, "rows": 10, "workers": ["b:1"]},
                   {"layer": 2, "expert": 0, "rows": 1, "workers": ["a:1", "b:1"]}]},
      {"experts": [{"layer": 1, "expert": 3, "rows": 5, "workers": ["a:1"]}]}]})",
                              kGrid);
  ASSERT_TRUE(load.ok()) << load.status();
  EXPECT_EQ(load->rows[kGrid.cell(1, 3)], 15);
  EXPECT_EQ(load->rows[kGrid.cell(2, 0)], 1);
  EXPECT_THAT(AddressesOf(*load), ElementsAre("a:1", "b:1", "c:1"));
  const auto held = placement::Expand(load->held, kGrid, "");
  ASSERT_TRUE(held.ok()) << held.status();
  EXPECT_THAT(held->replicas(1, 3), ElementsAre(0, 1));
  EXPECT_THAT(held->replicas(2, 0), ElementsAre(0, 1));
  EXPECT_EQ(held->workers().size(), 2u) << "c:1 holds nothing";
}

TEST(PlaceInput, WorkersThatNoRouterReachesAreLeftOut) {
  const auto load = ParseLoad(R"({"routers": [
      {"workers": [{"address": "a:1", "state": "up"}, {"address": "b:1", "state": "connecting: x"},
                   {"address": "c:1", "state": "connecting: y"}], "experts": []},
      {"workers": [{"address": "b:1", "state": "up"}], "experts": []}]})",
                              kGrid);
  ASSERT_TRUE(load.ok()) << load.status();
  EXPECT_THAT(AddressesOf(*load), ElementsAre("a:1", "b:1"));
  EXPECT_THAT(load->left_out, ElementsAre("c:1 (connecting: y)"));
}

TEST(PlaceInput, WorkersBringWhatTheySayOfThemselves) {
  const auto load = ParseLoad(R"({"routers": [{"experts": [], "workers": [
      {"address": "a:1", "state": "up", "node": "n", "zone": "z", "memory_bytes": 4096, "assigned_epoch": 7},
      {"address": "b:1", "state": "up", "node": null, "memory_bytes": -1, "assigned_epoch": 3}]}]})",
                              kGrid);
  ASSERT_TRUE(load.ok()) << load.status();
  ASSERT_EQ(load->workers.size(), 2u);
  EXPECT_EQ(load->workers[0].node, "n");
  EXPECT_EQ(load->workers[0].zone, "z");
  EXPECT_EQ(load->workers[0].memory_bytes, 4096);
  EXPECT_EQ(load->workers[1].node, "");
  EXPECT_EQ(load->workers[1].memory_bytes, 0) << "unknown";
  EXPECT_EQ(load->epoch, 7u);
}

TEST(PlaceInput, AnEpochThatNoWorkerWasToldYetCounts) {
  for (const auto& [placement, epoch] : {std::pair{R"({"epoch": 9})", 9u},
                                         {R"({"epoch": 2})", 7u},
                                         {R"({"epoch": -1})", 7u},
                                         {"null", 7u}}) {
    const auto load =
        ParseLoad(fmt::format(R"({{"routers": [{{"experts": [], "placement": {}, "workers": [
        {{"address": "a:1", "state": "up", "assigned_epoch": 7}}]}}]}})",
                              placement),
                  kGrid);
    ASSERT_TRUE(load.ok()) << load.status();
    EXPECT_EQ(load->epoch, epoch) << placement;
  }
}

TEST(PlaceInput, OnlyWhatCameSinceCounts) {
  const auto load = [](int rows) {
    return *ParseLoad(fmt::format(R"({{"experts": [{{"layer": 1, "expert": 0, "rows": {}}},
                                                  {{"layer": 1, "expert": 1, "rows": 7}}]}})",
                                  rows),
                      kGrid);
  };
  MeasuredLoad later = load(30);
  Subtract(load(20), &later);
  EXPECT_EQ(later.rows[kGrid.cell(1, 0)], 10);
  EXPECT_EQ(later.rows[kGrid.cell(1, 1)], 0);
  MeasuredLoad restarted = load(3);
  Subtract(load(20), &restarted);
  EXPECT_EQ(restarted.rows[kGrid.cell(1, 0)], 3);
}

TEST(PlaceInput, ABadLoadIsNamedByItsPlace) {
  const auto error = [](std::string_view text) { return SaidOf(ParseLoad(text, kGrid).status()); };
  EXPECT_THAT(error("{"), HasSubstr("not valid JSON"));
  EXPECT_THAT(error("[]"), HasSubstr("experts: is missing"));
  EXPECT_THAT(error(R"({"experts": [{"layer": 3, "expert": 0, "rows": 1}]})"),
              HasSubstr("experts[0]: layer: 3; expected 0 to 2"));
  EXPECT_THAT(error(R"({"experts": [{"layer": 0, "expert": 0, "rows": 1}]})"),
              HasSubstr("a layer without experts"));
  EXPECT_THAT(error(R"({"routers": [{"experts": [{"layer": 1, "expert": "0", "rows": 1}]}]})"),
              HasSubstr("routers[0]: experts[0]: expert: \"0\"; expected 0 to 3"));
  EXPECT_THAT(error(R"({"experts": [{"layer": 1, "expert": 0, "rows": -1}]})"),
              HasSubstr("rows: -1"));
  EXPECT_THAT(error(R"({"experts": [{"layer": 1, "expert": 0, "rows": 1, "workers": [1]}]})"),
              HasSubstr("no list of addresses"));
}

TEST(PlaceInput, WorkersComeAsTextOrJson) {
  const auto one = ParseWorker("10.0.0.1:7000,node=a,zone=z,memory=4GiB,rows=2.5");
  ASSERT_TRUE(one.ok()) << one.status();
  const auto list = ParseWorkers(R"([{"address": "10.0.0.1:7000", "node": "a", "zone": "z",
                                      "memory": "4GiB", "rows_per_s": 2.5},
                                     {"address": "unix:/run/w"}])");
  ASSERT_TRUE(list.ok()) << list.status();
  for (const placement::PlanWorker& worker : {*one, list->front()}) {
    EXPECT_EQ(worker.address, "10.0.0.1:7000");
    EXPECT_EQ(worker.node, "a");
    EXPECT_EQ(worker.zone, "z");
    EXPECT_EQ(worker.memory_bytes, int64_t{4} << 30);
    EXPECT_EQ(worker.rows_per_s, 2.5);
  }
  EXPECT_EQ(list->back().memory_bytes, 0);
}

TEST(PlaceInput, ABadWorkerIsNamed) {
  EXPECT_THAT(SaidOf(ParseWorker("w").status()), HasSubstr("\"w\" is not an address"));
  EXPECT_THAT(SaidOf(ParseWorker("w:1,rack=3").status()),
              HasSubstr("w:1: unknown \"rack\"; known: node, zone, memory, rows"));
  EXPECT_THAT(SaidOf(ParseWorker("w:1,memory=4").status()), HasSubstr("w:1: \"4\" has no unit"));
  EXPECT_THAT(SaidOf(ParseWorker("w:1,rows=0").status()), HasSubstr("no number above 0"));
  EXPECT_THAT(SaidOf(ParseWorkers("{}").status()), HasSubstr("no list"));
  EXPECT_THAT(SaidOf(ParseWorkers(R"([{"address": "w:1"}, {"node": "a"}])").status()),
              HasSubstr("[1]: address: \"\""));
}

}  // namespace
}  // namespace switchyard::cli
