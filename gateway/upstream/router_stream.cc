#include "gateway/upstream/router_stream.h"

#include <utility>

#include "services/base/status.h"
#include "services/rpc/status_map.h"

namespace switchyard::gateway {

std::shared_ptr<RouterStream> RouterStream::Start(internal::v1::Router::Stub& stub,
                                                  internal::v1::ToRouter hello, size_t max_queued,
                                                  Callbacks callbacks) {
  std::shared_ptr<RouterStream> stream(new RouterStream(max_queued, std::move(callbacks)));
  stream->self_ = stream;
  stub.async()->Serve(&stream->context_, stream.get());
  // For the writes from outside of the reactions; removed when reading ends.
  stream->AddHold();
  stream->StartRead(&stream->incoming_);
  {
    absl::MutexLock lock(&stream->mutex_);
    stream->queue_.push_back(std::move(hello));
    stream->writing_ = true;
    stream->StartWrite(&stream->queue_.front());
  }
  stream->StartCall();
  return stream;
}

absl::Status RouterStream::Send(internal::v1::ToRouter&& message, Bound bound) {
  absl::MutexLock lock(&mutex_);
  if (closed_) return Unavailable("the stream to the router has ended");
  if (bound == Bound::kQueue && queue_.size() >= max_queued_) {
    return ResourceExhausted("the router does not read: {} messages wait for it", queue_.size());
  }
  queue_.push_back(std::move(message));
  if (!std::exchange(writing_, true)) StartWrite(&queue_.front());
  return absl::OkStatus();
}

void RouterStream::OnReadDone(bool ok) {
  if (ok) {
    callbacks_.on_message(incoming_);
    StartRead(&incoming_);
    return;
  }
  {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }
  RemoveHold();
}

void RouterStream::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mutex_);
  queue_.pop_front();
  if (!ok) closed_ = true;
  if (closed_ || queue_.empty()) {
    writing_ = false;
    return;
  }
  StartWrite(&queue_.front());
}

void RouterStream::OnDone(const grpc::Status& status) {
  const Callbacks callbacks = std::move(callbacks_);
  callbacks.on_done(rpc::FromGrpc(status));
  std::shared_ptr<RouterStream> self = std::move(self_);
  self = nullptr;  // *this is gone
  callbacks.on_gone();
}

}  // namespace switchyard::gateway
