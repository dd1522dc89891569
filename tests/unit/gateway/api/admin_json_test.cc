#include "gateway/api/admin_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace switchyard::gateway {
namespace {

using nlohmann::json;

v1::RouterExperts Router() {
  v1::RouterExperts router;
  router.set_router_id("r0");
  router.mutable_runs_on()->set_isa("avx2");
  router.add_windows()->set_seconds(1);
  router.mutable_windows(0)->set_spans(1.1);
  v1::WorkerView* worker = router.add_workers();
  worker->set_address("w:1");
  worker->set_state("refused: \xff");
  worker->set_free_bytes(0);
  worker->add_window_rows(7);
  router.add_workers()->set_address("w:2");
  v1::ExpertLoad* load = router.add_experts();
  load->set_layer(3);
  load->set_expert(9);
  load->set_rows(uint64_t{1} << 60);
  load->add_window_rows(5);
  load->add_workers("w:1");
  v1::LayerBalance* layer = router.add_layers();
  layer->set_layer(3);
  layer->add_expert_imbalance(2.5);
  router.mutable_dispatch()->set_retried_rows(4);
  router.mutable_dispatch()->set_routing_fallbacks(11);
  router.mutable_engine()->set_running(2);
  router.mutable_engine()->set_degraded_rows(12);
  router.mutable_engine()->set_degraded_choices(3);
  v1::PlacementState* placement = router.mutable_placement();
  placement->set_followed(true);
  placement->set_epoch(8);
  placement->set_epoch_in_use(7);
  placement->mutable_document()->set_epoch(8);
  v1::WorkerPlacement* holds = placement->mutable_document()->add_workers();
  holds->set_worker("w:1");
  holds->add_holds()->set_layers("*");
  holds->mutable_holds(0)->set_experts("0-3");
  return router;
}

TEST(AdminJsonTest, ExpertsHaveTheFieldsOfTheProtoAndNumbersThatAreNumbers) {
  const json body = json::parse(ExpertsJson({Router()}));
  const json& router = body["routers"][0];
  EXPECT_EQ(router["router_id"], "r0");
  EXPECT_EQ(router["runs_on"]["isa"], "avx2");
  EXPECT_EQ(router["windows"], json::parse(R"([{"seconds": 1.0, "spans": 1.1}])"));
  EXPECT_EQ(router["experts"], json::parse(R"([{"layer": 3, "expert": 9, "workers": ["w:1"],
      "rows": 1152921504606846976, "window_rows": [5]}])"));
  EXPECT_EQ(router["layers"][0]["expert_imbalance"], json::parse("[2.5]"));
  EXPECT_EQ(router["dispatch"]["retried_rows"], 4);
  EXPECT_EQ(router["dispatch"]["routing_fallbacks"], 11);
  EXPECT_EQ(router["engine"]["running"], 2);
  EXPECT_EQ(router["engine"]["degraded_rows"], 12);
  EXPECT_EQ(router["engine"]["degraded_choices"], 3);
  EXPECT_EQ(router["placement"]["epoch_in_use"], 7);
  EXPECT_FALSE(router["placement"].contains("document")) << "that is the other page's";
  const json& workers = router["workers"];
  EXPECT_EQ(workers[0]["window_rows"], json::parse("[7]"));
  EXPECT_EQ(workers[0]["free_bytes"], 0) << "nothing is free";
  EXPECT_EQ(workers[1]["free_bytes"], nullptr) << "nobody said";
  EXPECT_EQ(workers[1]["runs_on"], nullptr);
}

TEST(AdminJsonTest, AnOlderRoutersAnswerIsShownWithoutWhatItDoesNotSay) {
  v1::RouterExperts old;
  old.add_experts()->set_rows(3);
  const json router = json::parse(ExpertsJson({old}))["routers"][0];
  EXPECT_EQ(router["windows"], json::array());
  EXPECT_EQ(router["experts"][0]["window_rows"], json::array());
  EXPECT_EQ(router["experts"][0]["rows"], 3);
}

TEST(AdminJsonTest, APlacementIsTheDocumentAndHowFarItIs) {
  const json router = json::parse(PlacementJson({Router()}))["routers"][0];
  EXPECT_EQ(router["router_id"], "r0");
  EXPECT_EQ(router["epoch"], 8);
  EXPECT_EQ(router["epoch_in_use"], 7);
  EXPECT_EQ(router["document"], json::parse(R"({"epoch": 8, "workers": [
      {"worker": "w:1", "holds": [{"layers": "*", "experts": "0-3"}]}]})"));
  EXPECT_EQ(json::parse(PlacementJson({}))["routers"], json::array());
}

}  // namespace
}  // namespace switchyard::gateway
