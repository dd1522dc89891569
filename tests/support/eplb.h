// The published expert-parallelism load balancer (DeepSeek's EPLB), as what our planner is held
// against: replicate greedily, pack heaviest first, every worker the same number of replicas of
// each layer, and nothing remembered of what was before.
#pragma once

#include <vector>

namespace switchyard::test {

struct EplbShape {
  int replicas = 0;  // of a layer; a multiple of workers
  int groups = 1;    // of the gate
  int nodes = 1;     // groups go to nodes as a whole where nodes divide groups
  int workers = 1;   // a multiple of nodes
};

// [layer][worker]: the experts there, one of them perhaps several times.
using EplbPlacement = std::vector<std::vector<std::vector<int>>>;
EplbPlacement Eplb(const std::vector<std::vector<double>>& rows, const EplbShape& shape);

struct EplbStats {
  double balance_mean = 0, utilisation = 0;  // as PlanStats has them
};
EplbStats MeasureEplb(const EplbPlacement& placement, const std::vector<std::vector<double>>& rows);

// Experts that workers must load to get from one to the other.
int EplbMoved(const EplbPlacement& from, const EplbPlacement& to);

}  // namespace switchyard::test
