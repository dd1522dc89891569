#include "tools/cli/top_state.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "services/telemetry/names.h"

namespace switchyard::cli {
namespace {

using nlohmann::json;

constexpr int kIdsMax = 1 << 20;

// ---- a server's JSON, whatever its types are ----

const json& At(const json& object, const char* key) {
  static const json none;
  if (!object.is_object()) return none;
  const auto at = object.find(key);
  return at == object.end() ? none : *at;
}

double Number(const json& object, const char* key) {
  const json& value = At(object, key);
  const double number = value.is_number() ? value.get<double>() : 0;
  return std::isfinite(number) ? number : 0;
}

int64_t Integer(const json& object, const char* key) {
  return static_cast<int64_t>(std::clamp(Number(object, key), -9e18, 9e18));
}

uint64_t Count(const json& object, const char* key) {
  return static_cast<uint64_t>(std::clamp(Number(object, key), 0.0, 1.8e19));
}

// Of a layer or expert; -1: none.
int Id(const json& object, const char* key) {
  const int64_t id = At(object, key).is_number_integer() ? Integer(object, key) : -1;
  return id < kIdsMax ? static_cast<int>(std::max<int64_t>(id, -1)) : -1;
}

std::string Text(const json& object, const char* key) {
  const json& value = At(object, key);
  return value.is_string() ? value.get<std::string>() : std::string();
}

bool Is(const json& object, const char* key) { return At(object, key) == json(true); }

double ItemOf(const json& object, const char* key, size_t i) {
  const json& list = At(object, key);
  return list.is_array() && i < list.size() && list[i].is_number() ? list[i].get<double>() : 0;
}

// ---- metrics ----

// The end of a `{…}` that begins at 0; npos: it has none. Fills `le`.
size_t ReadLabels(std::string_view text, std::string* le) {
  size_t at = 1;
  while (at < text.size() && text[at] != '}') {
    const size_t equals = text.find("=\"", at);
    if (equals == std::string_view::npos) return std::string_view::npos;
    const std::string_view name = text.substr(at, equals - at);
    size_t end = equals + 2;
    while (end < text.size() && text[end] != '"') end += text[end] == '\\' ? 2 : 1;
    if (end >= text.size()) return std::string_view::npos;
    if (name == "le") *le = std::string(text.substr(equals + 2, end - equals - 2));
    at = end + 1;
    if (at < text.size() && text[at] == ',') ++at;
  }
  return at < text.size() ? at : std::string_view::npos;
}

void ReadLine(std::string_view line, MetricsText* out) {
  const size_t name_end = line.find_first_of("{ ");
  if (line.empty() || line[0] == '#' || name_end == std::string_view::npos) return;
  const std::string name(line.substr(0, name_end));
  std::string_view rest = line.substr(name_end);
  std::string le;
  if (rest[0] == '{') {
    const size_t end = ReadLabels(rest, &le);
    if (end == std::string_view::npos) return;
    rest.remove_prefix(end + 1);
  }
  rest.remove_prefix(std::min(rest.find_first_not_of(' '), rest.size()));
  double value = 0, bound = 0;
  if (!absl::SimpleAtod(std::string(rest.substr(0, rest.find(' '))), &value) ||
      !std::isfinite(value))
    return;
  if (le.empty()) {
    out->values[name] += value;
  } else if (absl::SimpleAtod(le, &bound) && !std::isnan(bound)) {
    out->buckets[name][bound] += value;
  }
}

struct Interval {
  const TopSample& before;
  const TopSample& now;

  // A server that was started anew counts from 0.
  double Rate(double was, double is) const {
    const double seconds = now.at - before.at;
    return seconds > 0 ? (is >= was ? is - was : is) / seconds : 0;
  }
  double Rate(std::string_view metric) const {
    return Rate(before.metrics[metric], now.metrics[metric]);
  }
  TopLatency Latency(const std::string& histogram) const {
    static const std::map<double, double> none;
    const auto buckets = [&](const TopSample& sample) -> const std::map<double, double>& {
      const auto at = sample.metrics.buckets.find(histogram + "_bucket");
      return at == sample.metrics.buckets.end() ? none : at->second;
    };
    return {.p50 = PercentileBetween(buckets(before), buckets(now), 0.5),
            .p99 = PercentileBetween(buckets(before), buckets(now), 0.99)};
  }
};

TopGateway GatewayOf(const Interval& interval) {
  return {
      .open = interval.now.metrics[telemetry::kGatewayOpenRequests.name],
      .tokens = interval.Rate(telemetry::kGatewayOutputTokens.name),
      // Whoever asks as `top` does is no load.
      .requests = interval.Rate(std::string(telemetry::kGatewayFirstTokenSeconds.name) + "_count"),
      .degraded = interval.Rate("switchyard_gateway_degraded_responses_total"),
      .resumed = interval.Rate(telemetry::kGatewayResumed.name),
      .first_token = interval.Latency(telemetry::kGatewayFirstTokenSeconds.name),
      .inter_token = interval.Latency(telemetry::kGatewayInterTokenSeconds.name)};
}

class StateReader {
 public:
  StateReader(const Interval& interval, double window, TopState* out)
      : interval_(interval), window_(window), out_(*out) {}

  void AddRouter(const json& router) {
    FindWindow(router);
    TopRouter row = RouterOf(router);
    for (const json& worker : At(router, "workers")) AddWorker(worker, &row);
    for (const json& layer : At(router, "layers")) AddLayer(layer);
    for (const json& expert : At(router, "experts")) AddExpert(expert);
    out_.routers.push_back(std::move(row));
  }

  void Finish() {
    for (auto& [address, worker] : workers_) out_.workers.push_back(std::move(worker));
    for (auto& [id, layer] : layers_) out_.layers.push_back(layer);
    for (auto& [cell, expert] : experts_) out_.experts.push_back(expert);
  }

 private:
  void FindWindow(const json& router) {
    const json& windows = At(router, "windows");
    at_ = std::numeric_limits<size_t>::max();  // where no list has anything
    spans_ = 0;
    if (!windows.is_array()) return;
    for (size_t i = 0; i < windows.size(); ++i) {
      if (Number(windows[i], "seconds") != window_) continue;
      at_ = i;
      spans_ = Number(windows[i], "spans");
    }
  }
  double RowsOf(const json& object) const {
    return spans_ > 0 ? ItemOf(object, "window_rows", at_) / spans_ : 0;
  }

  TopRouter RouterOf(const json& router) const {
    TopRouter row;
    row.id = Text(router, "router_id");
    const json& engine = At(router, "engine");
    row.state = Is(engine, "draining") ? "draining" : "up";
    row.running = Integer(engine, "running");
    row.waiting = Integer(engine, "waiting");
    const double blocks = Number(engine, "kv_blocks");
    row.kv_used = blocks > 0 ? Number(engine, "kv_blocks_used") / blocks : 0;
    const json& placement = At(router, "placement");
    row.epoch = Count(placement, "epoch");
    row.epoch_in_use = Count(placement, "epoch_in_use");
    row.moving = Integer(placement, "moving");
    row.orphans = Integer(placement, "orphans");
    row.failed_loads = Integer(placement, "failed_loads");
    row.migrations = Count(placement, "migrations");
    row.taken_over = Count(placement, "taken_over");
    const json& is = At(router, "dispatch");
    json was;
    for (const json& earlier : At(interval_.before.experts, "routers")) {
      if (Text(earlier, "router_id") == row.id) was = At(earlier, "dispatch");
    }
    if (was.is_null()) return row;  // it was not there: all that it has ever counted is no rate
    const auto rate = [&](const char* key) {
      return interval_.Rate(Number(was, key), Number(is, key));
    };
    row.retried = rate("retried_rows");
    row.hedged = rate("hedged_rows");
    row.hedges_won = rate("hedges_won");
    row.parked = rate("parked_rows");
    row.lost = rate("lost_rows");
    return row;
  }

  void AddWorker(const json& worker, TopRouter* router) {
    const std::string address = Text(worker, "address");
    if (address.empty()) return;
    const auto [at, fresh] = workers_.try_emplace(address);
    TopWorker& row = at->second;
    row.address = address;
    // What any router cannot reach is worth showing.
    if (fresh || row.state == "up") row.state = Text(worker, "state");
    row.node = Text(worker, "node");
    row.zone = Text(worker, "zone");
    row.rows += RowsOf(worker);
    router->rows += RowsOf(worker);
    row.p50 = std::max(row.p50, Number(worker, "latency_p50_s"));
    row.p99 = std::max(row.p99, Number(worker, "latency_p99_s"));
    row.experts = std::max(row.experts, Count(worker, "experts"));
    row.epoch = std::max(row.epoch, Count(worker, "epoch"));
    row.ejections += Count(worker, "ejections");
    row.ejected |= Is(worker, "ejected");
    if (At(worker, "free_bytes").is_number()) row.free_bytes = Count(worker, "free_bytes");
  }

  void AddLayer(const json& layer) {
    const int id = Id(layer, "layer");
    if (id < 0) return;
    TopLayer& row = layers_[id];
    row.layer = id;
    row.expert_imbalance = std::max(row.expert_imbalance, ItemOf(layer, "expert_imbalance", at_));
    row.worker_imbalance = std::max(row.worker_imbalance, ItemOf(layer, "worker_imbalance", at_));
  }

  void AddExpert(const json& expert) {
    const int layer = Id(expert, "layer"), id = Id(expert, "expert");
    if (layer < 0 || id < 0) return;
    TopExpert& row = experts_[{layer, id}];
    row.layer = layer;
    row.expert = id;
    row.rows += RowsOf(expert);
    row.replicas = std::max(row.replicas, static_cast<int>(At(expert, "workers").size()));
  }

  const Interval& interval_;
  const double window_;
  TopState& out_;
  size_t at_ = 0;     // of the window in the lists of the router that is read
  double spans_ = 0;  // seconds
  std::map<std::string, TopWorker> workers_;
  std::map<int, TopLayer> layers_;
  std::map<std::pair<int, int>, TopExpert> experts_;
};

nlohmann::ordered_json MaybeJson(const auto& value) {
  if (!value.has_value()) return nullptr;
  return *value;
}

nlohmann::ordered_json GatewayJson(const TopGateway& g) {
  return {{"open_requests", g.open},
          {"tokens_per_s", g.tokens},
          {"requests_per_s", g.requests},
          {"degraded_per_s", g.degraded},
          {"resumed_per_s", g.resumed},
          {"first_token_p50_s", MaybeJson(g.first_token.p50)},
          {"first_token_p99_s", MaybeJson(g.first_token.p99)},
          {"inter_token_p50_s", MaybeJson(g.inter_token.p50)},
          {"inter_token_p99_s", MaybeJson(g.inter_token.p99)}};
}

nlohmann::ordered_json RouterJson(const TopRouter& r) {
  return {{"id", r.id},
          {"state", r.state},
          {"running", r.running},
          {"waiting", r.waiting},
          {"kv_used", r.kv_used},
          {"rows_per_s", r.rows},
          {"retried_rows_per_s", r.retried},
          {"hedged_rows_per_s", r.hedged},
          {"hedges_won_per_s", r.hedges_won},
          {"parked_rows_per_s", r.parked},
          {"lost_rows_per_s", r.lost},
          {"epoch", r.epoch},
          {"epoch_in_use", r.epoch_in_use},
          {"moving", r.moving},
          {"orphans", r.orphans},
          {"failed_loads", r.failed_loads},
          {"migrations", r.migrations},
          {"taken_over", r.taken_over}};
}

nlohmann::ordered_json WorkerJson(const TopWorker& w) {
  return {{"address", w.address},     {"state", w.state},
          {"node", w.node},           {"zone", w.zone},
          {"rows_per_s", w.rows},     {"latency_p50_s", w.p50},
          {"latency_p99_s", w.p99},   {"experts", w.experts},
          {"epoch", w.epoch},         {"ejected", w.ejected},
          {"ejections", w.ejections}, {"free_bytes", MaybeJson(w.free_bytes)}};
}

}  // namespace

double MetricsText::operator[](std::string_view name) const {
  const auto at = values.find(name);
  return at == values.end() ? 0 : at->second;
}

MetricsText ParseMetrics(std::string_view text) {
  MetricsText out;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    ReadLine(text.substr(0, end), &out);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

std::optional<double> PercentileBetween(const std::map<double, double>& before,
                                        const std::map<double, double>& after, double share) {
  const auto between = [&](double bound, double count) {
    const auto at = before.find(bound);
    return at == before.end() || at->second > count ? count : count - at->second;
  };
  if (after.empty()) return std::nullopt;
  const bool any = between(after.rbegin()->first, after.rbegin()->second) > 0;
  const auto counted = [&](double bound, double count) {
    return any ? between(bound, count) : count;
  };
  const double all = counted(after.rbegin()->first, after.rbegin()->second);
  if (all <= 0) return std::nullopt;
  double low = 0, below = 0;
  for (const auto& [bound, count] : after) {
    const double here = counted(bound, count);
    if (here >= share * all) {
      if (std::isinf(bound) || here <= below) return low;
      return low + (bound - low) * (share * all - below) / (here - below);
    }
    low = bound;
    below = here;
  }
  return low;
}

TopState MakeTopState(const TopSample& before, const TopSample& now, double window) {
  TopState state;
  state.model = now.model;
  state.missing = now.missing;
  state.window = window;
  const Interval interval{before, now};
  state.gateway = GatewayOf(interval);
  StateReader reader(interval, window, &state);
  for (const json& router : At(now.experts, "routers")) reader.AddRouter(router);
  reader.Finish();
  return state;
}

nlohmann::ordered_json ToJson(const TopState& state) {
  using nlohmann::ordered_json;
  ordered_json routers = ordered_json::array(), workers = ordered_json::array(),
               layers = ordered_json::array(), experts = ordered_json::array();
  for (const TopRouter& router : state.routers) routers.push_back(RouterJson(router));
  for (const TopWorker& worker : state.workers) workers.push_back(WorkerJson(worker));
  for (const TopLayer& l : state.layers) {
    layers.push_back({{"layer", l.layer},
                      {"expert_imbalance", l.expert_imbalance},
                      {"worker_imbalance", l.worker_imbalance}});
  }
  for (const TopExpert& e : state.experts) {
    experts.push_back({{"layer", e.layer},
                       {"expert", e.expert},
                       {"rows_per_s", e.rows},
                       {"replicas", e.replicas}});
  }
  return {{"url", state.url},
          {"model", state.model},
          {"missing", state.missing},
          {"lost", state.lost},
          {"window_s", state.window},
          {"gateway", GatewayJson(state.gateway)},
          {"routers", std::move(routers)},
          {"workers", std::move(workers)},
          {"layers", std::move(layers)},
          {"experts", std::move(experts)}};
}

}  // namespace switchyard::cli
