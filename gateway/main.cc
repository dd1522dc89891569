// switchyard-gateway: text in front, routers behind.
#include <algorithm>
#include <map>
#include <memory>

#include "absl/strings/str_join.h"
#include "gateway/announce.h"
#include "gateway/gateway.h"
#include "services/base/logging.h"
#include "services/base/status.h"
#include "services/config/build_info.h"
#include "services/config/load.h"
#include "services/config/units.h"
#include "services/discovery/address_watch.h"
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
  options.follow_routers = true;
  ApplyKnobs(config.front(), config.tls(), &options);
  const config::v1::RouterLossKnobs& loss = config.router_loss();
  SY_ASSIGN_OR_RETURN(options.router_silence_max, config::ParseDuration(loss.router_timeout()));
  SY_ASSIGN_OR_RETURN(options.router_wait, config::ParseDuration(loss.router_wait()));
  options.resume_attempts = loss.resume_attempts();
  options.allow_mixed_numerics = loss.allow_mixed_numerics();
  return options;
}

// The routers, as names among their addresses are followed.
class Upstream {
 public:
  // A bad file is an error here.
  static absl::StatusOr<std::unique_ptr<Upstream>> Create(const config::v1::GatewayConfig& config) {
    auto out = std::make_unique<Upstream>();
    out->tls_ = {.cert = config.upstream_tls().router_tls_cert(),
                 .key = config.upstream_tls().router_tls_key(),
                 .ca = config.upstream_tls().router_tls_ca(),
                 .flags = "--router-tls"};
    SY_RETURN_IF_ERROR(security::ClientCredentials(out->tls_).status());
    const std::set<std::string> different(config.routers().begin(), config.routers().end());
    if (static_cast<int>(different.size()) != config.routers_size()) {
      return UsageError("--routers names an address twice: {}",
                        absl::StrJoin(config.routers(), ","));
    }
    out->watch_.addresses.assign(config.routers().begin(), config.routers().end());
    SY_ASSIGN_OR_RETURN(out->watch_.refresh, config::ParseDuration(config.dns().dns_refresh()));
    out->watch_.refresh = std::min(out->watch_.refresh, absl::Hours(24));
    return out;
  }

  // Those that are known without asking.
  std::vector<std::string> Known() {
    discovery::AddressWatchOptions still = watch_;
    still.refresh = absl::InfiniteDuration();
    return Meet(discovery::AddressWatch(std::move(still), nullptr).addresses());
  }
  std::shared_ptr<grpc::Channel> Channel(const std::string& address) const {
    const auto name = tls_names_.find(address);
    auto channel = rpc::Connect(address, tls_, name == tls_names_.end() ? "" : name->second);
    if (channel.ok()) return *channel;
    log::Error("router {}: {}", address, ToStd(channel.status().message()));
    return nullptr;
  }
  // Until the watch ends; the gateway outlives it.
  std::unique_ptr<discovery::AddressWatch> Follow(Gateway& gateway) {
    return std::make_unique<discovery::AddressWatch>(
        watch_, [this, &gateway](const std::vector<discovery::Address>& now) {
          gateway.FollowRouters(Meet(now));
        });
  }

 private:
  std::vector<std::string> Meet(const std::vector<discovery::Address>& addresses) {
    std::vector<std::string> out;
    tls_names_.clear();
    for (const discovery::Address& address : addresses) {
      tls_names_[address.target] = address.tls_name;
      out.push_back(address.target);
    }
    return out;
  }

  security::TlsFiles tls_;
  discovery::AddressWatchOptions watch_;
  // Of main's thread before there is a watch, then of the watch's, on which channels are made.
  std::map<std::string, std::string> tls_names_;
};

absl::Status Run(const config::v1::GatewayConfig& config) {
  SY_RETURN_IF_ERROR(
      log::Configure(config.log().log_level(), config.log().log_format() == "json", "gateway"));
  rpc::RouteGrpcLogs();
  rpc::ShutdownSignal signal;
  SY_ASSIGN_OR_RETURN(const absl::Duration drain,
                      config::ParseDuration(config.drain().drain_timeout()));
  SY_ASSIGN_OR_RETURN(const auto upstream, Upstream::Create(config));
  SY_ASSIGN_OR_RETURN(GatewayOptions options, OptionsFrom(config));
  options.routers = upstream->Known();
  SY_ASSIGN_OR_RETURN(GatewayFiles files, GatewayFiles::Load(options));
  auto metrics = std::make_shared<telemetry::Metrics>();
  metrics->AddProcess("gateway", config::Version(), config::Commit());
  SY_ASSIGN_OR_RETURN(
      const auto gateway,
      Gateway::Create(
          options, std::move(files),
          [&](const std::string& address) { return upstream->Channel(address); }, metrics));
  const auto watch = upstream->Follow(*gateway);
  const auto registration = metrics->AddCollector("gateway", [&](telemetry::Samples& samples) {
    samples.Counter(telemetry::kDnsFailures, static_cast<double>(watch->failures()));
  });
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
