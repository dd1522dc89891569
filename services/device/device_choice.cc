#include "services/device/device_choice.h"

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "services/base/logging.h"
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

absl::StatusOr<std::shared_ptr<const Cuda>> OpenChosen(std::string_view flag,
                                                       const std::string& device,
                                                       const std::string& plugin,
                                                       std::string_view what) {
  using Kind = DeviceChoice::Kind;
  const absl::StatusOr<DeviceChoice> choice = ParseDevice(device);
  if (!choice.ok()) return Annotate(choice.status(), std::string(flag));
  if (choice->kind == Kind::kCpu) return nullptr;
  absl::StatusOr<std::shared_ptr<Cuda>> cuda = Cuda::Open(plugin, choice->index);
  if (!cuda.ok() && choice->kind == Kind::kAuto) {
    log::Info("{} computed on the CPU: {}", what, ToStd(cuda.status().message()));
    return nullptr;
  }
  if (!cuda.ok()) return Annotate(cuda.status(), fmt::format("{} {}", flag, device));
  return *std::move(cuda);
}

}  // namespace switchyard::device
