// What `switchyard place` is told: measured load, workers, sizes of experts. Pure but for
// ReadModelSizes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "services/model/spec.h"
#include "services/placement/planner.h"

namespace switchyard::cli {

// Rows of all routers together, and what they know of who holds what.
struct MeasuredLoad {
  std::vector<double> rows;  // by cell of the grid
  v1::Placement held;        // of epoch 0; no workers where the load names none
  // All that are up, also with nothing, by address; with what they say of node, zone and memory.
  std::vector<placement::PlanWorker> workers;
  std::vector<std::string> left_out;  // addresses of the others, with their states
  uint64_t epoch = 0;                 // the highest that a worker heeds or a router follows
};
// The body of GET /admin/experts, or one of its routers alone: {"experts": [{"layer", "expert",
// "rows", "workers"}]}. INVALID_ARGUMENT names the entry.
absl::StatusOr<MeasuredLoad> ParseLoad(std::string_view json, const placement::ExpertGrid& grid);

// Only what came since an earlier measurement of the same routers; an expert whose rows fell, as
// those of a router that was started anew, counts with what it has.
void Subtract(const MeasuredLoad& earlier, MeasuredLoad* load);

// "10.0.0.1:7000,node=a,zone=z1,memory=64GiB,rows=2": all but the address may be missing.
absl::StatusOr<placement::PlanWorker> ParseWorker(std::string_view text);
// [{"address", "node", "zone", "memory", "rows_per_s"}, …].
absl::StatusOr<std::vector<placement::PlanWorker>> ParseWorkers(std::string_view json);

struct ModelSizes {
  ModelSpec spec;
  std::string fingerprint;
  std::vector<int64_t> expert_bytes;  // by layer; 0 for layers without experts
};
// Of a directory or .gguf file; reads headers only.
absl::StatusOr<ModelSizes> ReadModelSizes(const std::string& path);

}  // namespace switchyard::cli
