#include "expert-worker/worker_metrics.h"

#include <algorithm>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "services/telemetry/names.h"

namespace switchyard::worker {

namespace t = telemetry;

namespace {

void AddHoldings(int64_t held, const WorkerCounters& c, t::Samples& samples) {
  const auto count = [&](const t::MetricDef& def, uint64_t value, const t::Labels& labels = {}) {
    samples.Counter(def, static_cast<double>(value), labels);
  };
  const auto gauge = [&](const t::MetricDef& def, double value, const t::Labels& labels = {}) {
    samples.Gauge(def, value, labels);
  };
  gauge(t::kWorkerExperts, static_cast<double>(c.tiers.resident), {{"tier", "memory"}});
  gauge(t::kWorkerExperts, static_cast<double>(std::max<int64_t>(0, held - c.tiers.resident)),
        {{"tier", "mapped"}});
  gauge(t::kWorkerResidentBytes, static_cast<double>(c.tiers.resident_bytes));
  gauge(t::kWorkerMemoryBytes, static_cast<double>(c.memory_bytes));
  gauge(t::kWorkerEpoch, static_cast<double>(c.assigned_epoch), {{"state", "assigned"}});
  gauge(t::kWorkerEpoch, static_cast<double>(c.epoch), {{"state", "held"}});
  gauge(t::kWorkerToLoad, static_cast<double>(c.to_load));
  count(t::kWorkerLoads, c.loads.loaded, {{"result", "ok"}});
  count(t::kWorkerLoads, c.loads.failed, {{"result", "failed"}});
  count(t::kWorkerRemoved, c.loads.removed);
  count(t::kWorkerLoadedBytes, c.loads.bytes, {{"cause", "assigned"}});
  count(t::kWorkerLoadedBytes, c.tiers.bytes_promoted, {{"cause", "tier"}});
  count(t::kWorkerHits, c.tiers.hits);
  count(t::kWorkerMisses, c.tiers.misses);
  samples.Counter(t::kWorkerStall, static_cast<double>(c.tiers.stall_us) * 1e-6);
  count(t::kWorkerPromotions, c.tiers.promotions - c.tiers.prefetched, {{"cause", "use"}});
  count(t::kWorkerPromotions, c.tiers.prefetched, {{"cause", "prefetch"}});
  count(t::kWorkerDemotions, c.tiers.demotions);
}

void AddDevice(const DeviceMemoryCounters& c, t::Samples& samples) {
  samples.Counter(t::kWorkerPacks, static_cast<double>(c.packed));
  samples.Counter(t::kWorkerUploads, static_cast<double>(c.uploaded));
  samples.Counter(t::kWorkerUploadedBytes, static_cast<double>(c.uploaded_bytes));
  samples.Counter(t::kWorkerUploadTime, static_cast<double>(c.upload_us) * 1e-6);
  samples.Gauge(t::kWorkerPinned, static_cast<double>(c.pinned_bytes));
}

}  // namespace

t::Metrics::Registration Watch(t::Metrics& metrics, const Worker& worker) {
  return metrics.AddCollector("expert-worker", [&worker](t::Samples& samples) {
    const WorkerCounters c = worker.counters();
    if (c.device) AddDevice(*c.device, samples);
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
    samples.Gauge(t::kWorkerMappedBytes, static_cast<double>(worker.mapped_bytes()));
    AddHoldings(worker.experts_held(), c, samples);
    samples.Gauge(t::kReady, worker.draining() ? 0 : 1);
  });
}

}  // namespace switchyard::worker
