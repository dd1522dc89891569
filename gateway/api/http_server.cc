#include "gateway/api/http_server.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>
#include <thread>
#include <vector>

#include "gateway/api/http_connection.h"
#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/repeat_filter.h"
#include "services/base/status.h"
#include "services/base/unix_socket.h"

namespace switchyard::gateway {

namespace asio = boost::asio;
using ErrorCode = boost::system::error_code;

HttpIoLoop::HttpIoLoop() : io(std::make_unique<asio::io_context>(1)) {}
HttpIoLoop::~HttpIoLoop() = default;

namespace {

constexpr int kBacklog = 1024;
constexpr std::string_view kUnix = "unix:";

struct Listener {
  int fd = -1;
  int family = AF_INET;
  std::string address;
};

absl::Status SystemError(std::string_view what, std::string_view address) {
  return Unavailable("--http {}: {}: {}", address, what, std::strerror(errno));
}

absl::StatusOr<Listener> ListenUnix(const std::string& address) {
  const std::string path = address.substr(kUnix.size());
  sockaddr_un where{};
  where.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof where.sun_path) {
    return InvalidArgument("--http {}: the path has {} bytes, allowed are 1 to {}", address,
                           path.size(), sizeof where.sun_path - 1);
  }
  std::memcpy(where.sun_path, path.data(), path.size());
  if (absl::Status status = ClearUnixSocket(path); !status.ok()) {
    return Annotate(status, fmt::format("--http {}: cannot listen", address));
  }
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return SystemError("socket", address);
  if (::bind(fd, reinterpret_cast<sockaddr*>(&where), sizeof where) != 0 ||
      ::listen(fd, kBacklog) != 0) {
    const absl::Status status = SystemError("cannot listen", address);
    ::close(fd);
    return status;
  }
  return Listener{.fd = fd, .family = AF_UNIX, .address = address};
}

std::string BoundAddress(int fd, const std::string& host) {
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size);
  const int port = bound.ss_family == AF_INET6
                       ? ntohs(reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port)
                       : ntohs(reinterpret_cast<sockaddr_in*>(&bound)->sin_port);
  return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port)
                                             : fmt::format("[{}]:{}", host, port);
}

absl::StatusOr<Listener> ListenTcp(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) {
    return InvalidArgument("--http {}: expected HOST:PORT or unix:PATH", address);
  }
  std::string host = address.substr(0, colon);
  const std::string port = address.substr(colon + 1);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  int number = -1;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
  if (error != std::errc() || end != port.data() + port.size() || number < 0 || number > 65535) {
    return InvalidArgument("--http {}: the port is \"{}\", expected 0 to 65535", address, port);
  }
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (const int rc =
          ::getaddrinfo(host.empty() ? nullptr : host.c_str(), port.c_str(), &hints, &found);
      rc != 0) {
    return InvalidArgument("--http {}: cannot resolve \"{}\": {}", address, host,
                           ::gai_strerror(rc));
  }
  absl::Status status = Unavailable("--http {}: no address", address);
  Listener listener;
  for (addrinfo* a = found; a != nullptr && listener.fd < 0; a = a->ai_next) {
    const int fd = ::socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;
    const int on = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (::bind(fd, a->ai_addr, a->ai_addrlen) == 0 && ::listen(fd, kBacklog) == 0) {
      listener = {.fd = fd, .family = a->ai_family, .address = {}};
    } else {
      status = SystemError("cannot listen", address);
      ::close(fd);
    }
  }
  ::freeaddrinfo(found);
  if (listener.fd < 0) return status;
  listener.address = BoundAddress(listener.fd, host.empty() ? "0.0.0.0" : host);
  return listener;
}

absl::StatusOr<std::unique_ptr<HttpTls>> MakeTls(const HttpServerOptions& options) {
  if (options.tls_cert.empty() && options.tls_key.empty()) {
    if (!options.tls_ca.empty()) {
      return UsageError("--tls-ca needs --tls-cert and --tls-key on the HTTP listener");
    }
    return std::unique_ptr<HttpTls>();
  }
  if (options.tls_cert.empty() || options.tls_key.empty()) {
    return UsageError("--tls-cert and --tls-key are given together or not at all");
  }
  return HttpTls::Create({.cert = options.tls_cert, .key = options.tls_key, .ca = options.tls_ca},
                         options.tls_look_every);
}

}  // namespace

struct HttpServer::Impl {
  using WorkGuard = asio::executor_work_guard<asio::io_context::executor_type>;

  Impl(Listener where, std::shared_ptr<HttpServerShared> with)
      : shared(std::move(with)), address(std::move(where.address)), family(where.family) {
    for (int i = 0; i < std::max(1, shared->options.threads); ++i) {
      loops.push_back(std::make_shared<HttpIoLoop>());
      guards.emplace_back(loops.back()->io->get_executor());
    }
    listener.emplace(*loops[0]->io, where.fd);
    retry.emplace(*loops[0]->io);
  }

  void Run() {
    Accept();
    for (const auto& loop : loops) {
      threads.emplace_back([loop] { loop->io->run(); });
    }
  }

  void Accept() {
    listener->async_wait(asio::posix::stream_descriptor::wait_read, [this](const ErrorCode& ec) {
      if (ec || stopping) return;
      AcceptAll();
    });
  }

  void AcceptAll() {
    while (true) {
      const int fd =
          ::accept4(listener->native_handle(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd >= 0) {
        Serve(fd);
        continue;
      }
      if (errno == EAGAIN || errno == EWOULDBLOCK) return Accept();
      if (errno == EINTR || errno == ECONNABORTED) continue;
      // Out of descriptors or memory: the listener stays readable, so wait instead of spinning.
      const std::string reason = std::strerror(errno);
      if (repeats.Passes(address, reason, SteadyNow())) log::Warning("http: accept: {}", reason);
      retry->expires_after(std::chrono::milliseconds(100));
      retry->async_wait([this](const ErrorCode& ec) {
        if (!ec && !stopping) Accept();
      });
      return;
    }
  }

  void Serve(int fd) {
    if (family != AF_UNIX) {
      const int on = 1;
      ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    if (shared->stats.open_connections >= shared->options.max_connections) {
      ++shared->stats.connections_refused;
      RefuseConnection(fd);
      return;
    }
    const std::shared_ptr<HttpIoLoop> loop = loops[next++ % loops.size()];
    asio::post(*loop->io, [this, loop, fd] {
      if (stopping) {
        ::close(fd);
        return;
      }
      ServeHttpConnection(loop, shared, fd, family);
    });
  }

  // Best effort: one write that fits any socket buffer, then close. Nothing to say under TLS.
  void RefuseConnection(int fd) {
    if (!shared->tls) {
      const HttpResponse response = shared->handler->Refusal(503, "too many open connections");
      std::string text = fmt::format(
          "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: "
          "{}\r\nconnection: close\r\n",
          response.body.size());
      for (const auto& [name, value] : response.headers) {
        text += fmt::format("{}: {}\r\n", name, value);
      }
      text += "\r\n" + response.body;
      [[maybe_unused]] const ssize_t sent = ::send(fd, text.data(), text.size(), MSG_NOSIGNAL);
      ::shutdown(fd, SHUT_WR);
    }
    ::close(fd);
  }

  void ForEachConnection(void (HttpConnection::*method)()) {
    for (const auto& loop : loops) {
      asio::post(*loop->io, [loop, method] {
        // A copy: closing takes a connection out of the set.
        const std::vector<HttpConnection*> all(loop->connections.begin(), loop->connections.end());
        for (HttpConnection* connection : all) {
          if (loop->connections.contains(connection)) (connection->*method)();
        }
      });
    }
  }

  void Stop() {
    if (stopping.exchange(true)) return;
    asio::post(*loops[0]->io, [this] {
      ErrorCode ignored;
      listener->close(ignored);
      retry->cancel(ignored);
    });
    ForEachConnection(&HttpConnection::Close);
    for (WorkGuard& guard : guards) guard.reset();
    for (std::thread& thread : threads) thread.join();
    threads.clear();
    if (family == AF_UNIX) ::unlink(address.substr(kUnix.size()).c_str());
  }

  std::shared_ptr<HttpServerShared> shared;
  std::string address;
  int family;
  std::vector<std::shared_ptr<HttpIoLoop>> loops;
  std::vector<WorkGuard> guards;
  std::optional<asio::posix::stream_descriptor> listener;
  std::optional<asio::steady_timer> retry;
  std::vector<std::thread> threads;
  std::atomic<bool> stopping{false};
  log::RepeatFilter repeats;  // of a listener that cannot accept
  size_t next = 0;            // round robin; on the accepting thread
};

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Create(const HttpServerOptions& options,
                                                               HttpHandler& handler) {
  auto shared = std::make_shared<HttpServerShared>();
  shared->options = options;
  shared->handler = &handler;
  SY_ASSIGN_OR_RETURN(shared->tls, MakeTls(options));
  const bool is_unix = options.address.rfind(kUnix, 0) == 0;
  SY_ASSIGN_OR_RETURN(Listener listener,
                      is_unix ? ListenUnix(options.address) : ListenTcp(options.address));
  auto impl = std::make_unique<Impl>(std::move(listener), std::move(shared));
  impl->Run();
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() { Stop(); }

const std::string& HttpServer::address() const { return impl_->address; }
const HttpServerStats& HttpServer::stats() const { return impl_->shared->stats; }

void HttpServer::BeginDrain() {
  impl_->shared->draining = true;
  impl_->ForEachConnection(&HttpConnection::CloseIfIdle);
}

bool HttpServer::WaitUntilAnswered(absl::Duration timeout) {
  HttpServerShared& shared = *impl_->shared;
  absl::MutexLock lock(&shared.mutex);
  return shared.quiet.Await(&shared.mutex, timeout, [&shared] {
    shared.mutex.AssertHeld();
    return shared.busy == 0;
  });
}

void HttpServer::Stop() { impl_->Stop(); }

}  // namespace switchyard::gateway
