// The HTTP/1.1 server: keep-alive, pipelined requests one after another, streamed answers, TLS.
// Asynchronous on a few io threads; no thread a connection, no third-party header here.
//
// Everything is bounded: connections, header and body bytes, the time a client may take for a
// header, a body or for reading what was written, the bytes that wait for a slow client.
//
// A client that closes only its sending side is answered, whatever it had asked for before. Whether
// it is gone altogether shows when something is written to it: the next part of a stream, or, where
// an answer has not begun, an interim "100 Continue" (see OnClientDone). An HTTP/1.0 client, which
// knows no interim answers, is taken as gone if it half-closes before its answer has begun.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gateway/api/http_parser.h"
#include "gateway/api/http_types.h"

namespace switchyard::gateway {

struct HttpServerOptions {
  std::string address =
      "127.0.0.1:8000";        // HOST:PORT, [V6]:PORT or unix:PATH; port 0 takes a free one
  int threads = 1;             // io threads
  int max_connections = 4096;  // one more is answered 503 and closed
  HttpLimits limits;
  size_t max_buffered_bytes = 1 << 20;  // that wait for a client of a stream, besides one write
  // Of all requests that are not yet parsed together; one that would exceed it is answered 503.
  size_t max_body_bytes_in_all = 512 << 20;
  size_t max_pipelined_bytes = 64 << 10;  // of further requests, read ahead while one is answered
  absl::Duration header_timeout =
      absl::Seconds(20);  // from the first byte (or the connect) to the end
  absl::Duration body_timeout = absl::Seconds(60);
  absl::Duration idle_timeout = absl::Seconds(90);   // between requests of a connection
  absl::Duration write_timeout = absl::Seconds(30);  // without a client taking what was written
  absl::Duration exchange_timeout = absl::Hours(2);  // from a request to the end of its answer
  // PEM files, which may be renewed (see http_tls.h). With cert and key the server speaks TLS only;
  // with a CA it asks for a client certificate of that CA and refuses clients without.
  std::string tls_cert;
  std::string tls_key;
  std::string tls_ca;
  absl::Duration tls_look_every = absl::Seconds(1);  // at the earliest, for renewed files
};

// Counted by the server, read by metrics.
struct HttpServerStats {
  std::atomic<int64_t> open_connections{0};
  std::atomic<uint64_t> connections_refused{0};
  std::atomic<uint64_t> bytes_in{0};
  std::atomic<uint64_t> bytes_out{0};
  std::atomic<uint64_t> clients_cut_off{0};  // too slow or too large
};

class HttpServer {
 public:
  // Listens and serves from here on. `handler` outlives the server.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Create(const HttpServerOptions& options,
                                                            HttpHandler& handler);
  ~HttpServer();  // Stop()
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // With the port that was chosen: "127.0.0.1:41234", "[::1]:41234" or "unix:/run/x.sock".
  const std::string& address() const;
  const HttpServerStats& stats() const;

  // Closes idle connections; every answer from here on says "connection: close". New connections
  // are still taken, so that probes and metrics answer to the end.
  void BeginDrain();
  // False if `timeout` passes before every answer to a request that had come is written.
  bool WaitUntilAnswered(absl::Duration timeout);
  // Ends every connection (OnGone is called where an answer was under way) and joins the io
  // threads. Idempotent.
  void Stop();

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard::gateway
