// How many experts of each layer a worker may hold: its memory, divided among the layers that lie
// on it, so that layers can be planned one by one and none takes what another needs.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard::placement {

struct SlotsInput {
  struct Worker {
    int64_t memory_bytes = 0;
    int node = 0;
    uint64_t name = 0;  // a hash, by which rests go to other layers at each worker
  };
  std::vector<Worker> workers;
  std::vector<int64_t> expert_bytes;  // by layer; 0: the layer has no experts
  int experts = 0;
  int min_replicas = 1;
  double extra_memory = 0;
  int width = 0;  // 0: all workers
  // [layer][worker]: experts held so far; empty: none.
  std::vector<std::vector<int>> previous;
};

struct LayerSlots {
  // [layer][worker]; 0 for workers that the layer does not lie on.
  std::vector<std::vector<int>> slots;
  std::vector<int> replicas_max;  // by layer, as many as memory and budget allow
};

// RESOURCE_EXHAUSTED with what is missing, if min_replicas of all experts do not fit.
absl::StatusOr<LayerSlots> DivideMemory(const SlotsInput& input);

}  // namespace switchyard::placement
