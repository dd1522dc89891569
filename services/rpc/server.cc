#include "services/rpc/server.h"

#include <errno.h>
#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/server_interceptor.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>

#include "grpc/health/v1/health.pb.h"
#include "services/base/check.h"
#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/status.h"
#include "services/base/unix_socket.h"
#include "services/rpc/channel.h"

namespace switchyard::rpc {
namespace {

// Binds and lets go; the reason if that cannot be done, empty if it can. gRPC says only that it
// failed.
std::string WhyNotBound(const std::string& address) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int code = ::getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found);
  if (code != 0) return ::gai_strerror(code);
  std::string reason;
  const int fd = ::socket(found->ai_family, SOCK_STREAM, 0);
  if (fd >= 0) {
    const int on = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (::bind(fd, found->ai_addr, found->ai_addrlen) != 0 || ::listen(fd, 1) != 0) {
      reason = ::strerror(errno);
    }
    ::close(fd);
  } else {
    reason = ::strerror(errno);
  }
  ::freeaddrinfo(found);
  return reason;
}

// What cannot listen: the address, behind its flag where it has one.
std::string Named(const std::string& address, std::string_view flag) {
  return flag.empty() ? address : fmt::format("{} {}", flag, address);
}

absl::Status CannotListen(const std::string& address, std::string_view flag,
                          const std::string& reason) {
  return Unavailable("{}: cannot listen: {}; give another address, or end what listens there",
                     Named(address, flag), reason.empty() ? "the address cannot be bound" : reason);
}

// The path is the client's own words: what names no method that this program has must not become a
// series of its own.
std::string MethodLabel(const std::string& path) {
  std::string name = path.substr(0, 1) == "/" ? path.substr(1) : path;
  std::replace(name.begin(), name.end(), '/', '.');
  const auto* method = google::protobuf::DescriptorPool::generated_pool()->FindMethodByName(name);
  if (method == nullptr) return "other";
  return fmt::format("/{}/{}", method->service()->full_name(), method->name());
}

// Counts the calls that end with an error.
class ErrorCounter : public grpc::experimental::Interceptor {
 public:
  ErrorCounter(telemetry::Metrics& metrics, const std::string& service, const char* method)
      : metrics_(metrics), service_(service), method_(method) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    using grpc::experimental::InterceptionHookPoints;
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      const grpc::Status status = methods->GetSendStatus();
      if (!status.ok()) {
        const std::string code =
            absl::StatusCodeToString(static_cast<absl::StatusCode>(status.error_code()));
        metrics_
            .Counter(telemetry::kGrpcErrors, service_,
                     {{"method", MethodLabel(method_)}, {"code", code}})
            .Increment();
      }
    }
    methods->Proceed();
  }

 private:
  telemetry::Metrics& metrics_;
  const std::string& service_;
  const std::string method_;
};

class ErrorCounterFactory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  ErrorCounterFactory(telemetry::Metrics& metrics, std::string service)
      : metrics_(metrics), service_(std::move(service)) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    return new ErrorCounter(metrics_, service_, info->method());
  }

 private:
  telemetry::Metrics& metrics_;
  const std::string service_;
};

void EnablePlugins() {
  static std::once_flag once;
  std::call_once(once, [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    // Links the descriptor in, so that reflection can describe the health service.
    SY_CHECK(grpc::health::v1::HealthCheckRequest::descriptor() != nullptr);
  });
}

void SetLimits(const ServerOptions& options, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(options.receive_bytes_max);
  if (options.memory_bytes_max > 0) {
    builder.SetResourceQuota(grpc::ResourceQuota(options.service).Resize(options.memory_bytes_max));
  }
  if (options.streams_max > 0) {
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.streams_max);
  }
  builder.SetMaxSendMessageSize(kMessageBytesMax);
  // Two servers on one port would share its connections silently.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // Our own channels ping every 10 s.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Listener>> Listener::Add(const ServerOptions& options,
                                                        grpc::ServerBuilder& builder) {
  EnablePlugins();
  SetLimits(options, builder);
  std::unique_ptr<Listener> listener(new Listener(options));
  if (listener->local_socket()) {
    // gRPC would take the socket away from a server that lives.
    if (absl::Status s = ClearUnixSocket(options.listen.substr(5)); !s.ok()) {
      return Annotate(s, fmt::format("{}: cannot listen", Named(options.listen, options.flag)));
    }
  }
  if (!options.listen.empty()) {
    SY_ASSIGN_OR_RETURN(
        auto credentials,
        security::ServerCredentials(listener->local_socket() ? security::TlsFiles{} : options.tls));
    builder.AddListeningPort(options.listen, credentials, &listener->port_);
  }
  if (options.metrics != nullptr) {
    std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> creators;
    creators.push_back(std::make_unique<ErrorCounterFactory>(*options.metrics, options.service));
    builder.experimental().SetInterceptorCreators(std::move(creators));
  }
  return listener;
}

absl::StatusOr<std::string> Listener::Bound(grpc::Server* server) const {
  const std::string& listen = options_.listen;
  if (server == nullptr || (!listen.empty() && port_ <= 0)) {
    return CannotListen(listen, options_.flag,
                        local_socket() ? "the socket cannot be bound" : WhyNotBound(listen));
  }
  SetHealth(*server, false);
  if (listen.empty() || local_socket()) return listen;
  const std::string address = fmt::format("{}:{}", listen.substr(0, listen.rfind(':')), port_);
  security::WarnIfExposed(address, options_.tls, options_.keyless);
  return address;
}

absl::Status CheckListen(const std::string& listen, const security::TlsFiles& tls,
                         std::string_view flag) {
  if (listen.empty() || listen.rfind("unix:", 0) == 0) return absl::OkStatus();
  if (!tls.empty()) SY_RETURN_IF_ERROR(security::CheckTlsFiles(tls));
  const std::string reason = WhyNotBound(listen);
  return reason.empty() ? absl::OkStatus() : CannotListen(listen, flag, reason);
}

void SetHealth(grpc::Server& server, bool ready) {
  if (auto* health = server.GetHealthCheckService()) health->SetServingStatus(ready);
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(
    const ServerOptions& options, const std::function<void(grpc::ServerBuilder&)>& configure) {
  grpc::ServerBuilder builder;
  SY_ASSIGN_OR_RETURN(const auto listener, Listener::Add(options, builder));
  configure(builder);
  std::unique_ptr<Server> server(new Server);
  server->server_ = builder.BuildAndStart();
  SY_ASSIGN_OR_RETURN(server->address_, listener->Bound(server->server_.get()));
  return server;
}

Server::~Server() {
  if (server_ != nullptr) Shutdown(absl::ZeroDuration());
}

void Server::Shutdown(absl::Duration grace) {
  server_->Shutdown(absl::ToChronoTime(absl::Now() + grace));
  server_->Wait();
}

void PollEachQueue() { ::setenv("GRPC_POLL_STRATEGY", "poll", /*overwrite=*/0); }

void RouteGrpcLogs() {
  gpr_set_log_function([](gpr_log_func_args* args) {
    const char* file = ::strrchr(args->file, '/');
    auto level = args->severity == GPR_LOG_SEVERITY_ERROR  ? log::Level::kError
                 : args->severity == GPR_LOG_SEVERITY_INFO ? log::Level::kInfo
                                                           : log::Level::kDebug;
    // Where a listener cannot be had, Listener::Bound says it better.
    for (const char* told : {"No address added out of", "shutdown before its server"}) {
      if (::strstr(args->message, told) != nullptr) level = log::Level::kDebug;
    }
    if (!log::Enabled(level)) return;
    log::Write(level, fmt::format("grpc {}:{}: {}", file == nullptr ? args->file : file + 1,
                                  args->line, args->message));
  });
}

}  // namespace switchyard::rpc
