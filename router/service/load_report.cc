#include "router/service/load_report.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "router/service/router_metrics.h"
#include "services/base/status.h"
#include "services/expertwire/held.h"
#include "services/expertwire/histogram.h"
#include "services/telemetry/names.h"

namespace switchyard::router {
namespace {

using expertwire::HistogramCounts;
namespace pb = internal::v1;

// Of a link among the counters: its rows, then its latencies by bucket.
constexpr size_t kOfLink = 1 + HistogramCounts::kBuckets;
constexpr size_t kTenSeconds = 1;  // of CounterWindows::kWindows

std::vector<bool> HeldCells(const pb::Hello& hello, const placement::ExpertGrid& grid) {
  std::vector<bool> held(grid.cells());
  expertwire::ForEachHeld(hello.held(), grid.layers(), grid.experts,
                          [&](int layer, int expert) { held[grid.cell(layer, expert)] = true; });
  return held;
}

void DescribePeer(const pb::Hello& hello, v1::WorkerView* view) {
  view->set_numerics_id(hello.numerics_id());
  view->set_node(hello.node());
  view->set_zone(hello.zone());
  view->set_epoch(hello.epoch());
  view->set_assigned_epoch(hello.assigned_epoch());
  view->set_failed_experts(static_cast<uint64_t>(hello.failed_size()));
  view->set_memory_bytes(hello.memory_bytes());
  // A worker of an earlier revision says nothing of it.
  if (hello.revision() > 0 && hello.free_bytes() != UINT64_MAX) {
    view->set_free_bytes(hello.free_bytes());
  }
  if (hello.has_runs_on()) SetRunsOn(hello.runs_on(), view->mutable_runs_on());
}

void DescribeCounts(const DispatchReport& report, v1::DispatchCounts* out) {
  out->set_lost_rows(report.lost_rows);
  out->set_retried_rows(report.retried_rows);
  out->set_hedged_rows(report.hedged_rows);
  out->set_hedges_won(report.hedges_won);
  out->set_parked_rows(report.parked_rows);
}

void DescribeEngine(const EngineSnapshot& engine, v1::EngineLoad* out) {
  out->set_running(engine.running);
  out->set_waiting(engine.waiting);
  out->set_kv_blocks(engine.kv_blocks);
  out->set_kv_blocks_used(engine.kv_blocks_used);
  out->set_draining(engine.draining);
  out->set_degraded_rows(engine.degraded_rows);
  out->set_degraded_choices(engine.degraded_choices);
}

void DescribeBalancer(const BalancerReport& report, v1::BalancerState* out) {
  out->set_state(std::string(Name(report.state)));
  out->set_last(report.last);
  out->set_published(report.published);
  out->set_kept(report.kept);
  out->set_failed(report.failed);
  out->set_utilisation(report.utilisation);
  out->set_planned(report.planned);
  out->set_moved_bytes(report.bytes);
}

// Load of each worker that holds experts of the layer, an expert's rows shared alike by its
// holders.
std::vector<double> WorkerLoads(const placement::ExpertGrid& grid, int layer,
                                std::span<const uint64_t> rows,
                                std::span<const std::vector<bool>> held) {
  std::vector<double> loads;
  std::vector<int> holders(static_cast<size_t>(grid.experts));
  for (const auto& cells : held) {
    for (int e = 0; e < grid.experts; ++e) {
      if (!cells.empty()) holders[static_cast<size_t>(e)] += cells[grid.cell(layer, e)];
    }
  }
  for (const auto& cells : held) {
    double load = 0;
    bool any = false;
    for (int e = 0; e < grid.experts && !cells.empty(); ++e) {
      const size_t cell = grid.cell(layer, e);
      if (!cells[cell]) continue;
      any = true;
      load += static_cast<double>(rows[cell]) / holders[static_cast<size_t>(e)];
    }
    if (any) loads.push_back(load);
  }
  return loads;
}

}  // namespace

void SetRunsOn(const pb::RunsOn& runs_on, v1::RunsOn* out) {
  out->set_version(runs_on.version());
  out->set_commit(runs_on.commit());
  out->set_isa(runs_on.isa());
  out->set_threads(runs_on.threads());
}

double Percentile(std::span<const uint64_t> counts, double share) {
  const uint64_t all = std::accumulate(counts.begin(), counts.end(), uint64_t{0});
  double wanted = share * static_cast<double>(all);
  for (size_t b = 0; b < counts.size() && all > 0; ++b) {
    const auto here = static_cast<double>(counts[b]);
    if (here > 0 && wanted <= here) {
      const double low = b == 0 ? 0 : std::ldexp(1.0, static_cast<int>(b) - 1);
      const double high = b == 0 ? 0 : 2 * low;
      return low + (high - low) * wanted / here;
    }
    wanted -= here;
  }
  return 0;
}

LoadReport::LoadReport(const ModelSpec& spec, std::string model_fingerprint,
                       const expertwire::LinkSet& links, const LinkDispatcher& dispatcher,
                       const Engine& engine)
    : grid_(placement::GridOf(spec)),
      model_fingerprint_(std::move(model_fingerprint)),
      links_(links),
      dispatcher_(dispatcher),
      engine_(engine) {}

std::vector<uint64_t> LoadReport::Counters(std::span<const LinkReport> links) const {
  std::vector<uint64_t> counters = dispatcher_.ExpertRows();
  counters.reserve(counters.size() + links.size() * kOfLink);
  for (const LinkReport& link : links) {
    counters.push_back(link.rows);
    counters.insert(counters.end(), link.latency_us.counts.begin(), link.latency_us.counts.end());
  }
  return counters;
}

void LoadReport::Look(CounterWindows::Time now) {
  absl::MutexLock lock(&mutex_);
  if (windows_.Due(now)) windows_.Add(now, Counters(dispatcher_.Links()));
}

void LoadReport::DescribeWorkers(std::span<const LinkReport> links,
                                 std::vector<std::vector<bool>>* held,
                                 v1::RouterExperts* out) const {
  held->resize(links.size());
  for (size_t i = 0; i < links.size(); ++i) {
    const LinkReport& link = links[i];
    if (link.state == expertwire::LinkState::kGone) continue;
    v1::WorkerView* view = out->add_workers();
    view->set_address(link.name);
    view->set_state(link.why.empty() ? std::string(Name(link.state))
                                     : fmt::format("{}: {}", Name(link.state), link.why));
    view->set_frames_out(link.wire.frames_sent);
    view->set_rows_out(link.rows);
    view->set_ejected(link.ejected);
    view->set_ejections(link.ejections);
    view->set_lost_parts(link.lost_parts);
    const auto peer = links_.links()[i]->peer();
    if (peer == nullptr) continue;
    DescribePeer(*peer, view);
    std::vector<bool> cells = HeldCells(*peer, grid_);
    view->set_experts(static_cast<uint64_t>(std::ranges::count(cells, true)));
    // The hello of one that is lost tells of nothing that is there.
    if (link.state != expertwire::LinkState::kUp &&
        link.state != expertwire::LinkState::kDraining) {
      continue;
    }
    v1::WorkerPlacement* holds = out->mutable_placement()->mutable_document()->add_workers();
    holds->set_worker(link.name);
    holds->set_node(peer->node());
    holds->set_zone(peer->zone());
    placement::SetHolds(cells, grid_, 0, holds);
    (*held)[i] = std::move(cells);
  }
}

void LoadReport::Describe(CounterWindows::Time now, v1::RouterExperts* out) const {
  View view{.links = dispatcher_.Links(), .held = {}, .counters = {}, .windows = {}};
  out->mutable_placement()->mutable_document()->set_model_fingerprint(model_fingerprint_);
  DescribeWorkers(view.links, &view.held, out);
  DescribeCounts(dispatcher_.Report(), out->mutable_dispatch());
  DescribeEngine(engine_.Snapshot(), out->mutable_engine());
  view.counters = Counters(view.links);
  {
    absl::MutexLock lock(&mutex_);
    for (size_t w = 0; w < CounterWindows::kWindows.size(); ++w) {
      view.windows.push_back(windows_.Over(w, now, view.counters));
    }
  }
  for (size_t w = 0; w < view.windows.size(); ++w) {
    v1::Window* window = out->add_windows();
    window->set_seconds(static_cast<double>(CounterWindows::kWindows[w].count()));
    window->set_spans(view.windows[w].seconds);
  }
  int worker = 0;
  for (size_t i = 0; i < view.links.size(); ++i) {
    if (view.links[i].state == expertwire::LinkState::kGone) continue;
    DescribeLinkLoad(view, i, out->mutable_workers(worker++));
  }
  for (int layer = 0; layer < grid_.layers(); ++layer) {
    if (grid_.moe_layers[static_cast<size_t>(layer)]) DescribeLayer(view, layer, out);
  }
}

void LoadReport::DescribeLinkLoad(const View& view, size_t link, v1::WorkerView* out) const {
  const size_t at = grid_.cells() + link * kOfLink;
  for (const auto& window : view.windows) out->add_window_rows(window.counts[at]);
  const auto latency = std::span(view.windows[kTenSeconds].counts).subspan(at + 1, kOfLink - 1);
  out->set_latency_p50_s(Percentile(latency, 0.5) * 1e-6);
  out->set_latency_p99_s(Percentile(latency, 0.99) * 1e-6);
}

void LoadReport::DescribeLayer(const View& view, int layer, v1::RouterExperts* out) const {
  v1::LayerBalance* balance = out->add_layers();
  balance->set_layer(layer);
  for (const auto& window : view.windows) {
    balance->add_expert_imbalance(Imbalance(OfLayer(window, layer)));
    balance->add_worker_imbalance(Imbalance(WorkerLoads(grid_, layer, window.counts, view.held)));
  }
  for (int e = 0; e < grid_.experts; ++e) {
    const size_t cell = grid_.cell(layer, e);
    v1::ExpertLoad* load = out->add_experts();
    load->set_layer(layer);
    load->set_expert(e);
    load->set_rows(view.counters[cell]);
    for (const auto& window : view.windows) load->add_window_rows(window.counts[cell]);
    for (size_t i = 0; i < view.held.size(); ++i) {
      if (!view.held[i].empty() && view.held[i][cell]) load->add_workers(view.links[i].name);
    }
    if (load->workers().empty()) {
      out->mutable_placement()->set_orphans(out->placement().orphans() + 1);
    }
  }
}

std::span<const uint64_t> LoadReport::OfLayer(const CounterWindows::Counts& window,
                                              int layer) const {
  return std::span(window.counts).subspan(grid_.cell(layer, 0), static_cast<size_t>(grid_.experts));
}

void LoadReport::CollectTo(CounterWindows::Time now, telemetry::Samples& samples) const {
  const std::vector<uint64_t> rows = dispatcher_.ExpertRows();
  CounterWindows::Counts window;
  {
    absl::MutexLock lock(&mutex_);
    window = windows_.Over(kTenSeconds, now, rows);
  }
  for (int layer = 0; layer < grid_.layers(); ++layer) {
    if (!grid_.moe_layers[static_cast<size_t>(layer)]) continue;
    samples.Gauge(telemetry::kRouterExpertWindowImbalance, Imbalance(OfLayer(window, layer)),
                  {{"layer", std::to_string(layer)}});
  }
}

void LoadReport::Describe(const RoutingPolicy* routing, v1::DispatchCounts* out) {
  if (routing != nullptr) out->set_routing_fallbacks(routing->counts().fallbacks);
}

void LoadReport::Describe(const Fleet& fleet, const Balancer* balancer, v1::PlacementState* out) {
  if (balancer != nullptr) DescribeBalancer(balancer->Report(), out->mutable_balancer());
  const FleetReport report = fleet.Report();
  out->set_epoch(report.epoch);
  out->set_epoch_in_use(report.epoch_in_use);
  out->set_moving(report.moving);
  out->set_taken_over(report.taken_over);
  out->set_migrations(report.migrations);
  out->set_failed_loads(report.failed_loads);
  for (const std::string& worker : report.waits_for) out->add_waits_for(worker);
  const auto followed = fleet.Followed();
  if (followed == nullptr) return;
  out->set_followed(true);
  v1::Placement& document = *out->mutable_document();
  document.clear_workers();
  document.set_epoch(followed->epoch());
  for (const placement::PlacementIndex::Worker& worker : followed->workers()) {
    v1::WorkerPlacement& placed = *document.add_workers();
    placed.set_worker(worker.address);
    placed.set_node(worker.node);
    placed.set_zone(worker.zone);
    placement::SetHolds(worker.held, followed->grid(), 0, &placed);
  }
}

}  // namespace switchyard::router
