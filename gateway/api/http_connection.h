// What http_server.cc and http_connection.cc share. Internal to the two; third-party types are only
// named here.
#pragma once

#include <atomic>
#include <memory>
#include <unordered_set>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "gateway/api/http_server.h"
#include "gateway/api/http_tls.h"
#include "services/base/clock.h"

namespace boost::asio {
class io_context;
}

namespace switchyard::gateway {

// One connection. Lives on one io thread; all methods are called there.
class HttpConnection {
 public:
  virtual ~HttpConnection() = default;
  virtual void CloseIfIdle() = 0;
  virtual void Close() = 0;
};

// One io thread's event loop. Kept alive by its connections, which an exchange may keep alive
// beyond the server.
struct HttpIoLoop {
  HttpIoLoop();
  ~HttpIoLoop();
  std::unique_ptr<boost::asio::io_context> io;
  std::unordered_set<HttpConnection*> connections;  // touched on the loop's thread only
};

struct HttpServerShared {
  HttpServerOptions options;
  HttpHandler* handler = nullptr;
  HttpServerStats stats;
  std::atomic<bool> draining{false};
  std::atomic<size_t> body_bytes{0};  // of all requests, received and not yet parsed
  absl::Mutex mutex;
  SteadyCondVar quiet;                  // busy is 0
  int busy ABSL_GUARDED_BY(mutex) = 0;  // connections with an answer that is not out
  std::unique_ptr<HttpTls> tls;         // null: plain
};

// Takes the accepted, non-blocking socket `fd` of `family`. Called on the loop's thread.
void ServeHttpConnection(std::shared_ptr<HttpIoLoop> loop, std::shared_ptr<HttpServerShared> shared,
                         int fd, int family);

}  // namespace switchyard::gateway
