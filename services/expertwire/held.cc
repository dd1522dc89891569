#include "services/expertwire/held.h"

#include <algorithm>
#include <cstdint>

namespace switchyard::expertwire {

void ForEachHeld(const HeldList& list, int layers, int experts,
                 absl::FunctionRef<void(int layer, int expert)> fn) {
  int64_t budget = int64_t{4} * layers * experts;
  for (const pb::HeldExperts& held : list) {
    if (held.layer() < 0 || held.layer() >= layers) continue;
    for (int i = 0; i < std::min(held.first_size(), held.last_size()); ++i) {
      const auto end = std::min<int64_t>(int64_t{held.last(i)} + 1, experts);
      for (int64_t expert = held.first(i); expert < end; ++expert) {
        if (budget-- == 0) return;
        fn(held.layer(), static_cast<int>(expert));
      }
    }
  }
}

void AddHeld(int layers, int experts, absl::FunctionRef<bool(int layer, int expert)> is_held,
             HeldList* list) {
  for (int layer = 0; layer < layers; ++layer) {
    pb::HeldExperts* held = nullptr;
    bool before = false;
    for (int expert = 0; expert < experts; ++expert) {
      const bool now = is_held(layer, expert);
      if (now && held == nullptr) {
        held = list->Add();
        held->set_layer(layer);
      }
      if (now && !before) held->add_first(static_cast<uint32_t>(expert));
      if (!now && before) held->add_last(static_cast<uint32_t>(expert) - 1);
      before = now;
    }
    if (before) held->add_last(static_cast<uint32_t>(experts) - 1);
  }
}

}  // namespace switchyard::expertwire
