#include "services/telemetry/metrics.h"

#include <prometheus/text_serializer.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "services/base/check.h"

namespace switchyard::telemetry {
namespace {

prometheus::MetricType TypeOf(const MetricDef& def) {
  switch (def.type) {
    case MetricType::kCounter:
      return prometheus::MetricType::Counter;
    case MetricType::kGauge:
      return prometheus::MetricType::Gauge;
    case MetricType::kHistogram:
      return prometheus::MetricType::Histogram;
  }
  return prometheus::MetricType::Untyped;
}

Labels With(Labels labels, const std::string& service) {
  labels["service"] = service;
  return labels;
}

}  // namespace

prometheus::ClientMetric& Samples::Add(const MetricDef& def, Labels labels) {
  prometheus::MetricFamily& family = families_[def.name];
  if (family.name.empty()) {
    family.name = def.name;
    family.help = def.help;
    family.type = TypeOf(def);
  }
  prometheus::ClientMetric& metric = family.metric.emplace_back();
  for (auto& [name, value] : With(std::move(labels), service_)) {
    metric.label.push_back({.name = name, .value = value});
  }
  return metric;
}

void Samples::Counter(const MetricDef& def, double value, Labels labels) {
  Add(def, std::move(labels)).counter.value = value;
}

void Samples::Gauge(const MetricDef& def, double value, Labels labels) {
  Add(def, std::move(labels)).gauge.value = value;
}

void Samples::Histogram(const MetricDef& def, std::span<const double> bounds,
                        std::span<const uint64_t> counts, uint64_t count, double sum,
                        Labels labels) {
  SY_DCHECK(bounds.size() == counts.size());
  prometheus::ClientMetric::Histogram& out = Add(def, std::move(labels)).histogram;
  uint64_t cumulative = 0;
  for (size_t i = 0; i < bounds.size(); ++i) {
    cumulative += counts[i];
    out.bucket.push_back({.cumulative_count = cumulative, .upper_bound = bounds[i]});
  }
  out.sample_count = std::max(count, cumulative);
  out.sample_sum = sum;
  out.bucket.push_back({.cumulative_count = out.sample_count,
                        .upper_bound = std::numeric_limits<double>::infinity()});
}

void Samples::PowersOfTwo(const MetricDef& def, std::span<const uint64_t> counts, uint64_t sum,
                          double unit, Labels labels) {
  std::vector<double> bounds;
  uint64_t count = 0;
  for (size_t b = 0; b < counts.size(); ++b) {
    if (b + 1 < counts.size()) bounds.push_back(std::ldexp(unit, static_cast<int>(b)));
    count += counts[b];
  }
  Histogram(def, bounds, counts.first(bounds.size()), count, static_cast<double>(sum) * unit,
            std::move(labels));
}

prometheus::Counter& Metrics::Counter(const MetricDef& def, const std::string& service,
                                      Labels labels) {
  SY_CHECK(def.type == MetricType::kCounter);
  return prometheus::BuildCounter().Name(def.name).Help(def.help).Register(registry_).Add(
      With(std::move(labels), service));
}

prometheus::Gauge& Metrics::Gauge(const MetricDef& def, const std::string& service, Labels labels) {
  SY_CHECK(def.type == MetricType::kGauge);
  return prometheus::BuildGauge().Name(def.name).Help(def.help).Register(registry_).Add(
      With(std::move(labels), service));
}

prometheus::Histogram& Metrics::Histogram(const MetricDef& def, const std::string& service,
                                          Labels labels) {
  SY_CHECK(def.type == MetricType::kHistogram && !def.buckets.empty());
  return prometheus::BuildHistogram().Name(def.name).Help(def.help).Register(registry_).Add(
      With(std::move(labels), service),
      prometheus::Histogram::BucketBoundaries(def.buckets.begin(), def.buckets.end()));
}

Metrics::Registration& Metrics::Registration::operator=(Registration&& other) noexcept {
  std::swap(metrics_, other.metrics_);
  std::swap(id_, other.id_);
  return *this;
}

Metrics::Registration::~Registration() {
  if (metrics_ == nullptr) return;
  absl::MutexLock lock(&metrics_->mutex_);
  auto& all = metrics_->collectors_;
  all.erase(std::remove_if(all.begin(), all.end(), [&](const Entry& e) { return e.id == id_; }),
            all.end());
}

Metrics::Registration Metrics::AddCollector(const std::string& service, Collector collector) {
  absl::MutexLock lock(&mutex_);
  collectors_.push_back({next_id_, service, std::move(collector)});
  return Registration(this, next_id_++);
}

void Metrics::AddProcess(const std::string& service, const std::string& version,
                         const std::string& commit, Labels runs_on) {
  runs_on["version"] = version;
  runs_on["commit"] = commit;
  Gauge(kBuildInfo, service, std::move(runs_on)).Set(1);
  absl::MutexLock lock(&mutex_);
  collectors_.push_back({0, service, [](Samples& samples) {
                           samples.Counter(kBugs, static_cast<double>(BugCount()));
                         }});
}

std::vector<prometheus::MetricFamily> Metrics::Collect() const {
  std::map<std::string, prometheus::MetricFamily> merged;
  const auto merge = [&](prometheus::MetricFamily&& family) {
    prometheus::MetricFamily& into = merged[family.name];
    if (into.name.empty()) {
      into = std::move(family);
      return;
    }
    std::move(family.metric.begin(), family.metric.end(), std::back_inserter(into.metric));
  };
  for (prometheus::MetricFamily& family : registry_.Collect()) merge(std::move(family));
  {
    absl::MutexLock lock(&mutex_);
    for (const Entry& entry : collectors_) {
      Samples samples(entry.service);
      entry.collector(samples);
      for (auto& [name, family] : samples.families_) merge(std::move(family));
    }
  }
  std::vector<prometheus::MetricFamily> out;
  for (auto& [name, family] : merged) out.push_back(std::move(family));
  return out;
}

std::string Metrics::Render() const { return prometheus::TextSerializer().Serialize(Collect()); }

}  // namespace switchyard::telemetry
