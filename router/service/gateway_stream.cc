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
// Of one message, unless a single event is larger.
constexpr size_t kMessageBytes = 1u << 20;

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
  if (message.has_cancel()) {
    const pb::CancelRequest& cancel = message.cancel();
    if (cancel.has_choice()) {
      engine_.CancelChoice(this, cancel.request(), cancel.choice());
    } else {
      engine_.Cancel(this, cancel.request());
    }
  }
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
    if (choice < submit.choices_size() && submit.choices(choice).ended()) continue;
    TokenEvent event;
    event.request = submit.request();
    event.attempt = submit.attempt();
    event.choice = choice;
    event.finish = Finish::kError;
    event.error = status;
    event.retry_after_ms = RetryAfterMs(status);
    event.elsewhere = IsForElsewhere(status);
    events.push_back(std::move(event));
  }
  OnStep(0, std::move(events));
}

void GatewayStream::OnStep(uint64_t step, std::vector<TokenEvent> events) {
  std::vector<pb::FromRouter> messages;
  size_t bytes = 0;
  for (const TokenEvent& event : events) {
    pb::Token token;
    ToProto(event, &token);
    const size_t more = token.ByteSizeLong();
    if (messages.empty() || bytes + more > kMessageBytes) {
      messages.emplace_back().mutable_step()->set_step(step);
      bytes = 0;
    }
    bytes += more;
    *messages.back().mutable_step()->add_tokens() = std::move(token);
  }
  SendAll(std::move(messages));
}

void GatewayStream::Beat() {
  {
    absl::MutexLock lock(&mutex_);
    if (queue_.size() > 1) return;
  }
  pb::FromRouter message;
  message.mutable_heartbeat();
  Send(std::move(message));
}

void GatewayStream::Send(pb::FromRouter message) {
  std::vector<pb::FromRouter> one;
  one.push_back(std::move(message));
  SendAll(std::move(one));
}

void GatewayStream::SendAll(std::vector<pb::FromRouter> messages) {
  bool slow = false;
  size_t waiting = 0;
  {
    absl::MutexLock lock(&mutex_);
    if (closed_) return;
    waiting = waiting_bytes_;
    // By what waited before, with room for a large step: none is too large by itself.
    slow = waiting > max_queued_bytes_ + largest_;
    if (slow) closed_ = true;
    size_t sum = 0;
    for (size_t i = 0; !slow && i < messages.size(); ++i) {
      const size_t bytes = messages[i].ByteSizeLong();
      sum += bytes;
      queue_.push_back({std::move(messages[i]), bytes});
      if (std::exchange(writing_, true)) {
        waiting_bytes_ += bytes;
      } else {
        StartWrite(&queue_.front().message);
      }
    }
    largest_ = std::max(largest_, sum);
  }
  if (!slow) return;
  log::Warning("gateway {} does not read: {} bytes wait for it; its stream ends", context_->peer(),
               waiting);
  owner_.OnSlow();
  // Its read fails by that, and OnReadDone cancels its requests (this may be the engine's thread).
  context_->TryCancel();
}

void GatewayStream::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mutex_);
  queue_.pop_front();
  if (!ok) {
    closed_ = true;
    queue_.clear();
    waiting_bytes_ = 0;
  }
  writing_ = !queue_.empty() && !ending_;
  if (writing_) {
    waiting_bytes_ -= queue_.front().bytes;
    return StartWrite(&queue_.front().message);
  }
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
  std::shared_ptr<GatewayStream> alive;
  {
    // The other reactions are over, which a race detector sees by this.
    absl::MutexLock lock(&mutex_);
    alive = std::move(self_);
  }
  // The engine keeps no more of this stream, also where it was ended from our side.
  engine_.CancelAll(this);
  owner_.OnGone(this);
}

}  // namespace switchyard::router
