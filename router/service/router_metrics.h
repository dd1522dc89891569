// What a router reports: the engine's events as they come, everything else at each scrape from
// where it is counted.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "router/dispatch/link_dispatcher.h"
#include "router/fleet/balancer.h"
#include "router/fleet/fleet.h"
#include "router/graph/routing_policy.h"
#include "router/loop/engine.h"
#include "router/service/router_service.h"
#include "services/model/spec.h"
#include "services/telemetry/metrics.h"

namespace switchyard::router {

enum class ExpertMetrics { kAll, kSummary, kOff };

// One series of switchyard_router_expert_rows_total.
struct ExpertSeries {
  int layer = 0;
  int expert = 0;
  uint64_t rows = 0;
};
inline constexpr int kExpertSeriesMax = 4096;
inline constexpr int kHottestExperts = 16;
// Every expert of every MoE layer, or, where those are more than kExpertSeriesMax, the
// kHottestExperts of each layer (the lower id of equals). rows: [layers, experts].
std::vector<ExpertSeries> ChooseExpertSeries(const ModelSpec& spec, std::span<const uint64_t> rows);

// The most of some loads over their mean; 0 where all are 0.
template <typename Loads>
double Imbalance(const Loads& loads) {
  const double sum = std::accumulate(loads.begin(), loads.end(), 0.0);
  if (sum <= 0) return 0;
  const auto most = static_cast<double>(*std::max_element(loads.begin(), loads.end()));
  return most * static_cast<double>(loads.size()) / sum;
}

// What a routing policy did.
void CollectRouting(const RoutingOptions& options, const RoutingCounts& counts,
                    telemetry::Samples& samples);

void CollectBalancer(const BalancerReport& report, absl::Time now, telemetry::Samples& samples);

class RouterMetrics : public EngineObserver {
 public:
  // `metrics` outlives it.
  RouterMetrics(telemetry::Metrics& metrics, ExpertMetrics experts);

  // Reads these at each scrape; they outlive the registration. `routing` is null without a policy.
  [[nodiscard]] telemetry::Metrics::Registration Watch(const ModelSpec& spec, const Engine& engine,
                                                       const RouterService& service,
                                                       const LinkDispatcher& dispatcher,
                                                       const Fleet& fleet,
                                                       const RoutingPolicy* routing,
                                                       const kernels::ThreadPool& pool);
  void SetReady(bool ready) { ready_.Set(ready ? 1 : 0); }
  void OnRefused(const absl::Status& why);
  void OnSlow() { slow_.Increment(); }

  void OnStep(const StepReport& step) override;
  void OnTurn(absl::Duration took) override;
  void OnQueued(absl::Duration waited) override;
  void OnFirstToken(absl::Duration since_submit) override;
  void OnToken(absl::Duration since_last) override;
  void OnPreempted() override { preemptions_.Increment(); }
  void OnDisplaced(const absl::Status& why) override { OnRefused(why); }
  void OnDegraded(LostExperts how) override;
  void OnPrefixLookup(int64_t tokens, int64_t found) override;
  void OnDrafts(int64_t drafts, int64_t accepted) override;
  void OnFinished(Finish finish, int prompt_tokens, int output_tokens) override;

 private:
  void CollectExperts(const ModelSpec& spec, const std::vector<uint64_t>& rows,
                      telemetry::Samples& samples) const;

  telemetry::Metrics& metrics_;
  const ExpertMetrics experts_;
  prometheus::Gauge& ready_;
  prometheus::Histogram &step_seconds_, &step_rows_, &step_sequences_;
  prometheus::Counter &prefill_rows_, &halved_steps_, &engine_seconds_, &expert_wait_seconds_;
  prometheus::Histogram &queue_, &first_token_, &inter_token_;
  prometheus::Counter &preemptions_, &slow_;
  prometheus::Counter &prefix_queries_, &prefix_hits_, &drafts_, &accepted_;
  prometheus::Counter &prompt_tokens_, &output_tokens_;
  std::vector<prometheus::Counter*> finished_;  // by Finish
  std::vector<prometheus::Counter*> degraded_;  // by LostExperts
};

}  // namespace switchyard::router
