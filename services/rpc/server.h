// A gRPC listener as every service of ours has it: HOST:PORT or unix:PATH, TLS, standard health
// with its descriptor, reflection, message sizes, keepalive, and a shutdown with a grace.
//
// Owns the grpc::Server; the services registered with it must outlive it. Thread-safe.
#pragma once

#include <grpcpp/server.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/security/tls.h"

namespace grpc {
class ServerBuilder;
}

namespace switchyard::rpc {

struct ServerOptions {
  std::string listen;      // HOST:PORT (port 0 chooses one) or unix:PATH; empty: in-process only
  security::TlsFiles tls;  // not used for unix:PATH
};

class Server {
 public:
  // `configure` registers services and queues. Health says NOT_SERVING until SetReady(true).
  // UNAVAILABLE names the address and why it cannot be listened on.
  static absl::StatusOr<std::unique_ptr<Server>> Start(
      const ServerOptions& options, const std::function<void(grpc::ServerBuilder&)>& configure);
  ~Server();  // Shutdown(0)

  // Where it listens, with the chosen port: "127.0.0.1:8100", "unix:/run/r.sock"; "" in-process.
  const std::string& address() const { return address_; }
  // What the standard health service answers, for the server ("") and all its services.
  void SetReady(bool ready);
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

// Sends gRPC's own log lines through services/base/logging.h; call once in main.
void RouteGrpcLogs();

}  // namespace switchyard::rpc
