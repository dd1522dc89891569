// Where experts should live: a pure, deterministic function from measured load, workers and what
// was to a placement. Nothing here reads clocks or files, and equal inputs give equal placements,
// in whatever order the workers come.
//
// Hot experts get replicas, cold ones share workers; replicas of one expert lie on different nodes
// and zones wherever they can; experts of one gate group lie together where that costs no balance;
// and of a previous placement only as much is moved as it takes to be as balanced as a placement
// from nothing would be. Layers are planned one by one, each with its own part of every worker's
// memory, as a step of the model waits for the slowest worker of each layer in turn.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/placement/document.h"

namespace switchyard::placement {

struct PlanWorker {
  std::string address;
  std::string node, zone;  // empty: its own
  int64_t memory_bytes = 0;
  double rows_per_s = 1;     // of one expert; only what workers are to each other counts
  std::vector<bool> barred;  // by cell: what cannot lie there; empty: nothing
};

struct PlanInput {
  ExpertGrid grid;
  std::vector<double> rows;           // measured, by cell of the grid
  std::vector<int64_t> expert_bytes;  // of one expert, by layer
  int experts_per_group = 1;          // of the gate; 1: no groups
  std::vector<PlanWorker> workers;
  std::string model_fingerprint;
  const PlacementIndex* previous = nullptr;
};

struct PlanOptions {
  double extra_memory = 0.25;    // for replicas beyond min_replicas; 1 is one copy of all experts
  int min_replicas = 1;          // of every expert: 2 survive the loss of any one node
  int max_experts_per_node = 0;  // different expert ids on a node, in all layers; 0: no cap
  int width = 0;                 // workers that a layer lies on; 0: all. See BestWidth
  // A layer this much less balanced than it could be is left alone, as part of the load that a mean
  // replica is: with 10 replicas a worker 0.25 % of balance; 0.2 % at least, which gate groups may
  // cost. The fewer there are, the more of them must move for the same gain.
  double tolerance = 0.025;
};

// What a placement makes of a load. Every replica takes an equal part of its expert's rows. Balance
// is mean over highest load (rows over rows_per_s), the mean over all workers, or with a width over
// those that a layer lies on.
struct PlanStats {
  std::vector<double> balance;  // by layer; 1 for layers without experts or load
  double balance_mean = 1;      // of the layers with experts
  double balance_least = 1;
  double utilisation = 1;   // of all layers in turn: how much of the time workers are busy
  int64_t replicas = 0;     // of all experts, the first ones included
  int64_t bytes = 0;        // of all replicas
  int64_t most_bytes = 0;   // of one worker
  int layer_width_max = 0;  // most workers that a layer lies on
  double groups_split = 0;  // workers, in the mean, that a gate group lies on
};
// For a placement that covers every expert. Workers that `workers` does not name have a speed of 1.
PlanStats Measure(const PlacementIndex& index, const PlanInput& input, int width = 0);

struct Plan {
  v1::Placement placement;  // of the previous epoch + 1; of the same if nothing changed
  PlanStats stats;
  int64_t bytes_moved = 0;  // that workers must load
  int64_t replicas_moved = 0;
};

// INVALID_ARGUMENT for input that makes no sense; RESOURCE_EXHAUSTED says how many bytes, workers
// or nodes are missing.
absl::StatusOr<Plan> MakePlan(const PlanInput& input, const PlanOptions& options);

// What decides on how many workers a layer should lie: each one more costs a router the time of a
// frame, and takes its part of reading the weights and of carrying the rows.
struct WidthCosts {
  double frame_s = 17e-6;
  int tokens_per_step = 64;
  int top_k = 1;
  int experts = 1;
  int64_t expert_bytes = 0;
  int64_t row_bytes = 0;  // out and back
  double link_bytes_per_s = 1.25e9;
  double memory_bytes_per_s = 50e9;  // of one worker
};
// `others`, with what the model says: top_k, experts, expert_bytes (of its largest; by layer) and
// row_bytes.
WidthCosts WidthCostsOf(const ModelSpec& spec, std::span<const int64_t> expert_bytes,
                        WidthCosts others = {});
// At most `workers`, at least 1; with several gate groups a number of workers that they divide into
// evenly, or a multiple of them.
int BestWidth(const WidthCosts& costs, int gate_groups, int workers);

}  // namespace switchyard::placement
