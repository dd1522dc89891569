#include "router/service/router_service.h"

#include <utility>

#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/status.h"

namespace switchyard::router {
namespace {

namespace pb = internal::v1;

constexpr uint32_t kProtocolVersion = 1;

}  // namespace

RouterService::RouterService(RouterServiceOptions options, Engine& engine, Hooks hooks)
    : options_([&] {
        options.hello.set_protocol_version(kProtocolVersion);
        options.hello.set_heartbeat_ms(static_cast<int>(absl::ToInt64Milliseconds(kHeartbeat)));
        return std::move(options);
      }()),
      engine_(engine),
      hooks_(std::move(hooks)) {
  absl::MutexLock lock(&mutex_);
  state_.set_missing("starting");
  numerics_id_ = options_.hello.numerics_id();
}

grpc::ServerBidiReactor<pb::ToRouter, pb::FromRouter>* RouterService::Serve(
    grpc::CallbackServerContext* context) {
  GatewayStream* stream =
      GatewayStream::Start(context, engine_, *this, options_.max_queued_bytes).get();
  // None of its callbacks comes before it is returned.
  absl::MutexLock lock(&mutex_);
  if (static_cast<int>(silent_.size()) >= options_.max_gateways) {
    stream->End(ResourceExhausted("{} streams are open without a hello", silent_.size()));
  } else {
    silent_.emplace(stream, SteadyNow() + options_.hello_timeout);
  }
  return stream;
}

void RouterService::Tick(absl::Time now) {
  absl::MutexLock lock(&mutex_);
  for (const auto& [stream, until] : silent_) {
    if (now < until) continue;
    stream->End(
        DeadlineExceeded("no hello within {}", absl::FormatDuration(options_.hello_timeout)));
  }
  std::erase_if(silent_, [&](const auto& entry) { return now >= entry.second; });
  if (!EngineMoves(now)) return;
  // Also where the clock was set back.
  if (now < next_beat_ && next_beat_ - now < kHeartbeat) return;
  next_beat_ = now + kHeartbeat * 0.75;
  for (GatewayStream* stream : streams_) stream->Beat();
}

bool RouterService::EngineMoves(absl::Time now) {
  const EnginePulse pulse = engine_.Pulse();
  if (pulse.asleep || moved_ == absl::InfinitePast() || pulse.progress != progress_) {
    progress_ = pulse.progress;
    moved_ = now;
  }
  const bool hangs = now - moved_ >= kEnginePatience;
  if (std::exchange(hangs_, hangs) != hangs) {
    log::Error("the engine {}", hangs ? fmt::format("has done nothing for {}: gateways are told "
                                                    "nothing either, and go elsewhere",
                                                    absl::FormatDuration(kEnginePatience))
                                      : "goes on");
  }
  return !hangs;
}

void RouterService::SetNumericsId(const std::string& id) {
  absl::MutexLock lock(&mutex_);
  if (numerics_id_ == id) return;
  numerics_id_ = id;
  for (GatewayStream* stream : streams_) stream->Send(HelloMessage());
}

pb::FromRouter RouterService::HelloMessage() const {
  pb::FromRouter message;
  *message.mutable_hello() = options_.hello;
  message.mutable_hello()->set_numerics_id(numerics_id_);
  return message;
}

absl::Status RouterService::OnHello(const pb::GatewayHello& hello, GatewayStream* stream) {
  {
    absl::MutexLock lock(&mutex_);
    silent_.erase(stream);
  }
  if (hello.protocol_version() != kProtocolVersion) {
    return FailedPrecondition("router {} speaks protocol version {}, gateway {} version {}",
                              options_.hello.router_id(), kProtocolVersion, hello.gateway_id(),
                              hello.protocol_version());
  }
  if (hello.text_fingerprint() != options_.hello.text_fingerprint()) {
    // It comes again within a second.
    if (refusals_.Passes(hello.gateway_id(), hello.text_fingerprint(), SteadyNow())) {
      log::Warning("gateway {} is refused: its text fingerprint is {}, not {}", hello.gateway_id(),
                   hello.text_fingerprint(), options_.hello.text_fingerprint());
    }
    return FailedPrecondition(
        "config or tokenizer differ: text fingerprint {} of router {}, {} of gateway {}",
        options_.hello.text_fingerprint(), options_.hello.router_id(), hello.text_fingerprint(),
        hello.gateway_id());
  }
  absl::MutexLock lock(&mutex_);
  if (static_cast<int>(streams_.size()) >= options_.max_gateways) {
    return ResourceExhausted("router {} serves {} gateways already", options_.hello.router_id(),
                             streams_.size());
  }
  // Under the lock, so that no change of state overtakes them.
  stream->Send(HelloMessage());
  pb::FromRouter message;
  *message.mutable_state() = state_;
  stream->Send(std::move(message));
  streams_.insert(stream);
  log::Info("gateway {} is connected", hello.gateway_id());
  return absl::OkStatus();
}

void RouterService::OnRefused(const absl::Status& why) {
  if (hooks_.on_refused) hooks_.on_refused(why);
}

void RouterService::OnSlow() {
  if (hooks_.on_slow) hooks_.on_slow();
}

void RouterService::OnGone(GatewayStream* stream) {
  absl::MutexLock lock(&mutex_);
  streams_.erase(stream);
  silent_.erase(stream);
}

void RouterService::SetState(bool ready, const std::string& missing, bool draining) {
  absl::MutexLock lock(&mutex_);
  if (state_.ready() == ready && state_.missing() == missing && state_.draining() == draining) {
    return;
  }
  state_.set_ready(ready);
  state_.set_missing(missing);
  state_.set_draining(draining);
  for (GatewayStream* stream : streams_) {
    pb::FromRouter message;
    *message.mutable_state() = state_;
    stream->Send(std::move(message));
  }
}

void RouterService::EndStreams() {
  absl::MutexLock lock(&mutex_);
  for (GatewayStream* stream : streams_) stream->EndWhenWritten();
}

int RouterService::streams() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(streams_.size());
}

grpc::ServerUnaryReactor* RouterService::DescribeExperts(grpc::CallbackServerContext* context,
                                                         const pb::DescribeExpertsRequest*,
                                                         v1::RouterExperts* response) {
  response->set_router_id(options_.hello.router_id());
  if (hooks_.describe) hooks_.describe(response);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace switchyard::router
