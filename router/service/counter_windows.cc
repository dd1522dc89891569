#include "router/service/counter_windows.h"

#include <algorithm>
#include <utility>

namespace switchyard::router {

bool CounterWindows::Due(size_t window, Time now) const {
  const Ring& ring = rings_[window];
  return ring.empty() || now - ring.back().at >= Clock::duration(kWindows[window]) / kSnapshots;
}

bool CounterWindows::Due(Time now) const {
  for (size_t window = 0; window < rings_.size(); ++window) {
    if (Due(window, now)) return true;
  }
  return false;
}

void CounterWindows::Add(Time now, std::vector<uint64_t> counters) {
  const auto shared = std::make_shared<const std::vector<uint64_t>>(std::move(counters));
  for (size_t window = 0; window < rings_.size(); ++window) {
    if (!Due(window, now)) continue;
    Ring& ring = rings_[window];
    ring.push_back({now, shared});
    // The oldest one is the last that lies a whole window back.
    while (ring.size() > 1 && now - ring[1].at >= kWindows[window]) ring.pop_front();
  }
}

CounterWindows::Counts CounterWindows::Over(size_t window, Time now,
                                            std::span<const uint64_t> counters) const {
  Counts out;
  out.counts.assign(counters.size(), 0);
  const Ring& ring = rings_[window];
  if (ring.empty()) return out;
  auto base = ring.begin();
  while (base + 1 != ring.end() && now - (base + 1)->at >= kWindows[window]) ++base;
  out.seconds = std::chrono::duration<double>(now - base->at).count();
  for (size_t i = 0; i < counters.size(); ++i) {
    const uint64_t before = i < base->counters->size() ? (*base->counters)[i] : 0;
    out.counts[i] = counters[i] >= before ? counters[i] - before : counters[i];
  }
  return out;
}

}  // namespace switchyard::router
