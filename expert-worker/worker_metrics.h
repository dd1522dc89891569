// What an expert worker reports, read at each scrape from its own counters.
#pragma once

#include "expert-worker/worker.h"
#include "services/telemetry/metrics.h"

namespace switchyard::worker {

// `worker` outlives the registration.
[[nodiscard]] telemetry::Metrics::Registration Watch(telemetry::Metrics& metrics,
                                                     const Worker& worker);

}  // namespace switchyard::worker
