// Our planner and EPLB side by side, over successive windows of load.
#pragma once

#include "tests/support/expert_loads.h"

namespace switchyard::test {

// Workers that are all alike, each with room for as many experts of each layer.
struct Fleet {
  int workers = 8;
  int slots = 10;  // of each layer
};

struct Standing {
  double balance = 0;      // mean of the windows
  double utilisation = 0;  // the same
  int moved = 0;           // replicas loaded from the second window on
};

struct PlacementComparison {
  Standing ours, eplb;
  double static_utilisation = 0;  // contiguous ids, one replica each
  double least_lead = 0;          // ours minus EPLB's balance in the worst window
  double fresh_balance = 0;       // ours, had there been nothing before: mean of the windows
};
PlacementComparison Compare(const ExpertLoads& loads, const Fleet& fleet);

}  // namespace switchyard::test
