#include "expert-worker/worker_metrics.h"

#include <string>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "services/telemetry/names.h"

namespace switchyard::worker {

namespace t = telemetry;

t::Metrics::Registration Watch(t::Metrics& metrics, const Worker& worker) {
  return metrics.AddCollector("expert-worker", [&worker](t::Samples& samples) {
    const WorkerCounters c = worker.counters();
    const auto count = [&](const t::MetricDef& def, uint64_t value) {
      samples.Counter(def, static_cast<double>(value));
    };
    count(t::kWorkerFrames, c.parts);
    count(t::kWorkerRows, c.rows);
    count(t::kWorkerComputations, c.computations);
    count(t::kWorkerMerged, c.parts_merged);
    count(t::kWorkerCancelled, c.cancelled);
    count(t::kWorkerBroken, c.streams_broken);
    count(t::kWorkerRefused, c.refused);
    count(t::kWorkerUnknownCancels, c.unknown_cancels);
    for (size_t code = 0; code < c.ended_by_code.size(); ++code) {
      if (c.ended_by_code[code] == 0) continue;
      samples.Counter(t::kGrpcErrors, static_cast<double>(c.ended_by_code[code]),
                      {{"method", "/switchyard.internal.v1.ExpertWorker/Dispatch"},
                       {"code", absl::StatusCodeToString(static_cast<absl::StatusCode>(code))}});
    }
    for (size_t s = 0; s < c.segments.size(); ++s) {
      const auto status = static_cast<expertwire::pb::SegmentStatus>(s);
      samples.Counter(
          t::kWorkerSegments, static_cast<double>(c.segments[s]),
          {{"status", absl::AsciiStrToLower(expertwire::pb::SegmentStatus_Name(status))}});
    }
    samples.PowersOfTwo(t::kWorkerBatchRows, c.batch_rows.counts, c.batch_rows.sum, 1);
    samples.PowersOfTwo(t::kWorkerComputeSeconds, c.compute_us.counts, c.compute_us.sum, 1e-6);
    samples.PowersOfTwo(t::kWorkerQueueSeconds, c.queue_us.counts, c.queue_us.sum, 1e-6);
    samples.Gauge(t::kWorkerWaiting, static_cast<double>(c.waiting));
    samples.Gauge(t::kWorkerRouters, static_cast<double>(c.routers));
    samples.Gauge(t::kWorkerExperts, static_cast<double>(worker.experts_held()));
    samples.Gauge(t::kWorkerMappedBytes, static_cast<double>(worker.mapped_bytes()));
    samples.Gauge(t::kReady, worker.draining() ? 0 : 1);
  });
}

}  // namespace switchyard::worker
