#include "expert-worker/device/open_device.h"

#include <algorithm>
#include <string>

#include "services/base/logging.h"
#include "services/base/status.h"
#include "services/config/units.h"
#include "services/device/device_choice.h"

namespace switchyard::worker {
namespace {

// Of a device's memory that is left for rows on their way: a sixteenth, and no less than this.
constexpr uint64_t kLeastScratch = uint64_t{256} << 20;
constexpr uint64_t kScratchShare = 16;

std::string Bytes(uint64_t bytes) { return config::FormatBytes(static_cast<int64_t>(bytes)); }

}  // namespace

absl::StatusOr<DeviceUse> OpenDevice(const config::v1::DeviceKnobs& knobs,
                                     const config::v1::PinnedKnobs& pinned) {
  DeviceUse use;
  SY_ASSIGN_OR_RETURN(
      use.cuda, device::OpenChosen("--device", knobs.device(), knobs.cuda_plugin(), "experts are"));
  if (use.cuda == nullptr) {
    if (!pinned.has_pinned_memory() || knobs.device() == "auto") return use;
    return UsageError("--pinned-memory is of a GPU; give --device cuda, or leave it out");
  }
  if (pinned.has_pinned_memory()) {
    const absl::StatusOr<int64_t> bytes = config::ParseBytes(pinned.pinned_memory());
    if (!bytes.ok()) return UsageError("--pinned-memory: {}", ToStd(bytes.status().message()));
    use.pinned_bytes = static_cast<uint64_t>(*bytes);
  }
  SY_ASSIGN_OR_RETURN(const uint64_t free, use.cuda->FreeBytes());
  use.memory_bytes = free - std::min(free, std::max(kLeastScratch, free / kScratchShare));
  log::Info("{}: {} of {} free", use.cuda->name(), Bytes(free),
            Bytes(use.cuda->about().memory_bytes));
  return use;
}

}  // namespace switchyard::worker
