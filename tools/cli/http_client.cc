#include "tools/cli/http_client.h"

#include <curl/curl.h>

#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"
#include "services/base/file.h"
#include "services/base/status.h"

namespace switchyard::cli {
namespace {

struct Transfer {
  CURL* curl;
  const DataCallback* on_data;
  const StopCallback* stop;
  std::string error_body;
  bool stopped = false;
};

size_t OnBytes(char* data, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  long code = 0;
  curl_easy_getinfo(transfer.curl, CURLINFO_RESPONSE_CODE, &code);
  const std::string_view bytes(data, size * count);
  if (code >= 300) {
    if (transfer.error_body.size() < 65536) transfer.error_body += bytes;
    return bytes.size();
  }
  if ((*transfer.on_data)(bytes)) return bytes.size();
  transfer.stopped = true;
  return 0;
}

int OnProgress(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  auto& transfer = *static_cast<Transfer*>(user);
  if (!(*transfer.stop)()) return 0;
  transfer.stopped = true;
  return 1;  // ends the transfer
}

}  // namespace

std::string ErrorText(std::string_view body) {
  const auto json = nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (json.is_object() && json.contains("error") && json["error"].is_object() &&
      json["error"].contains("message") && json["error"]["message"].is_string()) {
    return json["error"]["message"].get<std::string>();
  }
  return std::string(body.substr(0, 300));
}

absl::StatusOr<std::string> ServedModel(std::string_view body) {
  const auto json = nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("data") || !json["data"].is_array() ||
      json["data"].empty() || !json["data"][0].is_object() || !json["data"][0].contains("id") ||
      !json["data"][0]["id"].is_string()) {
    return Internal("/v1/models lists no model; name one with --model");
  }
  return json["data"][0]["id"].get<std::string>();
}

absl::Status ReadApiKey(HttpOptions& options) {
  constexpr uint64_t kBytesMax = 1 << 20;
  const std::string& path = options.api_key_file;
  if (path.empty()) return absl::OkStatus();
  const auto text = ReadFile(path, kBytesMax);
  if (!text.ok()) return Annotate(text.status(), "--api-key-file");
  for (const absl::string_view line : absl::StrSplit(*text, '\n')) {
    options.api_key = std::string(absl::StripAsciiWhitespace(line));
    if (!options.api_key.empty() && options.api_key.front() != '#') return absl::OkStatus();
  }
  return InvalidArgument("--api-key-file: {}: holds no key", path);
}

HttpTarget TargetOf(std::string_view url) {
  constexpr std::string_view kUnix = "unix:", kVersion = "/v1";
  if (url.rfind(kUnix, 0) == 0) {
    return {.base = "http://localhost", .socket = std::string(url.substr(kUnix.size()))};
  }
  const auto strip_slashes = [&url] {
    while (!url.empty() && url.back() == '/') url.remove_suffix(1);
  };
  strip_slashes();
  if (url.size() > kVersion.size() && url.substr(url.size() - kVersion.size()) == kVersion) {
    url.remove_suffix(kVersion.size());
    strip_slashes();
  }
  return {.base = std::string(url), .socket = {}};
}

std::string TransferError(int code, const std::string& url) {
  const char* const text = curl_easy_strerror(static_cast<CURLcode>(code));
  if (code != CURLE_COULDNT_CONNECT) return fmt::format("{}: {}", url, text);
  return fmt::format(
      "no server listens at {}; start one with `switchyard serve MODEL_DIR`, or name another with "
      "--url",
      url);
}

HttpClient::HttpClient(HttpOptions options)
    : options_(std::move(options)), target_(TargetOf(options_.url)), curl_(curl_easy_init()) {}

HttpClient::~HttpClient() { curl_easy_cleanup(curl_); }

absl::StatusOr<std::string> HttpClient::Get(std::string_view path, const StopCallback& stop) {
  std::string body;
  const auto append = [&body](std::string_view bytes) {
    body += bytes;
    return true;
  };
  SY_RETURN_IF_ERROR(Perform(path, nullptr, append, stop));
  return body;
}

absl::Status HttpClient::Post(std::string_view path, const std::string& json,
                              const DataCallback& on_data, const StopCallback& stop) {
  return Perform(path, &json, on_data, stop);
}

absl::Status HttpClient::Perform(std::string_view path, const std::string* json,
                                 const DataCallback& on_data, const StopCallback& stop) {
  const std::string url = target_.base + std::string(path);
  Transfer transfer{curl_, &on_data, &stop, {}};
  curl_easy_reset(curl_);
  curl_slist* headers = curl_slist_append(nullptr, "Content-Type: application/json");
  if (!options_.api_key.empty()) {
    headers = curl_slist_append(headers, ("Authorization: Bearer " + options_.api_key).c_str());
  }
  curl_easy_setopt(curl_, CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl_, CURLOPT_HTTPHEADER, headers);
  curl_easy_setopt(curl_, CURLOPT_WRITEFUNCTION, &OnBytes);
  curl_easy_setopt(curl_, CURLOPT_WRITEDATA, &transfer);
  if (stop != nullptr) {
    curl_easy_setopt(curl_, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl_, CURLOPT_XFERINFOFUNCTION, &OnProgress);
    curl_easy_setopt(curl_, CURLOPT_XFERINFODATA, &transfer);
  }
  curl_easy_setopt(curl_, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl_, CURLOPT_CONNECTTIMEOUT, 10L);
  curl_easy_setopt(curl_, CURLOPT_TIMEOUT, static_cast<long>(options_.timeout_s));
  curl_easy_setopt(curl_, CURLOPT_NOPROXY, "127.0.0.1,localhost,::1");
  if (!target_.socket.empty()) {
    curl_easy_setopt(curl_, CURLOPT_UNIX_SOCKET_PATH, target_.socket.c_str());
  }
  if (!options_.ca_file.empty()) {
    curl_easy_setopt(curl_, CURLOPT_CAINFO, options_.ca_file.c_str());
  }
  if (json != nullptr) {
    curl_easy_setopt(curl_, CURLOPT_POSTFIELDSIZE, static_cast<long>(json->size()));
    curl_easy_setopt(curl_, CURLOPT_POSTFIELDS, json->c_str());
  }
  const CURLcode code = curl_easy_perform(curl_);
  curl_slist_free_all(headers);
  if (transfer.stopped) return Cancelled("{}: ended by the caller", url);
  if (code != CURLE_OK) return Unavailable("{}", TransferError(code, options_.url));
  long http = 0;
  curl_easy_getinfo(curl_, CURLINFO_RESPONSE_CODE, &http);
  if (http >= 300) {
    return FailedPrecondition("{}: HTTP {}: {}", url, http, ErrorText(transfer.error_body));
  }
  return absl::OkStatus();
}

}  // namespace switchyard::cli
