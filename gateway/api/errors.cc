#include "gateway/api/errors.h"

#include <algorithm>

#include "gateway/api/json_text.h"
#include "gateway/streams/field_error.h"

namespace switchyard::gateway {

int HttpStatusOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
      return 409;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kCancelled:
      return 499;
    case absl::StatusCode::kUnimplemented:
      return 501;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

namespace {

std::string_view TypeOf(int http_status) {
  switch (http_status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 429:
      return "rate_limit_error";
    default:
      return http_status < 500 ? "invalid_request_error" : "server_error";
  }
}

void AppendOrNull(std::string_view text, std::string* out) {
  if (text.empty()) {
    *out += "null";
  } else {
    AppendJsonString(text, out);
  }
}

}  // namespace

std::string ErrorJson(int http_status, std::string_view message, std::string_view param,
                      std::string_view code, std::string_view request_id) {
  std::string out = "{\"error\":{\"message\":";
  AppendJsonString(message, &out);
  out += ",\"type\":";
  AppendJsonString(TypeOf(http_status), &out);
  out += ",\"param\":";
  AppendOrNull(param, &out);
  out += ",\"code\":";
  AppendOrNull(code, &out);
  out += ",\"request_id\":";
  AppendOrNull(request_id, &out);
  out += "}}";
  return out;
}

std::string ErrorJson(const absl::Status& status, std::string_view request_id) {
  std::string_view code;
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      code = "model_not_found";
      break;
    case absl::StatusCode::kUnauthenticated:
      code = "invalid_api_key";
      break;
    case absl::StatusCode::kResourceExhausted:
      code = "rate_limit_exceeded";
      break;
    default:
      break;
  }
  return ErrorJson(HttpStatusOf(status.code()), ToStd(status.message()), FieldOf(status), code,
                   request_id);
}

HttpResponse ErrorResponse(const absl::Status& status, std::string_view request_id,
                           int retry_after_ms) {
  HttpResponse response;
  response.status = HttpStatusOf(status.code());
  response.body = ErrorJson(status, request_id);
  if (response.status == 429 || response.status == 503) {
    response.headers.emplace_back("retry-after",
                                  std::to_string(std::max(1, (retry_after_ms + 999) / 1000)));
  }
  return response;
}

}  // namespace switchyard::gateway
