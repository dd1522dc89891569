#include "services/expertwire/expert_link.h"

namespace switchyard::expertwire {

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
  }
  return "unknown";
}

}  // namespace switchyard::expertwire
