// Where the experts of one layer should lie: the heart of the planner (planner.h), pure and
// deterministic.
//
// Without a previous placement the replicas are dealt out, heaviest first, each to the worker that
// is least loaded with it, and then improved step by step. With one, only as much of it is changed
// as it takes to be as balanced as that fresh plan would be.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "services/placement/layer_state.h"

namespace switchyard::placement {

// [worker][expert]. Every expert has min_replicas, no worker more than its slots.
// RESOURCE_EXHAUSTED if that cannot be; the message names the expert.
absl::StatusOr<std::vector<std::vector<bool>>> PlanLayer(const LayerProblem& problem);

}  // namespace switchyard::placement
