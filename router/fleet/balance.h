// Whether experts should move between the workers that are there, and where to. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/model/memory_plan.h"
#include "services/model/spec.h"
#include "services/placement/document.h"
#include "services/placement/planner.h"

namespace switchyard::router {

// What of a model a plan depends on.
struct BalanceModel {
  placement::ExpertGrid grid;
  std::vector<int64_t> expert_bytes;  // of one expert, by layer
  int experts_per_group = 1;
  int gate_groups = 1;
  std::string fingerprint;
  placement::WidthCosts costs;  // for BalanceOptions::best_width
};
BalanceModel BalanceModelOf(const ModelSpec& spec, const std::string& fingerprint,
                            const StoredTensorOf& stored);

struct BalanceOptions {
  // Of them min_replicas is what is wished for: with fewer workers than that, each has all.
  placement::PlanOptions plan;
  bool best_width = false;  // by the model's costs instead of plan.width
  // Utilisation that a new placement must gain; weights are not moved for less.
  double gain = 0.03;
};

struct BalanceWorker {
  std::string address, node, zone;
  uint64_t memory_bytes = 0;  // for experts; 0: nobody said, so what it holds now
  double speed = 1;           // next to the others
  std::vector<bool> held;     // by cell
  std::vector<bool> failed;   // by cell: what it could not load lately; empty: nothing
};

struct BalanceInput {
  std::vector<BalanceWorker> workers;
  std::vector<double> rows;  // by cell; all 0: all experts count alike
  uint64_t epoch = 0;        // the highest that any of them was told
  bool stalled = false;      // they do not heed what is followed
  // Replicas of the placement that is followed; 0: none is.
  int64_t followed_replicas = 0;
};

struct BalanceVerdict {
  bool move = false;
  bool trims = false;       // only to be rid of replicas
  v1::Placement placement;  // to move to: of the epoch after input.epoch
  std::string why;          // it moves, or not; for people
  double utilisation = 0;   // of the workers as they are, by these rows; 0: an expert is missing
  double planned = 0;       // of what a new placement would make of it
  int64_t bytes = 0;        // that workers would have to load
};
// Moves for an expert that nobody holds, for fewer replicas than there should be, for options.gain,
// and to be rid of replicas that were taken over meanwhile. What a worker could not load is not
// planned for it, unless nobody else can have it either. As MakePlan's errors.
absl::StatusOr<BalanceVerdict> Balance(const BalanceModel& model, const BalanceInput& input,
                                       const BalanceOptions& options);

}  // namespace switchyard::router
