// Which device computes, as --device says it.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace switchyard::device {

struct DeviceChoice {
  enum class Kind { kCpu, kCuda, kAuto };
  Kind kind = Kind::kCpu;
  int index = 0;  // of kCuda
};

// "cpu", "auto", "cuda" (the first) or "cuda:N". INVALID_ARGUMENT says what is known.
absl::StatusOr<DeviceChoice> ParseDevice(std::string_view text);

}  // namespace switchyard::device
