#include "router/service/gateway_stream.h"

#include <algorithm>
#include <utility>

#include "router/service/convert.h"
#include "services/base/logging.h"
#include "services/base/status.h"
#include "services/rpc/status_map.h"

namespace switchyard::router {
namespace {

namespace pb = internal::v1;

// A refusal answers each choice; no engine takes a request of more.
constexpr int kRefusedChoicesMax = 1024;

}  // namespace

std::shared_ptr<GatewayStream> GatewayStream::Start(grpc::CallbackServerContext* context,
                                                    Engine& engine, Owner& owner,
                                                    size_t max_queued_bytes) {
  std::shared_ptr<GatewayStream> stream(
      new GatewayStream(context, engine, owner, max_queued_bytes));
  stream->self_ = stream;
  stream->StartRead(&stream->incoming_);
  return stream;
}

void GatewayStream::OnReadDone(bool ok) {
  if (!ok) return End(absl::OkStatus());
  const absl::Status handled = Handle(incoming_);
  if (!handled.ok()) return End(handled);
  incoming_.Clear();
  StartRead(&incoming_);
}

absl::Status GatewayStream::Handle(const pb::ToRouter& message) {
  if (message.has_hello() == greeted_) {
    return InvalidArgument("the first message of a stream, and no other, is a hello");
  }
  if (message.has_hello()) {
    greeted_ = true;
    return owner_.OnHello(message.hello(), this);
  }
  if (message.has_submit()) Submit(message.submit());
  if (message.has_cancel()) engine_.Cancel(this, message.cancel().request());
  // Kinds of a newer version are skipped.
  return absl::OkStatus();
}

void GatewayStream::Submit(const pb::Submit& submit) {
  EngineRequest request = FromProto(submit);
  request.sink = shared_from_this();
  const int choices = std::min(request.n, kRefusedChoicesMax);
  const absl::Status status = engine_.Submit(std::move(request));
  if (status.ok()) return;
  owner_.OnRefused(status);
  std::vector<TokenEvent> events;
  for (int choice = 0; choice < choices; ++choice) {
    TokenEvent event;
    event.request = submit.request();
    event.attempt = submit.attempt();
    event.choice = choice;
    event.finish = Finish::kError;
    event.error = status;
    event.retry_after_ms = RetryAfterMs(status);
    events.push_back(std::move(event));
  }
  OnStep(0, std::move(events));
}

void GatewayStream::OnStep(uint64_t step, std::vector<TokenEvent> events) {
  pb::FromRouter message;
  pb::Step& out = *message.mutable_step();
  out.set_step(step);
  out.mutable_tokens()->Reserve(static_cast<int>(events.size()));
  for (const TokenEvent& event : events) ToProto(event, out.add_tokens());
  Send(std::move(message));
}

void GatewayStream::Send(pb::FromRouter message) {
  const size_t bytes = message.ByteSizeLong();
  bool slow = false;
  {
    absl::MutexLock lock(&mutex_);
    if (closed_) return;
    slow = writing_ && queued_bytes_ + bytes > max_queued_bytes_;
    if (slow) {
      closed_ = true;
    } else {
      queue_.push_back({std::move(message), bytes});
      queued_bytes_ += bytes;
      if (!std::exchange(writing_, true)) StartWrite(&queue_.front().message);
    }
  }
  if (!slow) return;
  log::Warning("gateway {} does not read: {} bytes wait for it; its stream ends", context_->peer(),
               max_queued_bytes_);
  owner_.OnSlow();
  // Its read fails by that, and OnReadDone cancels its requests (this may be the engine's thread).
  context_->TryCancel();
}

void GatewayStream::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mutex_);
  queued_bytes_ -= queue_.front().bytes;
  queue_.pop_front();
  if (!ok) {
    closed_ = true;
    queue_.clear();
    queued_bytes_ = 0;
  }
  writing_ = !queue_.empty() && !ending_;
  if (writing_) return StartWrite(&queue_.front().message);
  if (closed_ && ok) ending_ = true;  // of EndWhenWritten, or a slow stream that woke up
  FinishIfIdle();
}

void GatewayStream::EndWhenWritten() {
  absl::MutexLock lock(&mutex_);
  closed_ = true;
  if (!writing_) ending_ = true;
  FinishIfIdle();
}

void GatewayStream::End(const absl::Status& status) {
  engine_.CancelAll(this);
  absl::MutexLock lock(&mutex_);
  closed_ = true;
  if (!ending_) status_ = status;
  ending_ = true;
  FinishIfIdle();
}

void GatewayStream::FinishIfIdle() {
  if (!ending_ || writing_ || std::exchange(finished_, true)) return;
  Finish(rpc::ToGrpc(status_));
}

void GatewayStream::OnDone() {
  const std::shared_ptr<GatewayStream> alive = std::move(self_);
  // The engine keeps no more of this stream, also where it was ended from our side.
  engine_.CancelAll(this);
  owner_.OnGone(this);
}

}  // namespace switchyard::router
