// What `switchyard top` shows: from two answers of a gateway, some time apart, to rates and loads.
// Pure; whatever a server says, time and memory are bounded by the size of its answers.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard::cli {

// Prometheus text, by metric: the sum over all labels but `le`.
struct MetricsText {
  std::map<std::string, double, std::less<>> values;
  std::map<std::string, std::map<double, double>, std::less<>>
      buckets;  // of NAME_bucket: le → count

  double operator[](std::string_view name) const;  // 0 where there is none
};
MetricsText ParseMetrics(std::string_view text);

// The value below which `share` of what came between two scrapes lies, all of it where nothing
// came; none where there is nothing at all.
std::optional<double> PercentileBetween(const std::map<double, double>& before,
                                        const std::map<double, double>& after, double share);

// What a gateway said at one time.
struct TopSample {
  double at = 0;           // seconds, of any clock that does not jump
  std::string model;       // empty: not known
  std::string missing;     // why requests are not taken; empty if they are
  nlohmann::json experts;  // of /admin/experts
  MetricsText metrics;     // of /metrics
};

struct TopLatency {
  std::optional<double> p50, p99;  // seconds
};

struct TopGateway {
  double open = 0;                                // requests
  double tokens = 0, requests = 0, degraded = 0;  // a second
  double resumed = 0;
  TopLatency first_token, inter_token;
};

struct TopRouter {
  std::string id, state;
  int64_t running = 0, waiting = 0;
  double kv_used = 0;                                                              // of 1
  double rows = 0, retried = 0, hedged = 0, hedges_won = 0, parked = 0, lost = 0;  // a second
  uint64_t epoch = 0, epoch_in_use = 0, migrations = 0, taken_over = 0;
  int64_t moving = 0, orphans = 0, failed_loads = 0;
};

// As all routers together see it.
struct TopWorker {
  std::string address, state, node, zone;
  double rows = 0;          // a second
  double p50 = 0, p99 = 0;  // seconds; 0: nothing was sent
  uint64_t experts = 0, epoch = 0, ejections = 0;
  bool ejected = false;
  std::optional<uint64_t> free_bytes;
};

struct TopExpert {
  int layer = 0, expert = 0;
  double rows = 0;  // a second
  int replicas = 0;
};

struct TopLayer {
  int layer = 0;
  double expert_imbalance = 0, worker_imbalance = 0;  // the worst of all routers; 0: no rows
};

struct TopState {
  std::string url, model, missing;
  std::string lost;    // why there is no newer answer; empty: this is the newest
  double window = 10;  // seconds that rows are counted over
  TopGateway gateway;
  std::vector<TopRouter> routers;
  std::vector<TopWorker> workers;
  std::vector<TopLayer> layers;    // ascending
  std::vector<TopExpert> experts;  // by layer, then expert
};

inline constexpr double kTopWindows[] = {1, 10, 60};  // seconds; as the server names them

// `before` may be `now`: then what is counted a second is 0. `window`: of kTopWindows.
TopState MakeTopState(const TopSample& before, const TopSample& now, double window);
nlohmann::ordered_json ToJson(const TopState& state);

}  // namespace switchyard::cli
