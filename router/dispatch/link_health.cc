#include "router/dispatch/link_health.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace switchyard::router {

void LatencyPercentile::Add(uint64_t pairs, absl::Duration latency) {
  Size& size = sizes_[static_cast<size_t>(std::min(kSizes - 1, int(std::bit_width(pairs))))];
  const double us = std::max(1.0, absl::ToDoubleMicroseconds(latency));
  const int bucket = std::min(kBuckets - 1, static_cast<int>(std::ceil(std::log2(us) * kSteps)));
  ++size.counts[static_cast<size_t>(bucket)];
  if (++size.count >= kFade) {
    size.count = 0;
    for (uint32_t& count : size.counts) size.count += count /= 2;
  }
  if (++size.looked_at >= kEnough) Look(size);
}

void LatencyPercentile::Look(Size& size) const {
  size.looked_at = 0;
  const uint32_t above = size.count / 100;
  uint32_t seen = 0;
  int bucket = kBuckets;
  while (bucket > 0 && seen <= above) seen += size.counts[static_cast<size_t>(--bucket)];
  size.p99 = absl::Microseconds(std::exp2(static_cast<double>(bucket) / kSteps));
}

absl::Duration LatencyPercentile::P99(uint64_t pairs, absl::Duration unknown) const {
  const Size& size = sizes_[static_cast<size_t>(std::min(kSizes - 1, int(std::bit_width(pairs))))];
  return size.p99 > absl::ZeroDuration() ? size.p99 : unknown;
}

void LinkHealth::OnGood() {
  strikes_ = 0;
  if (!resting_) return;
  resting_ = probe_out_ = false;
  rest_ = kFirstRest;
}

void LinkHealth::OnBeaten(absl::Time now) {
  if (resting_ || ++strikes_ >= kStrikes) OnBad(now);
}

void LinkHealth::OnBad(absl::Time now) {
  if (resting_ && !probe_out_) return;  // it is known
  if (resting_) rest_ = std::min(2 * rest_, kLongestRest);
  resting_ = true;
  probe_out_ = false;
  strikes_ = 0;
  probe_after_ = now + rest_;
  ++ejections_;
}

uint64_t LinkHealth::OnSend(absl::Time now) {
  if (!resting_ || now < probe_after_) return 0;
  if (!probe_out_) ++probes_;
  probe_out_ = true;
  return probes_;
}

void LinkHealth::OnProbeOver(uint64_t probe) {
  if (probe == probes_) probe_out_ = false;
}

bool LinkHealth::Ejected(absl::Time now) const {
  return resting_ && (probe_out_ || now < probe_after_);
}

void HedgeBudget::OnRows(uint64_t rows) {
  left_ = std::min(kSaved, left_ + kShare * static_cast<double>(rows));
}

bool HedgeBudget::Take(uint64_t rows) {
  if (left_ < static_cast<double>(rows)) return false;
  left_ -= static_cast<double>(rows);
  return true;
}

}  // namespace switchyard::router
