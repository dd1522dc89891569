#include "services/device/device_choice.h"

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "services/base/status.h"

namespace switchyard::device {

absl::StatusOr<DeviceChoice> ParseDevice(std::string_view text) {
  if (text == "cpu") return DeviceChoice{DeviceChoice::Kind::kCpu};
  if (text == "auto") return DeviceChoice{DeviceChoice::Kind::kAuto};
  if (text == "cuda") return DeviceChoice{DeviceChoice::Kind::kCuda};
  DeviceChoice choice{DeviceChoice::Kind::kCuda};
  absl::string_view rest(text.data(), text.size());
  if (absl::ConsumePrefix(&rest, "cuda:") && absl::SimpleAtoi(rest, &choice.index) &&
      choice.index >= 0) {
    return choice;
  }
  return UsageError("\"{}\" is no device; known: cpu, cuda, cuda:N, auto", text);
}

}  // namespace switchyard::device
