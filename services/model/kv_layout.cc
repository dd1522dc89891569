#include "services/model/kv_layout.h"

#include <map>

namespace switchyard {
namespace {

int GroupsOf(int layers, int layers_per_block) {
  return (layers + layers_per_block - 1) / layers_per_block;
}

// For the fewest groups that do not leave too much of the blocks unused, as little as they can.
int LayersPerBlock(const std::map<int, std::vector<int>>& by_window, int layers) {
  int best = 1, fewest = layers;  // of one layer each nothing is unused
  for (int size = layers; size > 0; --size) {
    int groups = 0;
    for (const auto& [window, of_window] : by_window) {
      groups += GroupsOf(static_cast<int>(of_window.size()), size);
    }
    if (groups * size - layers > layers / 8) continue;
    if (groups > fewest) break;
    best = size, fewest = groups;
  }
  return best;
}

}  // namespace

KvLayout KvLayoutOf(const ModelSpec& spec) {
  std::map<int, std::vector<int>> by_window;
  for (int layer = 0; layer < spec.num_layers(); ++layer) {
    by_window[spec.layers[static_cast<size_t>(layer)].window].push_back(layer);
  }
  KvLayout layout;
  layout.layers_per_block = LayersPerBlock(by_window, spec.num_layers());
  layout.layers.resize(spec.layers.size());
  for (const auto& [window, layers] : by_window) {
    int slot = layout.layers_per_block;
    for (const int layer : layers) {
      if (slot == layout.layers_per_block) layout.windows.push_back(window), slot = 0;
      layout.layers[static_cast<size_t>(layer)] = {layout.groups() - 1, slot++};
    }
  }
  if (layout.windows.empty()) layout.windows.push_back(0);
  return layout;
}

}  // namespace switchyard
