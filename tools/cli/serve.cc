#include "tools/cli/serve.h"

#include <unistd.h>

#include "gateway/announce.h"
#include "sdk/embedded/local_cluster.h"
#include "services/base/logging.h"
#include "services/base/status.h"
#include "services/config/load.h"
#include "services/config/units.h"
#include "services/rpc/server.h"
#include "services/rpc/shutdown_signal.h"
#include "switchyard/config/v1/serve.pb.h"

namespace switchyard::cli {
namespace {

const config::Program kProgram = {
    .name = "switchyard serve",
    .description = "Serve a model in one process: gateway, router and expert workers.",
    .examples = {"switchyard serve models/tiny-r1",
                 "switchyard serve DIR --http 127.0.0.1:9000 --dtype float32 --kv-memory 4GiB",
                 "switchyard serve DIR --device cuda --pinned-memory 64GiB",
                 "SWITCHYARD_API_KEY_FILE=keys switchyard serve DIR --http 0.0.0.0:443 "
                 "--tls-cert cert.pem --tls-key key.pem"},
    .positional = "model"};

absl::StatusOr<embedded::LocalClusterOptions> OptionsFrom(const config::v1::ServeConfig& config) {
  embedded::LocalClusterOptions options;
  options.model_dir = config.model().model();
  options.threads = config.compute().threads();
  options.router.router_id = fmt::format("embedded:{}", ::getpid());
  router::ApplyKnobs(config.weights(), &options.router);
  router::ApplyKnobs(config.engine(), &options.router);
  router::ApplyKnobs(config.compute(), &options.router);
  gateway::ApplyKnobs(config.front(), config.tls(), &options.gateway);
  options.router.device_flag = "--backbone-device";
  SY_ASSIGN_OR_RETURN(options.device, worker::OpenDevice(config.device(), config.pinned()));
  if (config.backbone_device() != "cpu") options.router.cuda = options.device.cuda;
  return options;
}

absl::Status Serve(const config::v1::ServeConfig& config) {
  SY_RETURN_IF_ERROR(
      log::Configure(config.log().log_level(), config.log().log_format() == "json", "switchyard"));
  rpc::ShutdownSignal signal;
  rpc::RouteGrpcLogs();
  SY_ASSIGN_OR_RETURN(const absl::Duration timeout,
                      config::ParseDuration(config.drain().drain_timeout()));
  SY_ASSIGN_OR_RETURN(const embedded::LocalClusterOptions options, OptionsFrom(config));
  const gateway::GatewayOptions& front = options.gateway;
  SY_RETURN_IF_ERROR(rpc::CheckListen(front.grpc_address, front.tls, "--grpc"));
  SY_RETURN_IF_ERROR(rpc::CheckListen(front.http.address, front.tls, "--http"));
  SY_ASSIGN_OR_RETURN(const auto cluster, embedded::LocalCluster::Create(options));
  gateway::AnnounceAndWait(cluster->gateway(), signal, [&] { return cluster->failure().ok(); });
  cluster->Drain(timeout);
  return cluster->failure();
}

}  // namespace

int RunServe(int argc, char** argv) {
  config::v1::ServeConfig config;
  return config::RunMain(kProgram, argc, argv, &config, [&config] { return Serve(config); });
}

}  // namespace switchyard::cli
