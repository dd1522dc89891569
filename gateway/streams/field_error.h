// INVALID_ARGUMENT that names a request's field, in words and for machines: OpenAI's error objects
// have a `param`.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "services/base/text.h"

namespace switchyard::gateway {

inline constexpr std::string_view kParamPayload = "switchyard/param";

// "temperature: 3 is not in [0, 2]".
template <typename... Args>
[[nodiscard]] absl::Status FieldError(std::string_view field, fmt::format_string<Args...> format,
                                      Args&&... args) {
  absl::Status status = absl::InvalidArgumentError(
      fmt::format("{}: {}", field, fmt::format(format, std::forward<Args>(args)...)));
  status.SetPayload(ToAbsl(kParamPayload), absl::Cord(ToAbsl(field)));
  return status;
}

// Empty if the status names no field.
inline std::string FieldOf(const absl::Status& status) {
  const auto payload = status.GetPayload(ToAbsl(kParamPayload));
  return payload.has_value() ? std::string(*payload) : std::string();
}

}  // namespace switchyard::gateway
