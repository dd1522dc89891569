#include "router/service/router_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace switchyard::router {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

ModelSpec Spec(int layers, int experts) {
  ModelSpec spec;
  spec.experts.count = experts;
  spec.layers.assign(static_cast<size_t>(layers), LayerSpec{.moe = true});
  spec.layers[0].moe = false;
  return spec;
}

TEST(ExpertSeries, AllOfASmallModelsMoeLayers) {
  const ModelSpec spec = Spec(3, 4);
  const std::vector<uint64_t> rows = {0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8};
  const auto series = ChooseExpertSeries(spec, rows);
  ASSERT_EQ(series.size(), 8u);
  EXPECT_TRUE(series[0].layer == 1 && series[0].expert == 0 && series[0].rows == 1);
  EXPECT_TRUE(series[7].layer == 2 && series[7].expert == 3 && series[7].rows == 8);
}

TEST(ExpertSeries, TheHottestOfALargeOnesLayers) {
  const ModelSpec spec = Spec(18, 256);  // 17 × 256 > 4096
  std::vector<uint64_t> rows(18 * 256, 1);
  rows[256 + 200] = 9;
  rows[256 + 100] = 9;
  const auto series = ChooseExpertSeries(spec, rows);
  ASSERT_EQ(series.size(), 17u * kHottestExperts);
  EXPECT_TRUE(series[0].expert == 100 && series[1].expert == 200);
  EXPECT_EQ(series[2].expert, 0);  // lower ids first among equals
}

TEST(Imbalance, IsTheBusiestOverTheMean) {
  EXPECT_EQ(Imbalance(std::vector<double>{}), 0);
  EXPECT_EQ(Imbalance(std::vector<double>{6, 1, 1, 0}), 3);
  EXPECT_EQ(Imbalance(std::vector<uint64_t>{0, 0}), 0);
  EXPECT_EQ(Imbalance(std::vector<uint64_t>{5, 5, 5, 5}), 1);
  EXPECT_EQ(Imbalance(std::vector<uint64_t>{0, 0, 0, 8}), 4);
}

TEST(RouterMetrics, SaysWhatARoutingPolicyDid) {
  RoutingCounts counts{.rows = 10, .changed = 4, .fallbacks = 3, .moved = 2, .dropped = 1};
  counts.experts = 25;
  counts.by_experts[2] = 6;
  counts.by_experts[3] = 3;
  counts.by_experts[16] = 1;  // and more: beyond the last bound
  counts.by_entropy[4] = 7;
  counts.by_entropy[9] = 3;
  counts.entropy_millionths = 6500000;
  const auto said = [&](const char* policy) {
    telemetry::Metrics metrics;
    const RoutingOptions options = *config::ParseRoutingPolicy(policy);
    const auto registration = metrics.AddCollector(
        "router", [&](telemetry::Samples& samples) { CollectRouting(options, counts, samples); });
    return metrics.Render();
  };
  const std::string entropy = said("entropy:low=0.5,few=2"), capacity = said("capacity:factor=2");
  const std::string labels = "{policy=\"entropy:low=0.5,few=2\",service=\"router\"";
  for (const std::string& line : {
           "switchyard_router_routing_rows_total" + labels + "} 10",
           "switchyard_router_routing_changed_rows_total" + labels + "} 4",
           "switchyard_router_routing_experts_bucket" + labels + ",le=\"2\"} 6",
           "switchyard_router_routing_experts_bucket" + labels + ",le=\"15\"} 9",
           "switchyard_router_routing_experts_count" + labels + "} 10",
           "switchyard_router_routing_experts_sum" + labels + "} 25",
           "switchyard_router_routing_entropy_ratio_bucket" + labels + ",le=\"0.5\"} 7",
           "switchyard_router_routing_entropy_ratio_sum" + labels + "} 6.5",
           "switchyard_router_routing_fallback_rows_total" + labels + "} 3",
       }) {
    EXPECT_THAT(entropy, HasSubstr(line));
  }
  EXPECT_THAT(entropy, Not(HasSubstr("overflow")));
  EXPECT_THAT(capacity, HasSubstr("switchyard_router_routing_overflow_rows_total{outcome=\"moved\","
                                  "service=\"router\"} 2"));
  EXPECT_THAT(capacity, HasSubstr("{outcome=\"dropped\",service=\"router\"} 1"));
  EXPECT_THAT(capacity, Not(HasSubstr("entropy_ratio")));
}

TEST(RouterMetrics, CountsWhatTheEngineSays) {
  telemetry::Metrics metrics;
  RouterMetrics router(metrics, ExpertMetrics::kAll);
  router.OnStep({.rows = 10,
                 .prefill_rows = 4,
                 .sequences = 3,
                 .micro_batches = 2,
                 .took = absl::Milliseconds(3),
                 .waited = absl::Milliseconds(500)});
  router.OnTurn(absl::Milliseconds(250));
  router.OnQueued(absl::Milliseconds(4));
  router.OnFirstToken(absl::Seconds(1));
  router.OnToken(absl::Microseconds(80));
  router.OnPreempted();
  router.OnDegraded(LostExperts::kNextBest);
  router.OnFinished(Finish::kStop, 7, 9);
  router.OnRefused(absl::ResourceExhaustedError("full"));
  const std::string text = metrics.Render();
  for (const char* line :
       {"switchyard_router_step_rows_sum{service=\"router\"} 10",
        "switchyard_router_prefill_rows_total{service=\"router\"} 4",
        "switchyard_router_step_seconds_bucket{service=\"router\",le=\"0.005\"} 1",
        "switchyard_router_step_seconds_bucket{service=\"router\",le=\"0.002\"} 0",
        "switchyard_router_halved_steps_total{service=\"router\"} 1",
        "switchyard_router_expert_wait_seconds_total{service=\"router\"} 0.5",
        "switchyard_router_engine_seconds_total{service=\"router\"} 0.25",
        "switchyard_router_time_to_first_token_seconds_count{service=\"router\"} 1",
        "switchyard_router_preemptions_total{service=\"router\"} 1",
        "switchyard_router_degraded_rows_total{policy=\"next-best\",service=\"router\"} 1",
        "switchyard_router_degraded_rows_total{policy=\"renormalise\",service=\"router\"} 0",
        "switchyard_router_requests_total{finish=\"stop\",service=\"router\"} 1",
        "switchyard_router_prompt_tokens_total{service=\"router\"} 7",
        "switchyard_router_output_tokens_total{service=\"router\"} 9",
        "switchyard_router_refused_requests_total{code=\"RESOURCE_EXHAUSTED\",service=\"router\"} "
        "1"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

}  // namespace
}  // namespace switchyard::router
