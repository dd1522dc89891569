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

absl::StatusOr<DeviceUse> OpenDevice(const config::v1::DeviceKnobs& knobs) {
  using Kind = device::DeviceChoice::Kind;
  const absl::StatusOr<device::DeviceChoice> choice = device::ParseDevice(knobs.device());
  if (!choice.ok()) return Annotate(choice.status(), "--device");
  DeviceUse use;
  if (choice->kind == Kind::kCpu) {
    if (!knobs.has_pinned_memory()) return use;
    return UsageError("--pinned-memory is of a GPU; give --device cuda, or leave it out");
  }
  if (knobs.has_pinned_memory()) {
    const absl::StatusOr<int64_t> bytes = config::ParseBytes(knobs.pinned_memory());
    if (!bytes.ok()) return UsageError("--pinned-memory: {}", ToStd(bytes.status().message()));
    use.pinned_bytes = static_cast<uint64_t>(*bytes);
  }
  absl::StatusOr<std::shared_ptr<device::Cuda>> cuda =
      device::Cuda::Open(knobs.cuda_plugin(), choice->index);
  if (!cuda.ok() && choice->kind == Kind::kAuto) {
    log::Info("experts are computed on the CPU: {}", ToStd(cuda.status().message()));
    return DeviceUse{};
  }
  if (!cuda.ok()) return Annotate(cuda.status(), fmt::format("--device {}", knobs.device()));
  use.cuda = *std::move(cuda);
  SY_ASSIGN_OR_RETURN(const uint64_t free, use.cuda->FreeBytes());
  use.memory_bytes = free - std::min(free, std::max(kLeastScratch, free / kScratchShare));
  log::Info("{}: {} of {} free", use.cuda->name(), Bytes(free),
            Bytes(use.cuda->about().memory_bytes));
  return use;
}

}  // namespace switchyard::worker
