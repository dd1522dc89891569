#include "gateway/api/http_connection.h"

#include <absl/synchronization/mutex.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <optional>

#include "gateway/api/http_exchange.h"
#include "gateway/api/http_parser.h"

namespace switchyard::gateway {
namespace {

namespace asio = boost::asio;
using Socket = asio::generic::stream_protocol::socket;
using TlsStream = asio::ssl::stream<Socket>;
using SteadyClock = std::chrono::steady_clock;
using ErrorCode = boost::system::error_code;

constexpr size_t kReadBytes = 16 << 10;
constexpr char kContinue[] = "HTTP/1.1 100 Continue\r\n\r\n";
// After an answer that closes the connection the client gets this long (and may send this much)
// before the socket is closed: closing with unread input would reset it and lose the answer.
constexpr absl::Duration kLingerTime = absl::Seconds(2);
constexpr size_t kLingerBytes = 16 << 20;

// A body's share of what the bodies of all connections may hold, given back with it.
class BodyHold {
 public:
  explicit BodyHold(std::shared_ptr<HttpServerShared> shared) : shared_(std::move(shared)) {}
  ~BodyHold() { shared_->body_bytes -= held_; }
  BodyHold(const BodyHold&) = delete;
  BodyHold& operator=(const BodyHold&) = delete;

  bool GrowTo(size_t bytes) {
    if (bytes <= held_) return true;
    const size_t more = bytes - held_;
    if (shared_->body_bytes.fetch_add(more) + more > shared_->options.max_body_bytes_in_all) {
      shared_->body_bytes -= more;
      return false;
    }
    held_ = bytes;
    return true;
  }

 private:
  const std::shared_ptr<HttpServerShared> shared_;
  size_t held_ = 0;
};

// A HEAD is handled as the GET that it asks about; whether the request was one.
bool AsGet(HttpRequest& request) {
  if (request.method != "HEAD") return false;
  request.method = "GET";
  return true;
}

class Connection final : public HttpConnection,
                         public HttpExchangeWriter,
                         public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<HttpIoLoop> loop, std::shared_ptr<HttpServerShared> shared, int fd,
             int family);
  ~Connection() override {
    SetBusy(false);
    --shared_->stats.open_connections;
  }

  void Start();
  void CloseIfIdle() override;
  void Close() override;
  void PostFlush() override {
    asio::post(*loop_->io, [self = shared_from_this()] { self->Flush(); });
  }
  void PostCutOff() override {
    asio::post(*loop_->io, [self = shared_from_this()] { self->CutOff(); });
  }

 private:
  enum class Phase { kIdle, kHeader, kBody, kAnswering, kWriting, kLinger };

  void Enter(Phase phase, absl::Duration limit);
  void Tick();
  void OnDeadline();
  void MaybeRead();
  void OnRead(const ErrorCode& ec, size_t n);
  void OnClientDone();
  void SetBusy(bool busy);
  bool HoldBody();
  void Process();
  void Dispatch();
  void Refuse(int status, const std::string& message);
  void RefuseWith(const HttpResponse& response, bool head_only);
  void Flush();
  void CutOff();
  void StartWrite();
  void OnWritten(const ErrorCode& ec, size_t n);
  void FinishExchange();
  void Linger();
  Socket& socket() { return tls_ ? tls_->next_layer() : *plain_; }

  const std::shared_ptr<HttpIoLoop> loop_;
  const std::shared_ptr<HttpServerShared> shared_;
  std::optional<Socket> plain_;
  std::unique_ptr<TlsStream> tls_;
  asio::steady_timer timer_;
  SteadyClock::duration tick_;
  Phase phase_ = Phase::kHeader;
  SteadyClock::time_point deadline_;
  SteadyClock::time_point exchange_deadline_;

  std::unique_ptr<char[]> read_buffer_{new char[kReadBytes]};
  std::string in_;  // received, not yet parsed
  std::unique_ptr<HttpParser> parser_;
  std::shared_ptr<BodyHold> hold_;  // of the body that `parser_` has; null: nothing yet
  bool continue_sent_ = false;
  bool reading_ = false;
  bool writing_ = false;
  bool client_done_ = false;  // the client closed its side
  bool closing_ = false;      // the answer in `out_` is the last
  bool last_of_exchange_ = false;
  bool closed_ = false;
  bool busy_ = false;  // counted in shared_->busy
  size_t lingered_ = 0;
  std::string out_;  // in flight
  std::shared_ptr<BufferedHttpExchange> current_;
};

Connection::Connection(std::shared_ptr<HttpIoLoop> loop, std::shared_ptr<HttpServerShared> shared,
                       int fd, int family)
    : loop_(std::move(loop)), shared_(std::move(shared)), timer_(*loop_->io) {
  ++shared_->stats.open_connections;
  Socket socket(*loop_->io, asio::generic::stream_protocol(family, 0), fd);
  if (shared_->tls) {
    tls_ = std::make_unique<TlsStream>(std::move(socket), shared_->tls->NewSession());
  } else {
    plain_.emplace(std::move(socket));
  }
  const HttpServerOptions& o = shared_->options;
  const absl::Duration shortest = std::min(
      {o.header_timeout, o.body_timeout, o.idle_timeout, o.write_timeout, o.exchange_timeout});
  tick_ =
      absl::ToChronoNanoseconds(std::clamp(shortest / 4, absl::Milliseconds(5), absl::Seconds(1)));
}

void Connection::Enter(Phase phase, absl::Duration limit) {
  phase_ = phase;
  deadline_ = SteadyClock::now() + absl::ToChronoNanoseconds(limit);
}

void Connection::Start() {
  loop_->connections.insert(this);
  Enter(Phase::kHeader, shared_->options.header_timeout);
  parser_ = std::make_unique<HttpParser>(shared_->options.limits);
  Tick();
  if (!tls_) return MaybeRead();
  tls_->async_handshake(asio::ssl::stream_base::server,
                        [self = shared_from_this()](const ErrorCode& ec) {
                          if (ec) return self->Close();
                          self->MaybeRead();
                        });
}

// One coarse timer a connection: deadlines move with every write and cost nothing to set.
void Connection::Tick() {
  timer_.expires_after(tick_);
  timer_.async_wait([self = shared_from_this()](const ErrorCode& ec) {
    if (ec || self->closed_) return;
    if (SteadyClock::now() >= self->deadline_) self->OnDeadline();
    if (!self->closed_) self->Tick();
  });
}

void Connection::OnDeadline() {
  switch (phase_) {
    case Phase::kIdle:
    case Phase::kLinger:
      return Close();
    case Phase::kHeader:
      if (in_.empty()) return Close();
      return Refuse(408, "the request header did not arrive in time");
    case Phase::kBody:
      return Refuse(408, "the request body did not arrive in time");
    case Phase::kAnswering:
    case Phase::kWriting:
      return CutOff();
  }
}

void Connection::MaybeRead() {
  if (reading_ || closed_ || client_done_) return;
  if (current_ && in_.size() >= shared_->options.max_pipelined_bytes) return;
  reading_ = true;
  auto done = [self = shared_from_this()](const ErrorCode& ec, size_t n) { self->OnRead(ec, n); };
  const auto buffer = asio::buffer(read_buffer_.get(), kReadBytes);
  if (tls_) {
    tls_->async_read_some(buffer, std::move(done));
  } else {
    plain_->async_read_some(buffer, std::move(done));
  }
}

void Connection::OnRead(const ErrorCode& ec, size_t n) {
  reading_ = false;
  if (closed_) return;
  if (ec) {
    client_done_ = true;
    if (closing_ && writing_) return;  // the answer still goes out
    if (ec != asio::error::eof || !current_) return Close();
    return OnClientDone();
  }
  shared_->stats.bytes_in += n;
  if (phase_ == Phase::kLinger || closing_) {
    lingered_ += n;
    if (lingered_ > kLingerBytes) return Close();
    return MaybeRead();
  }
  in_.append(read_buffer_.get(), n);
  Process();
}

// The client sends nothing more: it has closed its sending side and waits for the answer, or is
// gone altogether. TCP says which only to who writes, the peer of a dead socket answering with a
// reset. So an answer that has not begun is asked after with an interim "100 Continue", which
// HTTP/1.1 clients skip; a stream's own writes ask for it. The reset (or a local socket's end) ends
// the wait for an error here. HTTP/1.0 has no interim answers: such a client is taken as gone.
void Connection::OnClientDone() {
  if (!current_->begun()) {
    if (current_->http10()) return Close();
    if (!writing_) {
      out_ = kContinue;
      StartWrite();
    }
  }
  if (closed_) return;
  socket().async_wait(Socket::wait_error, [self = shared_from_this()](const ErrorCode& ec) {
    if (!ec && !self->closed_) self->Close();
  });
}

void Connection::SetBusy(bool busy) {
  if (busy_ == busy) return;
  busy_ = busy;
  absl::MutexLock lock(&shared_->mutex);
  shared_->busy += busy ? 1 : -1;
  if (shared_->busy == 0) shared_->quiet.SignalAll();
}

// Takes what the body has grown by from the budget of all connections.
bool Connection::HoldBody() {
  const size_t bytes = parser_->body_bytes();
  if (bytes == 0) return true;
  if (!hold_) hold_ = std::make_shared<BodyHold>(shared_);
  return hold_->GrowTo(bytes);
}

void Connection::Process() {
  const HttpServerOptions& o = shared_->options;
  while (!closed_ && !closing_ && !current_ && !in_.empty()) {
    if (phase_ == Phase::kIdle) Enter(Phase::kHeader, o.header_timeout);
    const size_t used = parser_->Feed(in_);
    in_.erase(0, used);
    if (parser_->state() == HttpParser::State::kFailed) {
      return Refuse(parser_->error_status(), parser_->error());
    }
    if (!HoldBody()) {
      return Refuse(503,
                    "the bodies of all requests together are more than this server holds; "
                    "try again later");
    }
    if (parser_->state() == HttpParser::State::kDone) {
      Dispatch();
      continue;
    }
    if (parser_->state() == HttpParser::State::kBody && phase_ != Phase::kBody) {
      HttpRequest head = parser_->Head();
      const bool head_only = AsGet(head);
      if (const auto refusal = shared_->handler->RefuseHead(head)) {
        return RefuseWith(*refusal, head_only);
      }
      Enter(Phase::kBody, o.body_timeout);
      if (parser_->ExpectsContinue() && !continue_sent_ && !writing_) {
        continue_sent_ = true;
        out_ = kContinue;
        StartWrite();
      }
    }
    if (in_.size() > o.limits.header_bytes + kReadBytes) {
      return Refuse(431, HttpParser::HeadersTooLarge(o.limits));
    }
    if (used == 0) break;
  }
  MaybeRead();
}

void Connection::Dispatch() {
  const bool keep_alive = parser_->KeepAlive() && !shared_->draining;
  const bool http10 = parser_->IsHttp10();
  HttpRequest request = parser_->Take();
  request.body_hold = std::move(hold_);
  hold_ = nullptr;
  SetBusy(true);
  parser_ = std::make_unique<HttpParser>(shared_->options.limits);
  continue_sent_ = false;
  Enter(Phase::kAnswering, shared_->options.exchange_timeout);
  exchange_deadline_ = deadline_;
  const bool head_only = AsGet(request);
  // Until-close framing cannot be kept alive, whatever the client wishes.
  current_ = std::make_shared<BufferedHttpExchange>(
      shared_from_this(),
      BufferedHttpExchange::Options{.max_buffered = shared_->options.max_buffered_bytes,
                                    .head_only = head_only,
                                    .http10 = http10,
                                    .keep_alive = keep_alive && !http10});
  shared_->handler->Handle(std::move(request), current_);
}

void Connection::Refuse(int status, const std::string& message) {
  if (closing_ || writing_) return Close();
  ++shared_->stats.clients_cut_off;
  RefuseWith(shared_->handler->Refusal(status, message), false);
}

void Connection::RefuseWith(const HttpResponse& response, bool head_only) {
  if (closing_ || writing_) return Close();
  closing_ = true;
  SetBusy(true);
  hold_ = nullptr;
  out_.clear();
  AppendHttpHead(out_, response, HttpFraming::kLength, false);
  if (!head_only) out_ += response.body;
  StartWrite();
  MaybeRead();
}

void Connection::Flush() {
  if (closed_ || writing_ || !current_) return;
  out_.clear();
  last_of_exchange_ = current_->TakePending(out_);
  if (!out_.empty()) return StartWrite();
  if (last_of_exchange_) FinishExchange();
}

void Connection::StartWrite() {
  writing_ = true;
  Enter(Phase::kWriting, shared_->options.write_timeout);
  auto done = [self = shared_from_this()](const ErrorCode& ec, size_t n) {
    self->OnWritten(ec, n);
  };
  if (tls_) {
    asio::async_write(*tls_, asio::buffer(out_), std::move(done));
  } else {
    asio::async_write(*plain_, asio::buffer(out_), std::move(done));
  }
}

void Connection::OnWritten(const ErrorCode& ec, size_t n) {
  writing_ = false;
  shared_->stats.bytes_out += n;
  if (closed_) return;
  if (ec) return Close();
  if (closing_) return Linger();
  if (!current_)
    return Enter(Phase::kBody, shared_->options.body_timeout);  // "100 Continue" is out
  phase_ = Phase::kAnswering;
  deadline_ = exchange_deadline_;
  if (last_of_exchange_) return FinishExchange();
  Flush();
}

void Connection::FinishExchange() {
  // A client that has closed its sending side still gets what it asked for before.
  const bool keep_alive =
      current_->keep_alive() && !shared_->draining && !(client_done_ && in_.empty());
  current_.reset();
  SetBusy(false);
  last_of_exchange_ = false;
  if (out_.capacity() > (64 << 10)) std::string().swap(out_);
  if (!keep_alive) {
    closing_ = true;
    return Linger();
  }
  Enter(Phase::kIdle, shared_->options.idle_timeout);
  Process();
  if (client_done_ && !current_ && !closing_) Close();
}

void Connection::Linger() {
  SetBusy(false);
  if (client_done_) return Close();
  Enter(Phase::kLinger, kLingerTime);
  const auto end = [self = shared_from_this()](const ErrorCode& = {}) {
    ErrorCode ignored;
    if (!self->closed_) self->socket().shutdown(Socket::shutdown_send, ignored);
  };
  if (tls_) {
    tls_->async_shutdown(end);  // says close_notify, without which the answer looks cut off
  } else {
    end();
  }
  in_.clear();
  MaybeRead();
}

void Connection::CutOff() {
  if (closed_) return;
  ++shared_->stats.clients_cut_off;
  Close();
}

void Connection::CloseIfIdle() {
  if (!current_ && phase_ == Phase::kIdle) Close();
}

void Connection::Close() {
  if (closed_) return;
  closed_ = true;
  SetBusy(false);
  hold_ = nullptr;
  const auto self = shared_from_this();
  loop_->connections.erase(this);
  ErrorCode ignored;
  socket().close(ignored);
  timer_.cancel(ignored);
  if (!current_) return;
  const std::shared_ptr<BufferedHttpExchange> exchange = std::move(current_);
  if (const auto callback = exchange->MarkGone()) callback();
}

}  // namespace

void ServeHttpConnection(std::shared_ptr<HttpIoLoop> loop, std::shared_ptr<HttpServerShared> shared,
                         int fd, int family) {
  std::make_shared<Connection>(std::move(loop), std::move(shared), fd, family)->Start();
}

}  // namespace switchyard::gateway
