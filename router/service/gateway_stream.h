// The router's end of one gateway's stream. Requests go to the engine, the events of a step come
// back in messages of about a MiB at most. One read and one write are in flight; where more than
// max_queued_bytes wait behind the write when a step ends, the gateway does not read: it loses its
// stream and its requests, not the router its memory.
//
// Keeps itself alive until its last callback and the last of its requests are gone. Thread-safe.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "router/loop/engine.h"
#include "switchyard/internal/v1/router.pb.h"

namespace switchyard::router {

class GatewayStream
    : public grpc::ServerBidiReactor<internal::v1::ToRouter, internal::v1::FromRouter>,
      public TokenSink,
      public std::enable_shared_from_this<GatewayStream> {
 public:
  // What the stream asks of its service; called without a lock held.
  class Owner {
   public:
    virtual ~Owner() = default;
    // OK, or why this gateway is refused. If OK, the stream gets `greetings` first.
    virtual absl::Status OnHello(const internal::v1::GatewayHello& hello,
                                 GatewayStream* stream) = 0;
    virtual void OnRefused(const absl::Status& why) = 0;  // a request
    virtual void OnSlow() = 0;                            // this stream, which now ends
    virtual void OnGone(GatewayStream* stream) = 0;
  };

  static std::shared_ptr<GatewayStream> Start(grpc::CallbackServerContext* context, Engine& engine,
                                              Owner& owner, size_t max_queued_bytes);

  // Queues a message; dropped if the stream ends.
  void Send(internal::v1::FromRouter message);
  // A message where none waits to be sent, so that the gateway hears of us.
  void Beat();
  // Ends the stream, and cancels its requests, for this reason.
  void End(const absl::Status& status);
  // Ends the stream with OK once everything queued is written.
  void EndWhenWritten();

  void OnStep(uint64_t step, std::vector<TokenEvent> events) override;

 private:
  GatewayStream(grpc::CallbackServerContext* context, Engine& engine, Owner& owner,
                size_t max_queued_bytes)
      : context_(context), engine_(engine), owner_(owner), max_queued_bytes_(max_queued_bytes) {}

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone() override;

  absl::Status Handle(const internal::v1::ToRouter& message);
  void Submit(const internal::v1::Submit& submit);
  void SendAll(std::vector<internal::v1::FromRouter> messages);
  // Finishes the call when it is to end and nothing is being written any more.
  void FinishIfIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  grpc::CallbackServerContext* const context_;
  Engine& engine_;
  Owner& owner_;
  const size_t max_queued_bytes_;
  std::shared_ptr<GatewayStream> self_;
  internal::v1::ToRouter incoming_;
  bool greeted_ = false;  // by reads only

  absl::Mutex mutex_;
  struct Outgoing {
    internal::v1::FromRouter message;
    size_t bytes = 0;
  };
  std::deque<Outgoing> queue_ ABSL_GUARDED_BY(mutex_);  // the front is being written while writing_
  size_t waiting_bytes_ ABSL_GUARDED_BY(mutex_) = 0;    // of queue_ behind that
  size_t largest_ ABSL_GUARDED_BY(mutex_) = 0;          // bytes of one step so far
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;  // nothing more is queued
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;  // finish as soon as the write is done
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace switchyard::router
