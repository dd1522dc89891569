// What a router tells of its experts and workers, with their load over the last seconds: the answer
// of DescribeExperts, and metrics of the same.
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "router/dispatch/link_dispatcher.h"
#include "router/fleet/balancer.h"
#include "router/fleet/fleet.h"
#include "router/graph/routing_policy.h"
#include "router/loop/engine.h"
#include "router/service/counter_windows.h"
#include "services/expertwire/link_set.h"
#include "services/model/spec.h"
#include "services/placement/document.h"
#include "services/telemetry/metrics.h"
#include "switchyard/internal/v1/process.pb.h"
#include "switchyard/v1/admin.pb.h"

namespace switchyard::router {

class LoadReport {
 public:
  // All outlive it.
  LoadReport(const ModelSpec& spec, std::string model_fingerprint, const expertwire::LinkSet& links,
             const LinkDispatcher& dispatcher, const Engine& engine);

  // To be called some times a second: the windows go by it.
  void Look(CounterWindows::Time now);
  void Describe(CounterWindows::Time now, v1::RouterExperts* out) const;
  // Adds what a fleet and, if there is one, a balancer say of its placement.
  static void Describe(const Fleet& fleet, const Balancer* balancer, v1::PlacementState* out);
  // Adds what a routing policy, if there is one, did.
  static void Describe(const RoutingPolicy* routing, v1::DispatchCounts* out);
  // Imbalance of each layer over the last 10 s.
  void CollectTo(CounterWindows::Time now, telemetry::Samples& samples) const;

 private:
  // Of one moment. `held`: by link, then cell; empty of links that do not serve.
  struct View {
    std::vector<LinkReport> links;
    std::vector<std::vector<bool>> held;
    std::vector<uint64_t> counters;
    std::vector<CounterWindows::Counts> windows;
  };
  std::vector<uint64_t> Counters(std::span<const LinkReport> links) const;
  void DescribeWorkers(std::span<const LinkReport> links, std::vector<std::vector<bool>>* held,
                       v1::RouterExperts* out) const;
  void DescribeLinkLoad(const View& view, size_t link, v1::WorkerView* out) const;
  void DescribeLayer(const View& view, int layer, v1::RouterExperts* out) const;
  std::span<const uint64_t> OfLayer(const CounterWindows::Counts& window, int layer) const;

  const placement::ExpertGrid grid_;
  const std::string model_fingerprint_;
  const expertwire::LinkSet& links_;
  const LinkDispatcher& dispatcher_;
  const Engine& engine_;

  mutable absl::Mutex mutex_;
  CounterWindows windows_ ABSL_GUARDED_BY(mutex_);
};

// What services say of themselves to each other, for others.
void SetRunsOn(const internal::v1::RunsOn& runs_on, v1::RunsOn* out);

// The value below which `share` of all that was counted lies, by buckets as in HistogramCounts; 0
// of nothing.
double Percentile(std::span<const uint64_t> counts, double share);

}  // namespace switchyard::router
