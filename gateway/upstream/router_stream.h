// One Router.Serve stream from its first message to its status: one read and one write in flight, a
// bounded queue of writes behind. What the messages mean is router_client's matter.
//
// Keeps itself alive until on_done has returned. Thread-safe.
#pragma once

#include <grpcpp/client_context.h>

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "switchyard/internal/v1/router.grpc.pb.h"

namespace switchyard::gateway {

class RouterStream
    : public grpc::ClientBidiReactor<internal::v1::ToRouter, internal::v1::FromRouter> {
 public:
  // Called on gRPC's threads, one at a time and without a lock held.
  struct Callbacks {
    std::function<void(const internal::v1::FromRouter&)> on_message;
    // Once, after all messages. Whoever else holds the stream lets it go in here.
    std::function<void(const absl::Status&)> on_done;
    // Last: the stream is gone, and with its context what it held of the channel.
    std::function<void()> on_gone;
  };

  // Starts the call and sends `hello`.
  static std::shared_ptr<RouterStream> Start(internal::v1::Router::Stub& stub,
                                             internal::v1::ToRouter hello, size_t max_queued,
                                             Callbacks callbacks);

  enum class Bound { kQueue, kNone };
  // RESOURCE_EXHAUSTED if max_queued messages wait (and `bound` says so), UNAVAILABLE if the stream
  // has ended: `message` is as it was then.
  absl::Status Send(internal::v1::ToRouter&& message, Bound bound);
  // Ends the stream; on_done follows.
  void Break() { context_.TryCancel(); }

 private:
  RouterStream(size_t max_queued, Callbacks callbacks)
      : max_queued_(max_queued), callbacks_(std::move(callbacks)) {}

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  const size_t max_queued_;
  Callbacks callbacks_;
  grpc::ClientContext context_;
  internal::v1::FromRouter incoming_;
  std::shared_ptr<RouterStream> self_;

  absl::Mutex mutex_;
  // The front is being written while writing_; deque: its address stays.
  std::deque<internal::v1::ToRouter> queue_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace switchyard::gateway
