#include "router/run.h"

#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "router/router.h"
#include "services/base/check.h"
#include "services/base/clock.h"
#include "services/base/cores.h"
#include "services/base/logging.h"
#include "services/base/status.h"
#include "services/config/build_info.h"
#include "services/config/load.h"
#include "services/config/units.h"
#include "services/device/device_choice.h"
#include "services/discovery/etcd_client.h"
#include "services/kernels/kernels.h"
#include "services/rpc/server.h"
#include "services/rpc/shutdown_signal.h"
#include "services/telemetry/exposer.h"
#include "switchyard/config/v1/router.pb.h"

namespace switchyard::router {
namespace {

const config::Program kProgram = {
    .name = "switchyard-router",
    .description =
        "Attention, KV cache, gate and scheduling of a mixture-of-experts model; the "
        "experts are expert workers, clients come through gateways.",
    .examples = {"switchyard-router --model models/tiny-r1 --workers "
                 "127.0.0.1:8200,127.0.0.1:8201 --listen 127.0.0.1:8100",
                 "switchyard-router --config router.json --kv-memory 4GiB --metrics 127.0.0.1:9100",
                 "switchyard-router --model DIR --workers dns:workers:8200 --device cuda:0",
                 "SWITCHYARD_WORKERS=unix:/run/worker.sock switchyard-router --model DIR"}};

// How soon a lost device ends the process.
constexpr absl::Duration kLookForFailure = absl::Milliseconds(100);

RouterOptions OptionsFrom(const config::v1::RouterConfig& config) {
  RouterOptions options;
  char host[256] = "router";
  ::gethostname(host, sizeof host - 1);
  options.router_id = fmt::format("{}:{}", host, ::getpid());
  options.model_dir = config.model().model();
  options.workers.assign(config.workers().begin(), config.workers().end());
  options.listen = config.listen();
  options.tls = TlsFilesOf(config.tls());
  options.allow_mixed_numerics = config.allow_mixed_numerics();
  options.shared_memory = !config.no_shared_memory();
  const auto refresh = config::ParseDuration(config.dns().dns_refresh());
  SY_CHECK(refresh.ok());
  options.dns_refresh = std::min(*refresh, absl::Hours(24));
  ApplyKnobs(config.weights(), &options);
  ApplyKnobs(config.engine(), &options);
  ApplyKnobs(config.compute(), &options);
  ApplyKnobs(config.fleet(), &options);
  return options;
}

// Says "ready" on standard output, once, and after the lines that say where. Thread-safe.
class ReadyLine {
 public:
  void OnReady(bool ready) {
    absl::MutexLock lock(&mutex_);
    ready_ = ready;
    Say();
  }
  void OnListening() {
    absl::MutexLock lock(&mutex_);
    listening_ = true;
    Say();
  }

 private:
  void Say() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (ready_ && listening_ && !std::exchange(said_, true)) std::cout << "ready" << std::endl;
  }

  absl::Mutex mutex_;
  bool ready_ ABSL_GUARDED_BY(mutex_) = false, listening_ ABSL_GUARDED_BY(mutex_) = false;
  bool said_ ABSL_GUARDED_BY(mutex_) = false;
};

// A second signal ends the wait.
void Drain(Router& router, absl::Duration timeout, rpc::ShutdownSignal& signal) {
  log::Info("draining, for up to {}", absl::FormatDuration(timeout));
  router.BeginDrain();
  const absl::Time end = SteadyNow() + timeout;
  while (!router.WaitDrained(absl::Milliseconds(20)) && SteadyNow() < end) {
    if (signal.WaitFor(absl::ZeroDuration())) break;
  }
  const EngineSnapshot left = router.Snapshot();
  if (left.running + left.waiting > 0) {
    log::Warning(
        "sequences cut off at the end of the drain: {}, requests that still waited: {} "
        "(--drain-timeout {})",
        left.running, left.waiting, absl::FormatDuration(timeout));
  }
  router.Stop(absl::Seconds(1));
}

absl::Status RunRouter(const config::v1::RouterConfig& config) {
  SY_RETURN_IF_ERROR(
      log::Configure(config.log().log_level(), config.log().log_format() == "json", "router"));
  rpc::ShutdownSignal signal;
  rpc::RouteGrpcLogs();
  RouterOptions options = OptionsFrom(config);
  SY_RETURN_IF_ERROR(ApplyKnobs(config.balance(), &options));
  SY_ASSIGN_OR_RETURN(options.cuda,
                      device::OpenChosen("--device", config.device().device(),
                                         config.device().cuda_plugin(), "attention is"));
  SY_ASSIGN_OR_RETURN(options.etcd, discovery::EtcdClient::Create(config.etcd()));
  SY_RETURN_IF_ERROR(rpc::CheckListen(options.listen, options.tls, "--listen"));
  SY_RETURN_IF_ERROR(telemetry::Exposer::CheckAddress(config.metrics()));
  SY_RETURN_IF_ERROR(rpc::CheckListen(config.metrics(), {}, "--metrics"));
  auto metrics = std::make_shared<telemetry::Metrics>();
  SY_ASSIGN_OR_RETURN(const kernels::Isa isa, kernels::ChooseIsa(options.isa));
  const int threads = options.threads > 0 ? options.threads : UsableCores();
  metrics->AddProcess("router", config::Version(), config::Commit(),
                      {{"isa", options.cuda != nullptr ? options.cuda->about().arithmetic
                                                       : std::string(kernels::Name(isa))},
                       {"threads", std::to_string(threads)}});
  ReadyLine line;  // outlives the router
  SY_ASSIGN_OR_RETURN(const auto router, Router::Create(options, {.metrics = metrics.get()},
                                                        [&line](bool ready, const std::string&) {
                                                          line.OnReady(ready);
                                                        }));
  std::cout << "listening on " << router->address() << std::endl;
  std::unique_ptr<telemetry::Exposer> exposer;
  if (config.has_metrics()) {
    SY_ASSIGN_OR_RETURN(exposer, telemetry::Exposer::Start(config.metrics(), metrics));
    std::cout << "metrics: " << exposer->url() << std::endl;
  }
  line.OnListening();
  while (router->failure().ok() && !signal.WaitFor(kLookForFailure)) {
  }
  SY_ASSIGN_OR_RETURN(const absl::Duration timeout,
                      config::ParseDuration(config.drain().drain_timeout()));
  // With a lost device there is nothing to wait for: every step fails.
  Drain(*router, router->failure().ok() ? timeout : absl::ZeroDuration(), signal);
  return router->failure();
}

}  // namespace

int Run(int argc, char** argv) {
  rpc::PollEachQueue();
  config::v1::RouterConfig config;
  return config::RunMain(kProgram, argc, argv, &config, [&config] { return RunRouter(config); });
}

}  // namespace switchyard::router
