// Which layers share a block of the KV cache. Layers of one attention window are a group: a block
// holds some tokens of one group's layers, so that a group gives back what is behind its window
// while others keep it. All blocks are of one size, for any of the groups.
//
// Pure arithmetic over the spec.
#pragma once

#include <cstdint>
#include <vector>

#include "services/model/spec.h"

namespace switchyard {

struct KvLayout {
  struct Place {
    int group = 0;
    int slot = 0;  // of a block of the group; < layers_per_block
  };

  int layers_per_block = 0;
  std::vector<int> windows;   // [groups], at least one: as LayerSpec's, 0: sees all; ascending
  std::vector<Place> layers;  // [layers]

  int groups() const { return static_cast<int>(windows.size()); }
  int groups_that_see_all() const {
    int count = 0;
    for (const int window : windows) count += window == 0 ? 1 : 0;
    return count;
  }
};

// One group where all layers have the same window. Else the fewest groups, several of a window if
// need be, whose blocks leave no more than an eighth of the memory unused.
KvLayout KvLayoutOf(const ModelSpec& spec);

}  // namespace switchyard
