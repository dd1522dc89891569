// HTTP for the command line tools: libcurl behind two calls. Errors carry the URL and, where the
// server sent an OpenAI error object, its message.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace switchyard::cli {

struct HttpOptions {
  // Base, for example http://127.0.0.1:8000 (a "/v1" at its end is that of the paths), or
  // unix:PATH.
  std::string url;
  std::string api_key;       // sent as a bearer token where not empty
  std::string api_key_file;  // ReadApiKey takes it from there
  std::string ca_file;       // PEM; empty: the system's
  int timeout_s = 0;         // of a whole answer; 0: none
};

// Fills api_key with the first key of api_key_file, where that is given; it is a file as gateways
// read it. Errors name flag and file.
absl::Status ReadApiKey(HttpOptions& options);

// Where `url` leads.
struct HttpTarget {
  std::string base;    // paths are appended to it
  std::string socket;  // path of the Unix socket to connect to; empty: TCP
};
HttpTarget TargetOf(std::string_view url);

// Return false to end the transfer early; Post then returns CANCELLED.
using DataCallback = std::function<bool(std::string_view)>;
// The same by returning true; asked at least once a second, also while nothing comes.
using StopCallback = std::function<bool()>;

class HttpClient {
 public:
  explicit HttpClient(HttpOptions options);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  absl::StatusOr<std::string> Get(std::string_view path, const StopCallback& stop = nullptr);
  // The body of a 2xx answer goes to `on_data` as it comes.
  absl::Status Post(std::string_view path, const std::string& json, const DataCallback& on_data,
                    const StopCallback& stop = nullptr);

 private:
  absl::Status Perform(std::string_view path, const std::string* json, const DataCallback& on_data,
                       const StopCallback& stop);

  const HttpOptions options_;
  const HttpTarget target_;
  void* curl_;
};

// What a transfer to `url` failed by. `code` is a CURLcode; where nobody listens it says how to
// start a server.
std::string TransferError(int code, const std::string& url);

// The message of an OpenAI error object, or the body itself, shortened.
std::string ErrorText(std::string_view body);

// The first model that a body of /v1/models lists; INTERNAL if it lists none.
absl::StatusOr<std::string> ServedModel(std::string_view body);

}  // namespace switchyard::cli
