// Expected failures travel as absl::Status / absl::StatusOr. This header adds the two propagation
// macros and constructors that format their message.
//
// A message names the thing that failed (file, flag, field, id), what was found, what was expected
// and, where there is one, the mend: "config.json: rope_scaling.type is \"dynamic\"; supported:
// yarn, linear, llama3".
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/cord.h"
#include "services/base/text.h"

namespace switchyard {

#define SY_STATUS_FACTORY(Name)                                                         \
  template <typename... Args>                                                           \
  [[nodiscard]] absl::Status Name(fmt::format_string<Args...> format, Args&&... args) { \
    return absl::Name##Error(fmt::format(format, std::forward<Args>(args)...));         \
  }

SY_STATUS_FACTORY(InvalidArgument)
SY_STATUS_FACTORY(NotFound)
SY_STATUS_FACTORY(AlreadyExists)
SY_STATUS_FACTORY(FailedPrecondition)
SY_STATUS_FACTORY(OutOfRange)
SY_STATUS_FACTORY(ResourceExhausted)
SY_STATUS_FACTORY(Unavailable)
SY_STATUS_FACTORY(Unimplemented)
SY_STATUS_FACTORY(Internal)
SY_STATUS_FACTORY(Cancelled)
SY_STATUS_FACTORY(DeadlineExceeded)
SY_STATUS_FACTORY(PermissionDenied)
SY_STATUS_FACTORY(Unauthenticated)
SY_STATUS_FACTORY(DataLoss)

#undef SY_STATUS_FACTORY

// INVALID_ARGUMENT of flags that do not fit together or say too little, found after they were
// parsed: a program ends with the status of wrong usage. Keeps its mark through Annotate.
inline constexpr char kUsageMark[] = "switchyard.usage";
template <typename... Args>
[[nodiscard]] absl::Status UsageError(fmt::format_string<Args...> format, Args&&... args) {
  absl::Status status = InvalidArgument(format, std::forward<Args>(args)...);
  status.SetPayload(kUsageMark, absl::Cord());
  return status;
}
[[nodiscard]] inline bool IsUsageError(const absl::Status& status) {
  return status.GetPayload(kUsageMark).has_value();
}

// The same status with "context: " before its message.
[[nodiscard]] inline absl::Status Annotate(const absl::Status& status, std::string_view context) {
  if (status.ok()) return status;
  absl::Status out(status.code(), fmt::format("{}: {}", context, ToStd(status.message())));
  if (IsUsageError(status)) out.SetPayload(kUsageMark, absl::Cord());
  return out;
}

}  // namespace switchyard

#define SY_CONCAT_INNER(a, b) a##b
#define SY_CONCAT(a, b) SY_CONCAT_INNER(a, b)

// Returns from the enclosing function if `expr` (an absl::Status) is not OK.
#define SY_RETURN_IF_ERROR(expr)                                               \
  do {                                                                         \
    if (absl::Status sy_status_ = (expr); !sy_status_.ok()) return sy_status_; \
  } while (false)

// SY_ASSIGN_OR_RETURN(auto x, F()): assigns the value or returns the error.
#define SY_ASSIGN_OR_RETURN(lhs, expr) \
  SY_ASSIGN_OR_RETURN_IMPL(SY_CONCAT(sy_statusor_, __LINE__), lhs, expr)
#define SY_ASSIGN_OR_RETURN_IMPL(statusor, lhs, expr) \
  auto statusor = (expr);                             \
  if (!statusor.ok()) return statusor.status();       \
  lhs = std::move(statusor).value()
