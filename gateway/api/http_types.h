// What the HTTP server hands to the code of the API and takes back: plain data and one handle, no
// third-party header, so that the API compiles fast and is tested without sockets.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace switchyard::gateway {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;
  std::string path;     // percent-decoded, without the query
  std::string query;    // after '?', as sent
  HttpHeaders headers;  // names in lower case, in order
  std::string body;
  // The body's share of what the server holds for all; let go when the body is.
  std::shared_ptr<void> body_hold;

  // The first header of that (lower-case) name; empty if there is none.
  std::string_view Header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  HttpHeaders headers;
  std::string body;
};

// The answer to one request. Exactly one of Respond(…) or StartStream(…), Write(…)*, End() is
// called, by any thread, one call at a time. Nothing blocks: what the client does not read in time
// waits in a bounded buffer, and a client that lets it overflow is cut off.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;

  // The whole answer.
  virtual void Respond(HttpResponse response) = 0;
  // Sends the head (the body of `head` is the first part); Write adds to it as chunks.
  virtual void StartStream(HttpResponse head) = 0;
  // False once the client is gone or was cut off; `data` is then dropped.
  virtual bool Write(std::string_view data) = 0;
  virtual void End() = 0;
  // Called at most once, on an io thread, if the client went away (or was cut off) before the end;
  // at once if it already has. Dropped after Respond or End.
  virtual void OnGone(std::function<void()> callback) = 0;
};

// Implementations are called on an io thread and must not block.
class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  virtual void Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) = 0;
  // Asked once the head of a request is there whose body is still to come: an answer here is given
  // instead of reading the body, and ends the connection.
  virtual std::optional<HttpResponse> RefuseHead(const HttpRequest& head) = 0;
  // The answer to what the server refuses itself (413, 400, 408, …), before there is a request.
  virtual HttpResponse Refusal(int status, const std::string& message) = 0;
};

std::string_view HttpReason(int status);

}  // namespace switchyard::gateway
