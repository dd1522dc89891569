#include "router/service/router_metrics.h"

#include <numeric>
#include <string>

#include "services/telemetry/names.h"

namespace switchyard::router {
namespace {

namespace t = telemetry;

constexpr char kService[] = "router";
constexpr const char* kFinishNames[] = {"none", "stop", "length", "cancelled", "error"};

void CollectEngine(const EngineSnapshot& engine, t::Samples& samples) {
  samples.Gauge(t::kRouterRunning, engine.running);
  samples.Gauge(t::kRouterWaiting, engine.waiting);
  samples.Gauge(t::kRouterKvUsed, static_cast<double>(engine.kv_blocks_used));
  samples.Gauge(t::kRouterKvBlocks, static_cast<double>(engine.kv_blocks));
  samples.Gauge(t::kRouterKvCached, static_cast<double>(engine.kv_blocks_cached));
  samples.Counter(t::kRouterSteps, static_cast<double>(engine.steps));
}

void CollectLink(const LinkReport& link, t::Samples& samples) {
  const t::Labels worker = {{"worker", link.name}};
  const auto both = [&](const t::MetricDef& def, uint64_t out, uint64_t in) {
    samples.Counter(def, static_cast<double>(out), {{"worker", link.name}, {"direction", "out"}});
    samples.Counter(def, static_cast<double>(in), {{"worker", link.name}, {"direction", "in"}});
  };
  samples.Gauge(t::kRouterWorkerUp, link.state == expertwire::LinkState::kUp ? 1 : 0, worker);
  both(t::kRouterDispatchFrames, link.wire.frames_sent, link.wire.frames_received);
  both(t::kRouterDispatchBytes, link.wire.bytes_sent, link.wire.bytes_received);
  samples.Counter(t::kRouterDispatchRows, static_cast<double>(link.rows), worker);
  samples.Counter(t::kRouterLostParts, static_cast<double>(link.lost_parts), worker);
  samples.Counter(t::kRouterStaleAnswers, static_cast<double>(link.stale_answers), worker);
  samples.Counter(t::kRouterWorkerConnects, static_cast<double>(link.wire.connects), worker);
  samples.Counter(t::kRouterHints, static_cast<double>(link.hints), worker);
  samples.Counter(t::kRouterWorkerEjections, static_cast<double>(link.ejections), worker);
  samples.Gauge(t::kRouterWorkerEjected, link.ejected ? 1 : 0, worker);
  const auto micros = [&](const t::MetricDef& def, const expertwire::HistogramCounts& us) {
    samples.PowersOfTwo(def, us.counts, us.sum, 1e-6, worker);
  };
  micros(t::kRouterDispatchSeconds, link.latency_us);
  micros(t::kRouterDispatchWireSeconds, link.wire_us);
}

void CollectDispatch(const DispatchReport& report, t::Samples& samples) {
  const auto count = [&](const t::MetricDef& def, uint64_t value, const t::Labels& labels = {}) {
    samples.Counter(def, static_cast<double>(value), labels);
  };
  count(t::kRouterLostRows, report.lost_rows);
  count(t::kRouterAgainRows, report.retried_rows, {{"reason", "retry"}});
  count(t::kRouterAgainRows, report.hedged_rows, {{"reason", "hedge"}});
  count(t::kRouterHedgesWon, report.hedges_won);
  count(t::kRouterParkedRows, report.parked_rows);
}

void CollectFleet(const FleetReport& fleet, t::Samples& samples) {
  const auto gauge = [&](const t::MetricDef& def, auto value, const t::Labels& labels = {}) {
    samples.Gauge(def, static_cast<double>(value), labels);
  };
  gauge(t::kRouterPlacementEpoch, fleet.epoch, {{"state", "followed"}});
  gauge(t::kRouterPlacementEpoch, fleet.epoch_in_use, {{"state", "used"}});
  gauge(t::kRouterExpertsMoving, fleet.moving);
  gauge(t::kRouterOrphans, fleet.orphans);
  gauge(t::kRouterFailedLoads, fleet.failed_loads);
  gauge(t::kRouterWorkersAhead, fleet.ahead);
  samples.Counter(t::kRouterMigrations, static_cast<double>(fleet.migrations));
  samples.Counter(t::kRouterTakeovers, static_cast<double>(fleet.taken_over));
}

}  // namespace

std::vector<ExpertSeries> ChooseExpertSeries(const ModelSpec& spec,
                                             std::span<const uint64_t> rows) {
  std::vector<ExpertSeries> out;
  const int experts = spec.experts.count;
  int moe_layers = 0;
  for (const LayerSpec& layer : spec.layers) moe_layers += layer.moe;
  const bool all = int64_t{moe_layers} * experts <= kExpertSeriesMax;
  const int keep = all ? experts : std::min(experts, kHottestExperts);
  std::vector<int> order(static_cast<size_t>(experts));
  for (int layer = 0; layer < spec.num_layers(); ++layer) {
    if (!spec.layers[static_cast<size_t>(layer)].moe) continue;
    const auto of = rows.subspan(static_cast<size_t>(layer) * experts, experts);
    std::iota(order.begin(), order.end(), 0);
    if (!all) {
      std::partial_sort(order.begin(), order.begin() + keep, order.end(),
                        [&](int a, int b) { return of[a] != of[b] ? of[a] > of[b] : a < b; });
    }
    for (int i = 0; i < keep; ++i) {
      out.push_back({.layer = layer, .expert = order[i], .rows = of[order[i]]});
    }
  }
  return out;
}

void CollectRouting(const RoutingOptions& options, const RoutingCounts& counts,
                    t::Samples& samples) {
  const t::Labels labels = {{"policy", options.Name()}};
  const auto counter = [&](const t::MetricDef& def, uint64_t value, const t::Labels& of) {
    samples.Counter(def, static_cast<double>(value), of);
  };
  counter(t::kRouterRoutingRows, counts.rows, labels);
  counter(t::kRouterRoutingChanged, counts.changed, labels);
  samples.Histogram(t::kRouterRoutingExperts, t::kFewCounts,
                    std::span(counts.by_experts).first(std::size(t::kFewCounts)), counts.rows,
                    static_cast<double>(counts.experts), labels);
  if (options.kind == RoutingKind::kEntropy) {
    const uint64_t rows =
        std::accumulate(counts.by_entropy.begin(), counts.by_entropy.end(), uint64_t{0});
    samples.Histogram(t::kRouterRoutingEntropy, t::kShares, counts.by_entropy, rows,
                      static_cast<double>(counts.entropy_millionths) * 1e-6, labels);
    counter(t::kRouterRoutingFallbacks, counts.fallbacks, labels);
  }
  if (options.kind == RoutingKind::kCapacity) {
    counter(t::kRouterRoutingOverflow, counts.moved, {{"outcome", "moved"}});
    counter(t::kRouterRoutingOverflow, counts.dropped, {{"outcome", "dropped"}});
  }
}

RouterMetrics::RouterMetrics(t::Metrics& metrics, ExpertMetrics experts)
    : metrics_(metrics),
      experts_(experts),
      ready_(metrics.Gauge(t::kReady, kService)),
      step_seconds_(metrics.Histogram(t::kRouterStepSeconds, kService)),
      step_rows_(metrics.Histogram(t::kRouterStepRows, kService)),
      step_sequences_(metrics.Histogram(t::kRouterStepSequences, kService)),
      prefill_rows_(metrics.Counter(t::kRouterPrefillRows, kService)),
      halved_steps_(metrics.Counter(t::kRouterHalvedSteps, kService)),
      engine_seconds_(metrics.Counter(t::kRouterEngineSeconds, kService)),
      expert_wait_seconds_(metrics.Counter(t::kRouterExpertWaitSeconds, kService)),
      queue_(metrics.Histogram(t::kRouterQueueSeconds, kService)),
      first_token_(metrics.Histogram(t::kRouterFirstTokenSeconds, kService)),
      inter_token_(metrics.Histogram(t::kRouterInterTokenSeconds, kService)),
      preemptions_(metrics.Counter(t::kRouterPreemptions, kService)),
      slow_(metrics.Counter(t::kRouterSlowStreams, kService)),
      prefix_queries_(metrics.Counter(t::kRouterPrefixQueries, kService)),
      prefix_hits_(metrics.Counter(t::kRouterPrefixHits, kService)),
      drafts_(metrics.Counter(t::kRouterDrafts, kService)),
      accepted_(metrics.Counter(t::kRouterAccepted, kService)),
      prompt_tokens_(metrics.Counter(t::kRouterPromptTokens, kService)),
      output_tokens_(metrics.Counter(t::kRouterOutputTokens, kService)) {
  for (const char* name : kFinishNames) {
    finished_.push_back(name == kFinishNames[0]
                            ? nullptr
                            : &metrics.Counter(t::kRouterRequests, kService, {{"finish", name}}));
  }
  for (const LostExperts how :
       {LostExperts::kFail, LostExperts::kRenormalise, LostExperts::kNextBest}) {
    degraded_.push_back(how == LostExperts::kFail
                            ? nullptr
                            : &metrics.Counter(t::kRouterDegradedRows, kService,
                                               {{"policy", std::string(Name(how))}}));
  }
}

void CollectBalancer(const BalancerReport& report, absl::Time now, t::Samples& samples) {
  for (const BalancerReport::State state : kBalancerStates) {
    samples.Gauge(t::kRouterBalancerState, report.state == state ? 1 : 0,
                  {{"state", std::string(Name(state))}});
  }
  samples.Gauge(t::kRouterBalancerSilent, absl::ToDoubleSeconds(now - report.last_look));
  const auto plans = [&](const char* result, uint64_t count) {
    samples.Counter(t::kRouterBalancerPlans, static_cast<double>(count), {{"result", result}});
  };
  plans("published", report.published);
  plans("kept", report.kept);
  plans("failed", report.failed);
  samples.Gauge(t::kRouterBalancerUtilisation, report.utilisation, {{"of", "present"}});
  samples.Gauge(t::kRouterBalancerUtilisation, report.planned, {{"of", "planned"}});
  samples.Counter(t::kRouterBalancerBytes, static_cast<double>(report.bytes));
}

t::Metrics::Registration RouterMetrics::Watch(const ModelSpec& spec, const Engine& engine,
                                              const RouterService& service,
                                              const LinkDispatcher& dispatcher, const Fleet& fleet,
                                              const RoutingPolicy* routing,
                                              const kernels::ThreadPool& pool) {
  return metrics_.AddCollector(kService, [this, &spec, &engine, &service, &dispatcher, &fleet,
                                          routing, &pool](t::Samples& samples) {
    CollectEngine(engine.Snapshot(), samples);
    samples.Counter(t::kRouterKernelSeconds, pool.seconds_inside());
    samples.Gauge(t::kRouterStreams, service.streams());
    CollectDispatch(dispatcher.Report(), samples);
    CollectFleet(fleet.Report(), samples);
    for (const LinkReport& link : dispatcher.Links()) {
      // Its name may stand again, as another link's.
      if (link.state != expertwire::LinkState::kGone) CollectLink(link, samples);
    }
    if (routing != nullptr) CollectRouting(routing->options(), routing->counts(), samples);
    if (experts_ != ExpertMetrics::kOff) CollectExperts(spec, dispatcher.ExpertRows(), samples);
  });
}

void RouterMetrics::CollectExperts(const ModelSpec& spec, const std::vector<uint64_t>& rows,
                                   t::Samples& samples) const {
  const auto experts = static_cast<size_t>(spec.experts.count);
  for (size_t layer = 0; layer < spec.layers.size(); ++layer) {
    if (!spec.layers[layer].moe) continue;
    samples.Gauge(t::kRouterExpertImbalance,
                  Imbalance(std::span(rows).subspan(layer * experts, experts)),
                  {{"layer", std::to_string(layer)}});
  }
  if (experts_ != ExpertMetrics::kAll) return;
  for (const ExpertSeries& s : ChooseExpertSeries(spec, rows)) {
    samples.Counter(t::kRouterExpertRows, static_cast<double>(s.rows),
                    {{"layer", std::to_string(s.layer)}, {"expert", std::to_string(s.expert)}});
  }
}

void RouterMetrics::OnRefused(const absl::Status& why) {
  metrics_.Counter(t::kRouterRefused, kService, {{"code", absl::StatusCodeToString(why.code())}})
      .Increment();
}

void RouterMetrics::OnStep(const StepReport& step) {
  step_seconds_.Observe(absl::ToDoubleSeconds(step.took));
  step_rows_.Observe(static_cast<double>(step.rows));
  step_sequences_.Observe(step.sequences);
  prefill_rows_.Increment(static_cast<double>(step.prefill_rows));
  if (step.micro_batches > 1) halved_steps_.Increment();
  expert_wait_seconds_.Increment(std::max(0.0, absl::ToDoubleSeconds(step.waited)));
}

void RouterMetrics::OnTurn(absl::Duration took) {
  engine_seconds_.Increment(absl::ToDoubleSeconds(took));
}

void RouterMetrics::OnQueued(absl::Duration waited) {
  queue_.Observe(absl::ToDoubleSeconds(waited));
}

void RouterMetrics::OnFirstToken(absl::Duration since_submit) {
  first_token_.Observe(absl::ToDoubleSeconds(since_submit));
}

void RouterMetrics::OnToken(absl::Duration since_last) {
  inter_token_.Observe(absl::ToDoubleSeconds(since_last));
}

void RouterMetrics::OnPrefixLookup(int64_t tokens, int64_t found) {
  prefix_queries_.Increment(static_cast<double>(tokens));
  prefix_hits_.Increment(static_cast<double>(found));
}

void RouterMetrics::OnDrafts(int64_t drafts, int64_t accepted) {
  drafts_.Increment(static_cast<double>(drafts));
  accepted_.Increment(static_cast<double>(accepted));
}

void RouterMetrics::OnDegraded(LostExperts how) {
  if (auto* counter = degraded_[static_cast<size_t>(how)]) counter->Increment();
}

void RouterMetrics::OnFinished(Finish finish, int prompt_tokens, int output_tokens) {
  if (auto* counter = finished_[static_cast<size_t>(finish)]) counter->Increment();
  prompt_tokens_.Increment(prompt_tokens);
  output_tokens_.Increment(output_tokens);
}

}  // namespace switchyard::router
