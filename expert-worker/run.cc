#include "expert-worker/run.h"

#include <grpcpp/server_builder.h>
#include <unistd.h>

#include <iostream>

#include "expert-worker/device/open_device.h"
#include "expert-worker/held_weights.h"
#include "expert-worker/presence.h"
#include "expert-worker/worker.h"
#include "expert-worker/worker_metrics.h"
#include "services/base/clock.h"
#include "services/base/cores.h"
#include "services/base/logging.h"
#include "services/base/memory.h"
#include "services/base/status.h"
#include "services/checkpoint/content_digest.h"
#include "services/config/build_info.h"
#include "services/config/load.h"
#include "services/config/units.h"
#include "services/kernels/kernels.h"
#include "services/model/fingerprint.h"
#include "services/model/spec_from_hf.h"
#include "services/rpc/server.h"
#include "services/rpc/shutdown_signal.h"
#include "services/telemetry/exposer.h"
#include "switchyard/config/v1/worker.pb.h"

namespace switchyard::worker {
namespace {

const config::Program kProgram = {
    .name = "switchyard-expert-worker",
    .description =
        "Computes the feed-forward rows of some experts of a mixture-of-experts model "
        "for its routers.",
    .examples = {
        "switchyard-expert-worker --model models/tiny-r1 --experts 0-63 --listen 127.0.0.1:8200",
        "switchyard-expert-worker --model models/tiny-r1 --experts 1/2 --listen unix:/run/w1.sock",
        "switchyard-expert-worker --model models/tiny-r1 --experts none --experts-memory 4GiB",
        "switchyard-expert-worker --model models/tiny-r1 --device cuda:0 --allow-mixed-numerics",
        "switchyard-expert-worker --config worker.json --threads 8 --metrics 127.0.0.1:9200"}};

constexpr absl::Duration kLookForFailure = absl::Milliseconds(200);

std::string Bytes(uint64_t bytes) { return config::FormatBytes(static_cast<int64_t>(bytes)); }

absl::StatusOr<uint64_t> BytesOf(std::string_view flag, const std::string& text) {
  SY_ASSIGN_OR_RETURN(const int64_t bytes, config::ParseBytes(text));
  if (bytes <= 0) return UsageError("{} {}: must be above 0", flag, text);
  return static_cast<uint64_t>(bytes);
}

absl::StatusOr<WorkerOptions> OptionsFrom(const config::v1::WorkerConfig& config) {
  WorkerOptions options;
  char host[256] = "expert-worker";
  ::gethostname(host, sizeof host - 1);
  options.worker_id = fmt::format("{}:{}", host, ::getpid());
  options.experts = config.experts();
  options.dtype = config.weights().dtype() == "float32" ? DType::kF32 : DType::kBF16;
  options.isa = config.compute().isa();
  const int threads = config.compute().threads();
  options.threads = threads > 0 ? threads : UsableCores();
  options.allow_mixed_numerics = config.allow_mixed_numerics();
  options.shared_memory = !config.no_shared_memory();
  const config::v1::HoldingKnobs& holding = config.holding();
  options.node = holding.has_node() ? holding.node() : host;
  options.zone = holding.zone();
  options.check_weights = !config.weights().no_weight_check();
  options.memory_bytes = AvailableMemoryBytes();
  SY_ASSIGN_OR_RETURN(const DeviceUse device, OpenDevice(config.device(), config.pinned()));
  if (device.cuda != nullptr) {
    options.cuda = device.cuda;
    options.memory_bytes = device.memory_bytes;
    options.pinned_bytes = device.pinned_bytes;
  }
  if (holding.has_experts_memory()) {
    SY_ASSIGN_OR_RETURN(options.memory_bytes,
                        BytesOf("--experts-memory", holding.experts_memory()));
  }
  if (holding.has_load_rate()) {
    SY_ASSIGN_OR_RETURN(options.load_bytes_per_s, BytesOf("--load-rate", holding.load_rate()));
  }
  return options;
}

absl::Status SettleMemory(Worker& worker) {
  checkpoint::ConsoleProgress progress("Bringing experts to the GPU");
  return worker.SettleMemory(std::ref(progress));
}

absl::StatusOr<std::unique_ptr<Worker>> LoadWorker(const config::v1::WorkerConfig& config,
                                                   const WorkerOptions& options) {
  const std::string& dir = config.model().model();
  SY_ASSIGN_OR_RETURN(const ModelSpec spec, LoadSpec(dir));
  SY_ASSIGN_OR_RETURN(std::shared_ptr<checkpoint::TensorSource> source,
                      checkpoint::OpenCheckpoint(dir));
  SY_ASSIGN_OR_RETURN(const std::string digest, checkpoint::ContentDigest(*source));
  SY_ASSIGN_OR_RETURN(auto worker,
                      Worker::Create(spec, ModelFingerprint(spec, digest), source, options));
  if (!config.holding().has_experts_memory()) {
    SY_RETURN_IF_ERROR(CheckMemory(worker->held_bytes(), options.memory_bytes, config.experts()));
  } else if (const uint64_t one = worker->hello().expert_bytes(); options.memory_bytes < one) {
    return UsageError("--experts-memory {}: one expert takes {}; give that much at least",
                      config.holding().experts_memory(), Bytes(one));
  }
  if (!config.weights().no_weight_check()) {
    checkpoint::ConsoleProgress progress("Reading the experts' weights");
    SY_RETURN_IF_ERROR(CheckHeldWeights(spec, *source, worker->hello(), std::ref(progress)));
  }
  SY_RETURN_IF_ERROR(SettleMemory(*worker));
  const bool tight = worker->held_bytes() > options.memory_bytes;
  log::Info("{}: experts {} of each MoE layer, {} in all, {} {}{}; {}", spec.architecture,
            config.experts(), worker->experts_held(), Bytes(worker->held_bytes()),
            options.cuda ? "on " + options.cuda->name() : "mapped",
            tight ? fmt::format(", {} of it in memory at a time", Bytes(options.memory_bytes)) : "",
            worker->numerics().arithmetic);
  return worker;
}

// Tells the routers, which turn to others and take over what nobody else holds, and serves them
// until they have let it go: each ends its stream once it can do without. A second signal ends the
// wait.
void Drain(Worker& worker, absl::Duration timeout, rpc::ShutdownSignal& signal) {
  log::Info("draining, for up to {}", absl::FormatDuration(timeout));
  worker.BeginDrain();
  const absl::Time end = SteadyNow() + timeout;
  while (SteadyNow() < end && !signal.WaitFor(absl::Milliseconds(20))) {
    if (worker.counters().routers == 0 && worker.Drained()) return;
  }
  log::Warning("routers that still needed it when the time was over: {}",
               worker.counters().routers);
}

absl::Status RunWorker(const config::v1::WorkerConfig& config) {
  SY_RETURN_IF_ERROR(log::Configure(config.log().log_level(), config.log().log_format() == "json",
                                    "expert-worker"));
  rpc::ShutdownSignal signal;
  rpc::RouteGrpcLogs();
  const security::TlsFiles tls = {
      .cert = config.tls().tls_cert(), .key = config.tls().tls_key(), .ca = config.tls().tls_ca()};
  SY_RETURN_IF_ERROR(rpc::CheckListen(config.listen(), tls, "--listen"));
  SY_RETURN_IF_ERROR(telemetry::Exposer::CheckAddress(config.metrics()));
  SY_RETURN_IF_ERROR(rpc::CheckListen(config.metrics(), {}, "--metrics"));
  SY_ASSIGN_OR_RETURN(const auto presence, Presence::Create(config));
  SY_ASSIGN_OR_RETURN(const WorkerOptions options, OptionsFrom(config));
  SY_ASSIGN_OR_RETURN(const auto worker, LoadWorker(config, options));
  auto metrics = std::make_shared<telemetry::Metrics>();
  metrics->AddProcess(
      "expert-worker", config::Version(), config::Commit(),
      {{"isa", worker->hello().runs_on().isa()}, {"threads", std::to_string(options.threads)}});
  const auto registration = Watch(*metrics, *worker);
  SY_ASSIGN_OR_RETURN(
      const auto server,
      rpc::Server::Start({.listen = config.listen(), .flag = "--listen", .tls = tls},
                         [&](grpc::ServerBuilder& builder) { worker->Register(builder); }));
  worker->Start();
  std::unique_ptr<telemetry::Exposer> exposer;
  if (config.has_metrics()) {
    auto started = telemetry::Exposer::Start(config.metrics(), metrics);
    if (!started.ok()) {
      server->Shutdown(absl::ZeroDuration());
      return started.status();
    }
    exposer = std::move(*started);
  }
  server->SetReady(true);
  std::cout << "listening on " << server->address() << std::endl;
  if (exposer != nullptr) std::cout << "metrics: " << exposer->url() << std::endl;
  std::cout << "ready" << std::endl;
  presence->Announce(server->address(), *worker, *metrics);
  while (worker->failure().ok() && !signal.WaitFor(kLookForFailure)) {
  }
  presence->Withdraw();
  server->SetReady(false);
  SY_ASSIGN_OR_RETURN(const absl::Duration timeout,
                      config::ParseDuration(config.drain().drain_timeout()));
  Drain(*worker, timeout, signal);
  server->Shutdown(absl::ZeroDuration());
  worker->Stop();
  return worker->failure();
}

}  // namespace

int Run(int argc, char** argv) {
  rpc::PollEachQueue();
  config::v1::WorkerConfig config;
  return config::RunMain(kProgram, argc, argv, &config, [&config] { return RunWorker(config); });
}

}  // namespace switchyard::worker
