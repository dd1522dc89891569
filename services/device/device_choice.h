// Which device computes, as --device says it.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "services/device/cuda.h"

namespace switchyard::device {

struct DeviceChoice {
  enum class Kind { kCpu, kCuda, kAuto };
  Kind kind = Kind::kCpu;
  int index = 0;  // of kCuda
};

// "cpu", "auto", "cuda" (the first) or "cuda:N". INVALID_ARGUMENT says what is known.
absl::StatusOr<DeviceChoice> ParseDevice(std::string_view text);

// Opens what a flag says; null for the CPU. With auto and none that can be used it is the CPU, and
// the log says why `what` ("experts are") computed there. Errors name the flag.
absl::StatusOr<std::shared_ptr<const Cuda>> OpenChosen(std::string_view flag,
                                                       const std::string& device,
                                                       const std::string& plugin,
                                                       std::string_view what);

}  // namespace switchyard::device
