// A gRPC listener as every service of ours has it: HOST:PORT or unix:PATH, TLS, standard health
// with its descriptor, reflection, message sizes, keepalive, and a shutdown with a grace.
#pragma once

#include <grpcpp/server.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/rpc/channel.h"
#include "services/security/tls.h"
#include "services/telemetry/metrics.h"

namespace grpc {
class ServerBuilder;
}

namespace switchyard::rpc {

struct ServerOptions {
  std::string listen;      // HOST:PORT (port 0 chooses one) or unix:PATH; empty: in-process only
  std::string flag;        // that named it, such as "--listen", for errors; empty: none did
  security::TlsFiles tls;  // not used for unix:PATH
  bool keyless = false;    // could ask for API keys and does not: security::WarnIfExposed
  // Where calls that end with an error are counted, as this service; null: nowhere. Outlives the
  // server.
  telemetry::Metrics* metrics = nullptr;
  std::string service;
  // What clients that nobody vouches for may take; 0: no bound.
  int receive_bytes_max = kMessageBytesMax;  // of one message
  size_t memory_bytes_max = 0;               // of what the connections hold together
  int streams_max = 0;                       // open calls of one connection
};

// The address of a server that someone else builds. Lives until the server was built.
class Listener {
 public:
  // Adds address, limits, health and reflection to the builder.
  static absl::StatusOr<std::unique_ptr<Listener>> Add(const ServerOptions& options,
                                                       grpc::ServerBuilder& builder);
  // Where the built server listens, with the chosen port: "127.0.0.1:8100", "unix:/run/r.sock"; ""
  // in-process. UNAVAILABLE names the address and why it cannot be listened on. `server` is what
  // BuildAndStart gave, null included. Health then says NOT_SERVING.
  absl::StatusOr<std::string> Bound(grpc::Server* server) const;

 private:
  explicit Listener(ServerOptions options) : options_(std::move(options)) {}
  bool local_socket() const { return options_.listen.rfind("unix:", 0) == 0; }

  const ServerOptions options_;
  int port_ = -1;
};

// Whether a server could listen at HOST:PORT with these files now, so that a wrong flag is told
// before a model is loaded. Sockets of unix:PATH are not tried. UNAVAILABLE as from
// Listener::Bound, or what security::CheckTlsFiles says. `flag`: as in ServerOptions.
absl::Status CheckListen(const std::string& listen, const security::TlsFiles& tls,
                         std::string_view flag = {});

// What the standard health service answers, for the server ("") and all its services. A server that
// Listener::Bound has not seen says SERVING.
void SetHealth(grpc::Server& server, bool ready);

// Owns the grpc::Server; the services registered with it must outlive it. Thread-safe.
class Server {
 public:
  // `configure` registers services and queues. Not ready until SetReady(true).
  static absl::StatusOr<std::unique_ptr<Server>> Start(
      const ServerOptions& options, const std::function<void(grpc::ServerBuilder&)>& configure);
  ~Server();  // Shutdown(0)

  const std::string& address() const { return address_; }
  void SetReady(bool ready) { SetHealth(*server_, ready); }
  // For in-process channels.
  grpc::Server& grpc() { return *server_; }

  // No new calls; waits up to `grace` for open ones, then cancels them and waits for their
  // handlers. May be called again; the first call counts.
  void Shutdown(absl::Duration grace);

 private:
  Server() = default;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

// gRPC polls each queue's connections by themselves, instead of all through one thread that another
// queue may have put to sleep: for processes of few connections whose threads poll for their own
// answers. GRPC_POLL_STRATEGY in the environment goes before. Call first in main, before any other
// thread.
void PollEachQueue();

// Sends gRPC's own log lines through services/base/logging.h; call once in main.
void RouteGrpcLogs();

}  // namespace switchyard::rpc
