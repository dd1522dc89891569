// absl::Status to OpenAI's HTTP codes and error objects.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "gateway/api/http_types.h"

namespace switchyard::gateway {

int HttpStatusOf(absl::StatusCode code);

// {"error":{"message":…,"type":…,"param":…,"code":…,"request_id":…}}; empty param, code and
// request_id are null.
std::string ErrorJson(int http_status, std::string_view message, std::string_view param,
                      std::string_view code, std::string_view request_id);
std::string ErrorJson(const absl::Status& status, std::string_view request_id);

// The whole answer; 429 and 503 carry Retry-After (at least one second).
HttpResponse ErrorResponse(const absl::Status& status, std::string_view request_id,
                           int retry_after_ms = 0);

}  // namespace switchyard::gateway
