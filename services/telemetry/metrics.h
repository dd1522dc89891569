// The metrics of one process: prometheus-cpp behind definitions that stand once in names.h. Values
// are either kept here (Counter, Gauge, Histogram: look one up once and hold the reference) or read
// at each scrape by a collector from wherever they are counted already.
//
// Thread-safe. References live as long as the Metrics.
#pragma once

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/labels.h>
#include <prometheus/registry.h>

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "services/telemetry/names.h"

namespace switchyard::telemetry {

using Labels = prometheus::Labels;  // std::map<std::string, std::string>

// What collectors append to during a scrape; all with the collector's `service`.
class Samples {
 public:
  explicit Samples(std::string service) : service_(std::move(service)) {}

  void Counter(const MetricDef& def, double value, Labels labels = {});
  void Gauge(const MetricDef& def, double value, Labels labels = {});
  // counts[i]: values ≤ bounds[i] and in no lower bucket; `count` has those above all bounds too.
  void Histogram(const MetricDef& def, std::span<const double> bounds,
                 std::span<const uint64_t> counts, uint64_t count, double sum, Labels labels = {});
  // counts[b]: integers < 2^b and in no lower bucket, in units of `unit`; the last holds all
  // others.
  void PowersOfTwo(const MetricDef& def, std::span<const uint64_t> counts, uint64_t sum,
                   double unit, Labels labels = {});

 private:
  friend class Metrics;
  prometheus::ClientMetric& Add(const MetricDef& def, Labels labels);

  const std::string service_;
  std::map<std::string, prometheus::MetricFamily> families_;
};

class Metrics : public prometheus::Collectable {
 public:
  Metrics() = default;

  prometheus::Counter& Counter(const MetricDef& def, const std::string& service,
                               Labels labels = {});
  prometheus::Gauge& Gauge(const MetricDef& def, const std::string& service, Labels labels = {});
  prometheus::Histogram& Histogram(const MetricDef& def, const std::string& service,
                                   Labels labels = {});

  using Collector = std::function<void(Samples&)>;
  // Ends the collector when it is destroyed; waits for a scrape that is under way.
  class Registration {
   public:
    Registration() = default;
    Registration(Metrics* metrics, uint64_t id) : metrics_(metrics), id_(id) {}
    Registration(Registration&& other) noexcept { *this = std::move(other); }
    Registration& operator=(Registration&& other) noexcept;
    ~Registration();

   private:
    Metrics* metrics_ = nullptr;
    uint64_t id_ = 0;
  };
  // Runs at every scrape, one at a time.
  [[nodiscard]] Registration AddCollector(const std::string& service, Collector collector);
  // What every service reports: switchyard_build_info and switchyard_bugs_total.
  // `runs_on`: further labels of the first, such as isa and threads of a service that computes.
  void AddProcess(const std::string& service, const std::string& version, const std::string& commit,
                  Labels runs_on = {});

  // The text format that Prometheus scrapes (content type "text/plain; version=0.0.4").
  std::string Render() const;
  // Each family once, whoever reports it.
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  struct Entry {
    uint64_t id = 0;  // 0: for good
    std::string service;
    Collector collector;
  };

  prometheus::Registry registry_;
  mutable absl::Mutex mutex_;
  std::vector<Entry> collectors_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
};

}  // namespace switchyard::telemetry
