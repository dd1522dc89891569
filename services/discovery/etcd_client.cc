#include "services/discovery/etcd_client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/support/channel_arguments.h>

#include <chrono>
#include <utility>

#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/status.h"
#include "services/config/units.h"
#include "services/rpc/channel.h"
#include "services/rpc/status_map.h"

namespace switchyard::discovery {
namespace {

constexpr std::string_view kHttp = "http://", kHttps = "https://";

struct Url {
  std::string address;
  bool tls = false;
};

absl::StatusOr<Url> ParseUrl(const std::string& text) {
  Url url;
  if (text.rfind(kHttps, 0) == 0) {
    url = {text.substr(kHttps.size()), true};
  } else if (text.rfind(kHttp, 0) == 0) {
    url = {text.substr(kHttp.size()), false};
  } else {
    return UsageError("--etcd: \"{}\" begins with neither http:// nor https://", text);
  }
  if (!url.address.empty() && url.address.back() == '/') url.address.pop_back();
  if (url.address.rfind("unix:", 0) == 0 || !config::CheckAddress(url.address).ok()) {
    return UsageError("--etcd: \"{}\"; give http://HOST:PORT or https://HOST:PORT", text);
  }
  return url;
}

std::shared_ptr<grpc::Channel> ChannelTo(const Url& url,
                                         std::shared_ptr<grpc::ChannelCredentials> credentials) {
  grpc::ChannelArguments arguments = rpc::DefaultChannelArguments();
  // etcd takes pings of a connection without calls for an attack.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  return grpc::CreateCustomChannel(url.address, credentials, arguments);
}

// Until the channel is connected, an attempt to connect it has failed, or `timeout` is over. A call
// that fails at once instead leaves an attempt behind that nobody polls, and that ends by its own
// timeout: with calls that come now and then no connection would ever come about.
void Await(grpc::Channel& channel, absl::Duration timeout, const Stopper& stopper) {
  constexpr absl::Duration kSlice = absl::Milliseconds(100);  // to see that we shall stop
  bool tried = false;
  grpc_connectivity_state state = channel.GetState(true);
  for (absl::Duration waited; waited < timeout && !stopper.stopped();) {
    if (state == GRPC_CHANNEL_READY || (tried && state == GRPC_CHANNEL_TRANSIENT_FAILURE)) return;
    tried = tried || state == GRPC_CHANNEL_CONNECTING;
    if (!channel.WaitForStateChange(
            state, std::chrono::system_clock::now() + absl::ToChronoMicroseconds(kSlice))) {
      waited += kSlice;
    }
    state = channel.GetState(true);
  }
}

// Where another server may know better.
bool IsOfServer(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

}  // namespace

std::string PrefixEnd(std::string prefix) {
  while (!prefix.empty() && static_cast<unsigned char>(prefix.back()) == 0xff) prefix.pop_back();
  if (prefix.empty()) return std::string(1, '\0');  // all keys
  ++prefix.back();
  return prefix;
}

absl::StatusOr<std::shared_ptr<EtcdClient>> EtcdClient::Create(EtcdOptions options) {
  if (options.urls.empty()) return UsageError("--etcd: no address");
  while (!options.prefix.empty() && options.prefix.back() == '/') options.prefix.pop_back();
  std::vector<Server> servers;
  for (const std::string& text : options.urls) {
    SY_ASSIGN_OR_RETURN(const Url url, ParseUrl(text));
    if (!url.tls && !options.tls.empty()) {
      return UsageError("{}-* are given, but \"{}\" is not https://", options.tls.flags, text);
    }
    std::shared_ptr<grpc::ChannelCredentials> credentials;
    if (url.tls && options.tls.empty()) {
      credentials = grpc::SslCredentials({});  // the system's certificates
    } else {
      SY_ASSIGN_OR_RETURN(credentials, security::ClientCredentials(options.tls));
    }
    const auto channel = ChannelTo(url, std::move(credentials));
    servers.push_back({.url = text,
                       .channel = channel,
                       .kv = etcd::KV::NewStub(channel),
                       .watch = etcd::Watch::NewStub(channel),
                       .lease = etcd::Lease::NewStub(channel)});
  }
  auto client = std::shared_ptr<EtcdClient>(new EtcdClient(std::move(options)));
  client->servers_ = std::move(servers);
  absl::MutexLock lock(&client->mutex_);
  client->contact_ = SteadyNow();
  return client;
}

absl::StatusOr<std::shared_ptr<EtcdClient>> EtcdClient::Create(const config::v1::EtcdKnobs& knobs) {
  if (knobs.etcd().empty()) return nullptr;
  return Create(EtcdOptions{.urls = {knobs.etcd().begin(), knobs.etcd().end()},
                            .prefix = knobs.etcd_prefix(),
                            .tls = {.cert = knobs.etcd_cert(),
                                    .key = knobs.etcd_key(),
                                    .ca = knobs.etcd_ca(),
                                    .flags = "--etcd"}});
}

std::string EtcdClient::Key(std::string_view name) const {
  return fmt::format("{}/{}", options_.prefix, name);
}

template <typename Call>
absl::Status EtcdClient::Try(std::string_view what, Stopper& stopper, const Call& call) {
  absl::Status status;
  for (size_t i = 0; i < servers_.size(); ++i) {
    const Server& server = this->server();
    Await(*server.channel, options_.timeout, stopper);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         absl::ToChronoMicroseconds(options_.timeout));
    {
      const Stopper::Call scope(stopper, context);
      status = rpc::FromGrpc(call(server, context));
    }
    if (stopper.stopped()) return Cancelled("etcd {}: stopped", what);
    if (status.ok()) {
      OnContact();
      return status;
    }
    status = Annotate(status, fmt::format("etcd {}: {}", server.url, what));
    OnFailure(server, status);
    if (!IsOfServer(status)) return status;
  }
  return status;
}

// Each call by its own name.
#define SY_ETCD_CALL(Name, service, Method, Message)                                              \
  absl::StatusOr<etcd::Message##Response> EtcdClient::Name(const etcd::Message##Request& request, \
                                                           Stopper& stopper) {                    \
    etcd::Message##Response response;                                                             \
    SY_RETURN_IF_ERROR(Try(#Method, stopper, [&](const Server& s, grpc::ClientContext& c) {       \
      return s.service->Method(&c, request, &response);                                           \
    }));                                                                                          \
    return response;                                                                              \
  }
SY_ETCD_CALL(Range, kv, Range, Range)
SY_ETCD_CALL(Put, kv, Put, Put)
SY_ETCD_CALL(Txn, kv, Txn, Txn)
SY_ETCD_CALL(Grant, lease, LeaseGrant, LeaseGrant)
SY_ETCD_CALL(Revoke, lease, LeaseRevoke, LeaseRevoke)
#undef SY_ETCD_CALL

absl::StatusOr<etcd::LeaseKeepAliveResponse> EtcdClient::KeepAlive(int64_t lease,
                                                                   Stopper& stopper) {
  etcd::LeaseKeepAliveResponse response;
  // A stream of one beat: with a beat every few seconds it is not worth keeping one open.
  SY_RETURN_IF_ERROR(Try("LeaseKeepAlive", stopper, [&](const Server& s, grpc::ClientContext& c) {
    const auto stream = s.lease->LeaseKeepAlive(&c);
    etcd::LeaseKeepAliveRequest request;
    request.set_id(lease);
    const bool answered = stream->Write(request) && stream->Read(&response);
    stream->WritesDone();
    const grpc::Status status = stream->Finish();
    if (answered) return grpc::Status::OK;
    return status.ok() ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "no answer") : status;
  }));
  if (response.ttl() <= 0) return NotFound("etcd: lease {:x} has run out", lease);
  return response;
}

void EtcdClient::OnFailure(const Server& server, const absl::Status& why) {
  const size_t current = current_.load();
  if (IsOfServer(why) && &servers_[current % servers_.size()] == &server) {
    current_.store(current + 1);
  }
  absl::MutexLock lock(&mutex_);
  ++errors_;
  status_ = why;
  if (!IsOfServer(why) || std::exchange(lost_, true)) return;
  log::Warning("{}; what was last known stays in force", ToStd(why.message()));
}

void EtcdClient::OnContact() {
  absl::MutexLock lock(&mutex_);
  contact_ = SteadyNow();
  status_ = absl::OkStatus();
  if (std::exchange(lost_, false)) log::Info("etcd answers again");
}

void EtcdClient::OnStream(int change) {
  absl::MutexLock lock(&mutex_);
  streams_ += change;
  contact_ = SteadyNow();
}

EtcdHealth EtcdClient::health() const {
  absl::MutexLock lock(&mutex_);
  return {.status = status_,
          .silent_for = streams_ > 0 ? absl::ZeroDuration() : SteadyNow() - contact_,
          .errors = errors_};
}

void EtcdClient::CollectTo(telemetry::Samples& samples) const {
  const EtcdHealth now = health();
  samples.Gauge(telemetry::kEtcdSilentSeconds, absl::ToDoubleSeconds(now.silent_for));
  samples.Counter(telemetry::kEtcdErrors, static_cast<double>(now.errors));
}

}  // namespace switchyard::discovery
