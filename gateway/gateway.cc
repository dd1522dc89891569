#include "gateway/gateway.h"

#include <grpcpp/server_builder.h>

#include <algorithm>
#include <set>

#include "absl/strings/str_join.h"
#include "gateway/streams/request_id.h"
#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/status.h"

namespace switchyard::gateway {

// A drain whose time is over still gives what it ended this long to tell its clients.
constexpr absl::Duration kLastAnswersMin = absl::Milliseconds(200);
// Calls that one gRPC connection may have open; more of them wait in the client.
constexpr int kGrpcStreamsMax = 1024;

void ApplyKnobs(const config::v1::FrontKnobs& front, const config::v1::TlsKnobs& tls,
                GatewayOptions* options) {
  options->served_model_name = front.served_model_name();
  options->http.address = front.http();
  options->grpc_address = front.grpc();
  options->api_key_file = front.api_key_file();
  options->tls = {.cert = tls.tls_cert(), .key = tls.tls_key(), .ca = tls.tls_ca()};
}

absl::StatusOr<GatewayFiles> GatewayFiles::Load(const GatewayOptions& options) {
  GatewayFiles files;
  if (!options.api_key_file.empty()) {
    auto keys = security::KeySet::Load(options.api_key_file);
    if (!keys.ok()) return Annotate(keys.status(), "--api-key-file");
    files.keys = *std::move(keys);
  }
  SY_ASSIGN_OR_RETURN(files.model, ServedModel::Load(options.model_dir, options.served_model_name));
  return files;
}

absl::StatusOr<std::unique_ptr<Gateway>> Gateway::Create(
    const GatewayOptions& options, GatewayFiles files, const RouterClient::ChannelFactory& channels,
    std::shared_ptr<telemetry::Metrics> metrics) {
  std::unique_ptr<Gateway> gateway(new Gateway);
  gateway->files_ = std::move(files);
  gateway->registry_ = std::move(metrics);
  gateway->metrics_ = std::make_unique<GatewayMetrics>(gateway->registry_);
  SY_RETURN_IF_ERROR(gateway->StartRouters(options, channels));
  SY_RETURN_IF_ERROR(gateway->StartListeners(options));
  gateway->StartCollector();
  {
    absl::MutexLock lock(&gateway->mutex_);
    gateway->running_ = true;
  }
  gateway->UpdateHealth();
  return gateway;
}

absl::Status Gateway::StartRouters(const GatewayOptions& options,
                                   const RouterClient::ChannelFactory& channels) {
  if (options.routers.empty() && !options.follow_routers)
    return UsageError("--routers: at least one address is needed");
  const std::set<std::string> different(options.routers.begin(), options.routers.end());
  if (different.size() != options.routers.size()) {
    return UsageError("--routers names an address twice: {}", absl::StrJoin(options.routers, ","));
  }
  RouterClientOptions client;
  client.gateway_id = MakeRequestId();
  client.text_fingerprint = files_.model->text_fingerprint();
  client.addresses = options.routers;
  client.log_states = options.log_routers;
  client.router_silence_max = options.router_silence_max;
  client.router_wait = options.router_wait;
  client.allow_mixed_numerics = options.allow_mixed_numerics;
  routers_ = std::make_unique<RouterClient>(client, channels, [this] { UpdateHealth(); });
  generator_ =
      std::make_unique<Generator>(*files_.model, *routers_, metrics_.get(),
                                  GenerationOptions{.resume_attempts = options.resume_attempts,
                                                    .router_wait = options.router_wait});
  return absl::OkStatus();
}

absl::Status Gateway::StartListeners(const GatewayOptions& options) {
  tls_ = !options.tls.empty();
  const security::KeySet* keys = files_.keys.has_value() ? &*files_.keys : nullptr;
  if (!options.grpc_address.empty()) {
    inference_ = std::make_unique<InferenceService>(*generator_, *metrics_,
                                                    InferenceServiceOptions{.keys = keys});
    admin_ = std::make_unique<AdminService>(*routers_, *metrics_, keys);
    rpc::ServerOptions server;
    server.listen = options.grpc_address;
    server.flag = "--grpc";
    server.tls = options.tls;
    server.keyless = keys == nullptr;
    server.metrics = registry_.get();
    server.service = kGatewayService;
    server.receive_bytes_max = static_cast<int>(options.http.limits.body_bytes);
    server.memory_bytes_max = options.http.max_body_bytes_in_all;
    server.streams_max = kGrpcStreamsMax;
    SY_ASSIGN_OR_RETURN(auto grpc, rpc::Server::Start(server, [this](grpc::ServerBuilder& builder) {
                          builder.RegisterService(inference_.get());
                          builder.RegisterService(admin_.get());
                        }));
    absl::MutexLock lock(&mutex_);
    grpc_ = std::move(grpc);
  }
  if (!options.http.address.empty()) {
    OpenAiHttpOptions api;
    api.keys = keys;
    const absl::Duration limit = options.http.exchange_timeout;
    api.request_timeout = limit - std::min(absl::Seconds(1), limit / 10);
    api.missing = [this] { return Missing(); };
    openai_ = std::make_unique<OpenAiHttp>(*generator_, *routers_, *metrics_, std::move(api));
    HttpServerOptions http = options.http;
    http.tls_cert = options.tls.cert;
    http.tls_key = options.tls.key;
    http.tls_ca = options.tls.ca;
    SY_ASSIGN_OR_RETURN(http_, HttpServer::Create(http, *openai_));
    security::WarnIfExposed(http_->address(), options.tls, keys == nullptr);
  }
  return absl::OkStatus();
}

void Gateway::StartCollector() {
  collector_ = registry_->AddCollector(kGatewayService, [this](telemetry::Samples& samples) {
    samples.Gauge(telemetry::kReady, Missing().empty() ? 1 : 0);
    samples.Gauge(telemetry::kGatewayOpenRequests, generator_->open());
    if (http_) {
      const HttpServerStats& stats = http_->stats();
      samples.Gauge(telemetry::kGatewayConnections, static_cast<double>(stats.open_connections));
      samples.Counter(telemetry::kGatewayHttpBytes, static_cast<double>(stats.bytes_in),
                      {{"direction", "in"}});
      samples.Counter(telemetry::kGatewayHttpBytes, static_cast<double>(stats.bytes_out),
                      {{"direction", "out"}});
      samples.Counter(telemetry::kGatewayRefusedConnections,
                      static_cast<double>(stats.connections_refused));
      samples.Counter(telemetry::kGatewayCutOff, static_cast<double>(stats.clients_cut_off));
    }
    for (const RouterView& router : routers_->state().routers) {
      samples.Gauge(telemetry::kGatewayRouterReady, router.ready ? 1 : 0,
                    {{"router", router.address}});
    }
  });
}

Gateway::~Gateway() { Stop(); }

std::string Gateway::http_address() const { return http_ ? http_->address() : std::string(); }

std::string Gateway::http_url() const {
  if (!http_) return {};
  const std::string& address = http_->address();
  if (address.rfind("unix:", 0) == 0) return address;
  return (tls_ ? "https://" : "http://") + address;
}

std::string Gateway::grpc_address() const {
  absl::MutexLock lock(&mutex_);
  return grpc_ ? grpc_->address() : std::string();
}

std::string Gateway::Missing() const {
  if (generator_ && generator_->draining()) return "the gateway is shutting down";
  const RoutersState state = routers_->state();
  if (state.ready) return {};
  return state.missing.empty() ? "no router is ready" : state.missing;
}

int Gateway::ready_routers() const {
  const std::vector<RouterView> routers = routers_->state().routers;
  return static_cast<int>(std::count_if(routers.begin(), routers.end(),
                                        [](const RouterView& router) { return router.ready; }));
}

void Gateway::UpdateHealth() {
  absl::MutexLock lock(&mutex_);
  if (running_ && grpc_) grpc_->SetReady(Missing().empty());
}

void Gateway::Drain(absl::Duration timeout) {
  generator_->BeginDrain();
  UpdateHealth();
  if (http_) http_->BeginDrain();
  log::Info("draining, for up to {}; open requests: {}", absl::FormatDuration(timeout),
            generator_->open());
  const absl::Time deadline = SteadyNow() + timeout;
  if (const int cut_off = generator_->FinishWithin(timeout); cut_off > 0) {
    log::Warning("requests cut off at the end of the drain: {} (--drain-timeout {})", cut_off,
                 absl::FormatDuration(timeout));
  }
  // Answers that are complete still have to reach clients that read slowly.
  const auto left = [deadline] { return std::max(deadline - SteadyNow(), kLastAnswersMin); };
  if (http_ && !http_->WaitUntilAnswered(left())) {
    log::Warning("draining: not every HTTP answer was taken in time");
  }
  rpc::Server* grpc = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    grpc = grpc_.get();
  }
  if (grpc != nullptr) grpc->Shutdown(left());
  Stop();
}

void Gateway::Stop() {
  rpc::Server* grpc = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    running_ = false;
    grpc = grpc_.get();
  }
  collector_ = {};
  if (http_) http_->Stop();
  // Not under the lock: it waits for calls, and they for routers whose news ask for the lock.
  if (grpc != nullptr) grpc->Shutdown(absl::ZeroDuration());
  // Embedded, the routers' server goes next, and gRPC crashes on a stream that is begun on an
  // in-process channel after that.
  if (routers_) routers_->Stop();
}

}  // namespace switchyard::gateway
