#include "services/expertwire/expert_link.h"

#include <utility>

namespace switchyard::expertwire {

pb::Hello WithHolds(const pb::Hello& hello, pb::Holds holds) {
  pb::Hello out = hello;
  out.set_epoch(holds.epoch());
  out.set_assigned_epoch(holds.assigned_epoch());
  out.set_free_bytes(holds.free_bytes());
  out.set_held_bytes(holds.held_bytes());
  *out.mutable_held() = std::move(*holds.mutable_held());
  *out.mutable_failed() = std::move(*holds.mutable_failed());
  return out;
}

std::string_view Name(LinkState state) {
  switch (state) {
    case LinkState::kConnecting:
      return "connecting";
    case LinkState::kUp:
      return "up";
    case LinkState::kDraining:
      return "draining";
    case LinkState::kRefused:
      return "refused";
    case LinkState::kGone:
      return "gone";
  }
  return "unknown";
}

}  // namespace switchyard::expertwire
