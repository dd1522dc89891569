// Turns the bytes of a connection into requests. Incremental; one object parses one request.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "gateway/api/http_types.h"

namespace switchyard::gateway {

struct HttpLimits {
  size_t header_bytes = 32 << 10;
  size_t body_bytes = 8 << 20;
};

class HttpParser {
 public:
  enum class State { kHeader, kBody, kDone, kFailed };

  explicit HttpParser(const HttpLimits& limits);
  ~HttpParser();

  // Reads from the front of `data` and says how much it took; the rest must be given again, with
  // what came after it. After kDone nothing more is taken: the rest belongs to the next request.
  size_t Feed(std::string_view data);

  State state() const { return state_; }
  // With kFailed: 400, 413, 431 or 505-like 400, and what is wrong.
  int error_status() const { return error_status_; }
  const std::string& error() const { return error_; }
  size_t body_bytes() const;  // received so far
  // After the header: the client waits for "100 Continue" before it sends the body.
  bool ExpectsContinue() const;

  // With kBody: the request without its body.
  HttpRequest Head() const;
  // What is wrong with a header that never ends.
  static std::string HeadersTooLarge(const HttpLimits& limits);

  // With kDone.
  bool KeepAlive() const;
  bool IsHttp10() const;
  HttpRequest Take();

 private:
  struct Impl;
  const HttpLimits limits_;
  std::unique_ptr<Impl> impl_;
  State state_ = State::kHeader;
  int error_status_ = 0;
  std::string error_;
};

}  // namespace switchyard::gateway
