// The answer to one request on its way out: any thread gives it, framed bytes wait here, and the
// connection takes them on its io thread. How much may wait for a client is bounded; nothing here
// knows sockets. Internal to the HTTP server.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "gateway/api/http_types.h"

namespace switchyard::gateway {

enum class HttpFraming { kLength, kChunked, kUntilClose };

void AppendHttpHead(std::string& out, const HttpResponse& response, HttpFraming framing,
                    bool keep_alive);

// Who writes the bytes: the connection. Called by any thread, without a lock held.
class HttpExchangeWriter {
 public:
  virtual ~HttpExchangeWriter() = default;
  virtual void PostFlush() = 0;   // something waits: TakePending is to be called
  virtual void PostCutOff() = 0;  // the client lets too much wait
};

// `io_active_` says that a flush is posted or a write is in flight, so that most writes of a burst
// post nothing.
class BufferedHttpExchange final : public HttpExchange {
 public:
  struct Options {
    size_t max_buffered = 0;  // bytes that may wait, besides one write
    bool head_only = false;
    bool http10 = false;
    bool keep_alive = false;
  };

  BufferedHttpExchange(std::shared_ptr<HttpExchangeWriter> writer, const Options& options)
      : options_(options), writer_(std::move(writer)) {}

  void Respond(HttpResponse response) override;
  void StartStream(HttpResponse head) override;
  bool Write(std::string_view data) override;
  void End() override;
  void OnGone(std::function<void()> callback) override;

  // For the writer, on its thread.
  // Fills the empty `out` with what waits; true if that was the last. An empty `out` ends the
  // activity.
  bool TakePending(std::string& out);
  // The connection is closed: nothing is sent any more. Returns the callback to call, if any.
  std::function<void()> MarkGone();
  bool begun() const;  // a first byte of the answer is there
  bool http10() const { return options_.http10; }
  bool keep_alive() const { return options_.keep_alive; }

 private:
  enum class State { kOpen, kStreaming, kEnded, kGone };

  void AppendChunk(std::string_view data) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The writer to post a flush to, if one is needed.
  std::shared_ptr<HttpExchangeWriter> Activate() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  mutable absl::Mutex mutex_;
  std::shared_ptr<HttpExchangeWriter> writer_ ABSL_GUARDED_BY(mutex_);  // null once ended or gone
  State state_ ABSL_GUARDED_BY(mutex_) = State::kOpen;
  bool io_active_ ABSL_GUARDED_BY(mutex_) = false;
  bool cut_off_ ABSL_GUARDED_BY(mutex_) = false;
  size_t largest_write_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string pending_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> on_gone_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace switchyard::gateway
