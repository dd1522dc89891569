#include "gateway/api/http_exchange.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <iterator>

namespace switchyard::gateway {
namespace {

std::string Date() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[64];
  const size_t n = std::strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &parts);
  return std::string(text, n);
}

}  // namespace

void AppendHttpHead(std::string& out, const HttpResponse& response, HttpFraming framing,
                    bool keep_alive) {
  fmt::format_to(std::back_inserter(out), "HTTP/1.1 {} {}\r\ndate: {}\r\n", response.status,
                 HttpReason(response.status), Date());
  if (!response.content_type.empty()) {
    fmt::format_to(std::back_inserter(out), "content-type: {}\r\n", response.content_type);
  }
  if (framing == HttpFraming::kLength) {
    fmt::format_to(std::back_inserter(out), "content-length: {}\r\n", response.body.size());
  } else if (framing == HttpFraming::kChunked) {
    out += "transfer-encoding: chunked\r\n";
  }
  out += keep_alive ? "connection: keep-alive\r\n" : "connection: close\r\n";
  for (const auto& [name, value] : response.headers) {
    fmt::format_to(std::back_inserter(out), "{}: {}\r\n", name, value);
  }
  out += "\r\n";
}

std::shared_ptr<HttpExchangeWriter> BufferedHttpExchange::Activate() {
  if (io_active_ || !writer_) return nullptr;
  io_active_ = true;
  return writer_;
}

void BufferedHttpExchange::Respond(HttpResponse response) {
  std::shared_ptr<HttpExchangeWriter> flush;
  std::function<void()> dropped;
  {
    absl::MutexLock lock(&mutex_);
    if (state_ != State::kOpen) return;
    AppendHttpHead(pending_, response, HttpFraming::kLength, options_.keep_alive);
    if (!options_.head_only) pending_ += response.body;
    state_ = State::kEnded;
    dropped = std::move(on_gone_);
    on_gone_ = nullptr;
    flush = Activate();
  }
  if (flush) flush->PostFlush();
}

void BufferedHttpExchange::AppendChunk(std::string_view data) {
  if (options_.head_only || data.empty()) return;
  if (options_.http10) {
    pending_ += data;
    return;
  }
  fmt::format_to(std::back_inserter(pending_), "{:x}\r\n", data.size());
  pending_ += data;
  pending_ += "\r\n";
}

void BufferedHttpExchange::StartStream(HttpResponse head) {
  std::shared_ptr<HttpExchangeWriter> flush;
  {
    absl::MutexLock lock(&mutex_);
    if (state_ != State::kOpen) return;
    state_ = State::kStreaming;
    AppendHttpHead(pending_, head,
                   options_.http10 ? HttpFraming::kUntilClose : HttpFraming::kChunked,
                   options_.keep_alive);
    AppendChunk(head.body);
    flush = Activate();
  }
  if (flush) flush->PostFlush();
}

bool BufferedHttpExchange::Write(std::string_view data) {
  std::shared_ptr<HttpExchangeWriter> flush, cut;
  {
    absl::MutexLock lock(&mutex_);
    if (state_ != State::kStreaming || cut_off_) return false;
    // One event may be larger than the bound: a client that reads must not be cut off for it.
    largest_write_ = std::max(largest_write_, data.size());
    if (!pending_.empty() &&
        pending_.size() + data.size() > options_.max_buffered + largest_write_) {
      cut_off_ = true;
      cut = writer_;
    } else {
      AppendChunk(data);
      flush = Activate();
    }
  }
  if (cut) {
    cut->PostCutOff();
    return false;
  }
  if (flush) flush->PostFlush();
  return true;
}

void BufferedHttpExchange::End() {
  std::shared_ptr<HttpExchangeWriter> flush;
  std::function<void()> dropped;
  {
    absl::MutexLock lock(&mutex_);
    if (state_ != State::kStreaming) return;
    if (!options_.http10 && !options_.head_only) pending_ += "0\r\n\r\n";
    state_ = State::kEnded;
    dropped = std::move(on_gone_);
    on_gone_ = nullptr;
    flush = Activate();
  }
  if (flush) flush->PostFlush();
}

void BufferedHttpExchange::OnGone(std::function<void()> callback) {
  {
    absl::MutexLock lock(&mutex_);
    if (state_ == State::kEnded) return;
    if (state_ != State::kGone) {
      on_gone_ = std::move(callback);
      return;
    }
  }
  callback();
}

bool BufferedHttpExchange::TakePending(std::string& out) {
  absl::MutexLock lock(&mutex_);
  std::swap(out, pending_);
  if (out.empty()) io_active_ = false;
  if (state_ != State::kEnded) return false;
  writer_ = nullptr;
  return true;
}

std::function<void()> BufferedHttpExchange::MarkGone() {
  absl::MutexLock lock(&mutex_);
  writer_ = nullptr;
  pending_.clear();
  if (state_ != State::kEnded) state_ = State::kGone;
  std::function<void()> callback = std::move(on_gone_);
  on_gone_ = nullptr;
  return callback;
}

bool BufferedHttpExchange::begun() const {
  absl::MutexLock lock(&mutex_);
  return state_ != State::kOpen;
}

}  // namespace switchyard::gateway
