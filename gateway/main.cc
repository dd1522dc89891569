// switchyard-gateway: text in front, routers behind.
#include <map>

#include "gateway/announce.h"
#include "gateway/gateway.h"
#include "services/base/logging.h"
#include "services/base/status.h"
#include "services/config/build_info.h"
#include "services/config/load.h"
#include "services/config/units.h"
#include "services/rpc/channel.h"
#include "services/rpc/server.h"
#include "services/rpc/shutdown_signal.h"
#include "switchyard/config/v1/gateway.pb.h"

namespace switchyard::gateway {
namespace {

const config::Program kProgram = {
    .name = "switchyard-gateway",
    .description = "Serves OpenAI's HTTP API and gRPC for a model whose routers run elsewhere.",
    .examples = {"switchyard-gateway --model models/tiny-r1 --routers 127.0.0.1:8100",
                 "switchyard-gateway --model DIR --routers r0:8100,r1:8100 --http 0.0.0.0:8000 "
                 "--tls-cert cert.pem --tls-key key.pem --api-key-file keys"},
    .positional = ""};

absl::StatusOr<GatewayOptions> OptionsFrom(const config::v1::GatewayConfig& config) {
  GatewayOptions options;
  options.model_dir = config.model().model();
  options.routers.assign(config.routers().begin(), config.routers().end());
  ApplyKnobs(config.front(), config.tls(), &options);
  const config::v1::RouterLossKnobs& loss = config.router_loss();
  SY_ASSIGN_OR_RETURN(options.router_silence_max, config::ParseDuration(loss.router_timeout()));
  SY_ASSIGN_OR_RETURN(options.router_wait, config::ParseDuration(loss.router_wait()));
  options.resume_attempts = loss.resume_attempts();
  options.allow_mixed_numerics = loss.allow_mixed_numerics();
  return options;
}

// Channels to the routers, all made before the client asks for them: a bad file is an error here.
absl::StatusOr<std::map<std::string, std::shared_ptr<grpc::Channel>>> ChannelsOf(
    const config::v1::GatewayConfig& config) {
  const security::TlsFiles tls = {.cert = config.upstream_tls().router_tls_cert(),
                                  .key = config.upstream_tls().router_tls_key(),
                                  .ca = config.upstream_tls().router_tls_ca(),
                                  .flags = "--router-tls"};
  std::map<std::string, std::shared_ptr<grpc::Channel>> channels;
  for (const std::string& address : config.routers()) {
    SY_ASSIGN_OR_RETURN(channels[address], rpc::Connect(address, tls));
  }
  return channels;
}

absl::Status Run(const config::v1::GatewayConfig& config) {
  SY_RETURN_IF_ERROR(
      log::Configure(config.log().log_level(), config.log().log_format() == "json", "gateway"));
  rpc::RouteGrpcLogs();
  rpc::ShutdownSignal signal;
  SY_ASSIGN_OR_RETURN(const absl::Duration drain,
                      config::ParseDuration(config.drain().drain_timeout()));
  SY_ASSIGN_OR_RETURN(const auto channels, ChannelsOf(config));
  SY_ASSIGN_OR_RETURN(const GatewayOptions options, OptionsFrom(config));
  SY_ASSIGN_OR_RETURN(GatewayFiles files, GatewayFiles::Load(options));
  auto metrics = std::make_shared<telemetry::Metrics>();
  metrics->AddProcess("gateway", config::Version(), config::Commit());
  SY_ASSIGN_OR_RETURN(
      const auto gateway,
      Gateway::Create(
          options, std::move(files),
          [&](const std::string& address) { return channels.at(address); }, metrics));
  AnnounceAndWait(*gateway, signal);
  gateway->Drain(drain);
  return absl::OkStatus();
}

}  // namespace
}  // namespace switchyard::gateway

int main(int argc, char** argv) {
  using namespace switchyard;
  config::v1::GatewayConfig config;
  return config::RunMain(gateway::kProgram, argc, argv, &config,
                         [&config] { return gateway::Run(config); });
}
