// The device that the command line asks for.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "services/device/cuda.h"
#include "switchyard/config/v1/common.pb.h"

namespace switchyard::worker {

// What experts may take of a device; without one (null) they are computed on the CPU.
struct DeviceUse {
  std::shared_ptr<const device::Cuda> cuda;
  uint64_t memory_bytes = 0;  // of the device: what is free but for rows on their way
  uint64_t pinned_bytes = 0;  // of the host
};

// With --device auto and none that can be used, none, and the log says why. Errors name the flag:
// INVALID_ARGUMENT of what cannot be meant, FAILED_PRECONDITION where driver, plugin, device or
// architecture is missing.
absl::StatusOr<DeviceUse> OpenDevice(const config::v1::DeviceKnobs& knobs,
                                     const config::v1::PinnedKnobs& pinned);

}  // namespace switchyard::worker
