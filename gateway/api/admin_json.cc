#include "gateway/api/admin_json.h"

#include "nlohmann/json.hpp"
#include "services/placement/document.h"

namespace switchyard::gateway {
namespace {

using nlohmann::json;

template <typename List>
auto VectorOf(const List& list) {
  return std::vector<typename List::value_type>(list.begin(), list.end());
}

// Null of an older peer, or one that has not been met yet.
json RunsOnJson(bool known, const v1::RunsOn& runs_on) {
  if (!known) return nullptr;
  return {{"version", runs_on.version()},
          {"commit", runs_on.commit()},
          {"isa", runs_on.isa()},
          {"threads", runs_on.threads()}};
}

json WorkerJson(const v1::WorkerView& w) {
  return {{"address", w.address()},
          {"state", w.state()},
          {"numerics_id", w.numerics_id()},
          {"experts", w.experts()},
          {"frames_out", w.frames_out()},
          {"rows_out", w.rows_out()},
          {"runs_on", RunsOnJson(w.has_runs_on(), w.runs_on())},
          {"window_rows", VectorOf(w.window_rows())},
          {"latency_p50_s", w.latency_p50_s()},
          {"latency_p99_s", w.latency_p99_s()},
          {"ejected", w.ejected()},
          {"ejections", w.ejections()},
          {"lost_parts", w.lost_parts()},
          {"node", w.node()},
          {"zone", w.zone()},
          {"epoch", w.epoch()},
          {"assigned_epoch", w.assigned_epoch()},
          {"failed_experts", w.failed_experts()},
          {"free_bytes", w.has_free_bytes() ? json(w.free_bytes()) : json(nullptr)},
          {"memory_bytes", w.memory_bytes()}};
}

json BalancerJson(const v1::BalancerState& balancer) {
  return {{"state", balancer.state()},         {"last", balancer.last()},
          {"published", balancer.published()}, {"kept", balancer.kept()},
          {"failed", balancer.failed()},       {"utilisation", balancer.utilisation()},
          {"planned", balancer.planned()},     {"moved_bytes", balancer.moved_bytes()}};
}

json StateJson(const v1::PlacementState& state) {
  return {{"followed", state.followed()},
          {"epoch", state.epoch()},
          {"epoch_in_use", state.epoch_in_use()},
          {"moving", state.moving()},
          {"orphans", state.orphans()},
          {"taken_over", state.taken_over()},
          {"migrations", state.migrations()},
          {"failed_loads", state.failed_loads()},
          {"waits_for", VectorOf(state.waits_for())},
          {"balancer", state.has_balancer() ? BalancerJson(state.balancer()) : json()}};
}

json RouterJson(const v1::RouterExperts& router) {
  json windows = json::array(), workers = json::array(), layers = json::array();
  for (const auto& w : router.windows()) {
    windows.push_back({{"seconds", w.seconds()}, {"spans", w.spans()}});
  }
  for (const auto& w : router.workers()) workers.push_back(WorkerJson(w));
  for (const auto& l : router.layers()) {
    layers.push_back({{"layer", l.layer()},
                      {"expert_imbalance", VectorOf(l.expert_imbalance())},
                      {"worker_imbalance", VectorOf(l.worker_imbalance())}});
  }
  json experts = json::array();
  for (const auto& e : router.experts()) {
    experts.push_back({{"layer", e.layer()},
                       {"expert", e.expert()},
                       {"rows", e.rows()},
                       {"window_rows", VectorOf(e.window_rows())},
                       {"workers", VectorOf(e.workers())}});
  }
  const v1::DispatchCounts& counts = router.dispatch();
  const v1::EngineLoad& engine = router.engine();
  return {{"router_id", router.router_id()},
          {"runs_on", RunsOnJson(router.has_runs_on(), router.runs_on())},
          {"routing_policy", router.routing_policy()},
          {"batch_dependent", router.batch_dependent()},
          {"windows", std::move(windows)},
          {"workers", std::move(workers)},
          {"layers", std::move(layers)},
          {"experts", std::move(experts)},
          {"dispatch",
           {{"lost_rows", counts.lost_rows()},
            {"retried_rows", counts.retried_rows()},
            {"hedged_rows", counts.hedged_rows()},
            {"hedges_won", counts.hedges_won()},
            {"parked_rows", counts.parked_rows()},
            {"routing_fallbacks", counts.routing_fallbacks()}}},
          {"engine",
           {{"running", engine.running()},
            {"waiting", engine.waiting()},
            {"kv_blocks", engine.kv_blocks()},
            {"kv_blocks_used", engine.kv_blocks_used()},
            {"draining", engine.draining()},
            {"degraded_rows", engine.degraded_rows()},
            {"degraded_choices", engine.degraded_choices()}}},
          {"placement", StateJson(router.placement())}};
}

// Texts from outside are valid UTF-8 by then, but a peer's state line need not be.
std::string Dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace

std::string ExpertsJson(const std::vector<v1::RouterExperts>& routers) {
  json list = json::array();
  for (const auto& router : routers) list.push_back(RouterJson(router));
  return Dump({{"routers", std::move(list)}});
}

std::string PlacementJson(const std::vector<v1::RouterExperts>& routers) {
  json list = json::array();
  for (const auto& router : routers) {
    json state = StateJson(router.placement());
    state["router_id"] = router.router_id();
    state["document"] =
        json::parse(placement::ToJson(router.placement().document()), nullptr, false);
    list.push_back(std::move(state));
  }
  return Dump({{"routers", std::move(list)}});
}

}  // namespace switchyard::gateway
