#include "sdk/embedded/local_cluster.h"

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>

#include "expert-worker/held_weights.h"
#include "expert-worker/worker_metrics.h"
#include "router/forward_pass.h"
#include "services/base/clock.h"
#include "services/base/cores.h"
#include "services/base/logging.h"
#include "services/base/status.h"
#include "services/checkpoint/progress.h"
#include "services/config/build_info.h"
#include "services/config/units.h"
#include "services/kernels/kernels.h"
#include "services/rpc/channel.h"
#include "services/rpc/server.h"

namespace switchyard::embedded {
namespace {

constexpr char kInProcess[] = "in-process";

}  // namespace

// Members stand in order of dependence: each may use those above it and is destroyed before them.
class LocalCluster::Impl {
 public:
  explicit Impl(LocalClusterOptions options) : options_(std::move(options)) {}
  ~Impl() {
    gateway_.reset();
    routers_.clear();
    for (size_t i = 0; i < workers_.size(); ++i) StopWorker(i);
  }

  absl::Status Start() {
    metrics_ = std::make_shared<telemetry::Metrics>();
    const int threads = options_.threads > 0 ? options_.threads : UsableCores();
    SY_ASSIGN_OR_RETURN(const kernels::Isa isa, kernels::ChooseIsa(options_.router.isa));
    for (const char* service : {"gateway", "router", "expert-worker"}) {
      metrics_->AddProcess(
          service, config::Version(), config::Commit(),
          {{"isa", std::string(kernels::Name(isa))}, {"threads", std::to_string(threads)}});
    }
    SY_ASSIGN_OR_RETURN(model_, router::OpenModel(options_.model_dir));
    pool_ = std::make_unique<kernels::ThreadPool>(threads);
    workers_.resize(options_.parts.size());
    // What is wrong is said before all weights are read, which may take minutes.
    SY_RETURN_IF_ERROR(ShareDevice());
    uint64_t expert_bytes = 0;
    for (size_t i = 0; i < workers_.size(); ++i) {
      SY_RETURN_IF_ERROR(CreateWorker(i));
      expert_bytes += HostBytes(workers_[i]);
    }
    SY_RETURN_IF_ERROR(router::Router::CheckFits(options_.router, model_, expert_bytes));
    SY_ASSIGN_OR_RETURN(gateway::GatewayFiles files, LoadFilesAndCheckExperts());
    routers_.resize(static_cast<size_t>(options_.routers));
    for (size_t i = 0; i < routers_.size(); ++i) SY_RETURN_IF_ERROR(StartRouter(i));
    return StartGateway(std::move(files));
  }

  // Leaves the router's part of the memory of a device that computes both.
  absl::Status ShareDevice() {
    worker::DeviceUse& experts = options_.device;
    router::RouterOptions& router = options_.router;
    if (router.cuda == nullptr || router.cuda != experts.cuda) return absl::OkStatus();
    SY_RETURN_IF_ERROR(router::Router::CheckFits(router, model_, 0));
    SY_ASSIGN_OR_RETURN(const router::DeviceShare share,
                        router::ForwardPass::ShareOf(router, model_, experts.memory_bytes));
    router.kv_bytes = static_cast<int64_t>(share.kv_bytes);
    experts.memory_bytes -= std::min(experts.memory_bytes, share.bytes);
    return absl::OkStatus();
  }

  // Texts and experts at the same time. What is wrong with the texts ends the reading of experts.
  absl::StatusOr<gateway::GatewayFiles> LoadFilesAndCheckExperts() {
    std::atomic<bool> failed = false;
    absl::StatusOr<gateway::GatewayFiles> files;
    std::thread loading([&] {
      files = gateway::GatewayFiles::Load(GatewayOptionsOf());
      failed = !files.ok();
    });
    absl::Status checked;
    for (size_t i = 0; i < workers_.size() && checked.ok(); ++i) checked = ServeWorker(i, &failed);
    loading.join();
    SY_RETURN_IF_ERROR(files.status());
    SY_RETURN_IF_ERROR(checked);
    return files;
  }

  absl::Status StartWorker(size_t i) {
    SY_RETURN_IF_ERROR(CreateWorker(i));
    return ServeWorker(i);
  }

  absl::Status CreateWorker(size_t i) {
    Part& part = workers_[i];
    worker::WorkerOptions options;
    options.worker_id = fmt::format("expert-worker-{}", i);
    options.experts = options_.parts[i];
    options.dtype = options_.router.dtype;
    options.isa = options_.router.isa;
    options.allow_mixed_numerics = options_.router.allow_mixed_numerics;
    options.cuda = options_.device.cuda;
    options.memory_bytes = options_.device.memory_bytes / workers_.size();
    options.pinned_bytes = options_.device.pinned_bytes / workers_.size();
    SY_ASSIGN_OR_RETURN(
        part.worker, worker::Worker::Create(model_.spec, model_.fingerprint, model_.source, options,
                                            options_.sockets ? nullptr : pool_.get()));
    return absl::OkStatus();
  }

  // CANCELLED when nobody wants it any more; `unwanted` may be null.
  absl::Status ServeWorker(size_t i, const std::atomic<bool>* unwanted = nullptr) {
    Part& part = workers_[i];
    if (options_.router.weight_check) {
      checkpoint::ConsoleProgress progress("Reading the experts' weights");
      SY_RETURN_IF_ERROR(worker::CheckHeldWeights(
          model_.spec, *model_.source, part.worker->hello(), [&](uint64_t done, uint64_t total) {
            return progress(done, total) && (unwanted == nullptr || !*unwanted);
          }));
    }
    if (options_.device.cuda != nullptr) SY_RETURN_IF_ERROR(BringToDevice(*part.worker));
    part.watch = worker::Watch(*metrics_, *part.worker);
    if (!options_.sockets) return absl::OkStatus();
    // The first time a port is chosen; a worker that comes back takes the same.
    const std::string listen = part.address.empty() ? "127.0.0.1:0" : part.address;
    SY_ASSIGN_OR_RETURN(part.server, rpc::Server::Start({.listen = listen, .tls = {}},
                                                        [&part](grpc::ServerBuilder& builder) {
                                                          part.worker->Register(builder);
                                                        }));
    part.worker->Start();
    part.address = part.server->address();
    part.server->SetReady(true);
    return absl::OkStatus();
  }

  absl::Status BringToDevice(worker::Worker& worker) const {
    const uint64_t held = worker.held_bytes(), room = worker.counters().memory_bytes;
    log::Info("experts take {} on {}{}", config::FormatBytes(static_cast<int64_t>(held)),
              options_.device.cuda->name(),
              held <= room ? ""
                           : fmt::format(", which has room for {}: those used most stay there",
                                         config::FormatBytes(static_cast<int64_t>(room))));
    checkpoint::ConsoleProgress progress("Bringing experts to the GPU");
    return worker.SettleMemory(std::ref(progress));
  }

  // Where router and the one worker share a device that has room for all experts.
  absl::Status ReferToExperts() {
    const bool here = options_.router.cuda != nullptr &&
                      options_.router.cuda == options_.device.cuda && !options_.sockets;
    if (!here || device_experts_ || workers_.size() != 1) return absl::OkStatus();
    absl::StatusOr<device::DeviceExperts> experts = workers_[0].worker->PinExperts();
    if (absl::IsFailedPrecondition(experts.status())) return absl::OkStatus();
    SY_ASSIGN_OR_RETURN(device_experts_, std::move(experts));
    log::Info("router and experts share {}: rows stay there", options_.device.cuda->name());
    return absl::OkStatus();
  }

  absl::Status StartRouter(size_t index) {
    ServingRouter& serving = routers_[index];
    router::RouterOptions options = options_.router;
    options.model_dir = options_.model_dir;
    options.threads = options_.threads;
    options.workers.clear();
    const std::string listen = serving.address.empty() ? "127.0.0.1:0" : serving.address;
    options.listen = options_.sockets ? listen : "";
    router::RouterShared shared;
    shared.model = &model_;
    SY_RETURN_IF_ERROR(ReferToExperts());
    if (device_experts_) shared.device_experts = &*device_experts_;
    if (index == 0) shared.metrics = metrics_.get();  // others would report the same series
    for (size_t i = 0; i < workers_.size(); ++i) {
      shared.other_weight_bytes += HostBytes(workers_[i]);
      if (options_.sockets) {
        options.workers.push_back(workers_[i].address);
      } else {
        shared.workers.push_back({fmt::format("local-{}", i), workers_[i].worker.get()});
      }
    }
    if (!options_.sockets) {
      shared.pool = pool_.get();
      shared.expert_arithmetic = workers_[0].worker->numerics().arithmetic;
    }
    SY_ASSIGN_OR_RETURN(serving.router, router::Router::Create(options, shared));
    serving.address = serving.router->address();
    return absl::OkStatus();
  }

  gateway::GatewayOptions GatewayOptionsOf() const {
    gateway::GatewayOptions options = options_.gateway;
    options.model_dir = options_.model_dir;
    options.log_routers = options_.sockets;
    return options;
  }

  absl::Status StartGateway(gateway::GatewayFiles files) {
    gateway::GatewayOptions options = GatewayOptionsOf();
    options.routers.clear();
    for (const ServingRouter& serving : routers_) {
      options.routers.push_back(options_.sockets ? serving.address : kInProcess);
    }
    const auto channels = [this](const std::string& address) -> std::shared_ptr<grpc::Channel> {
      if (address == kInProcess) {
        return routers_[0].router->server().InProcessChannel(rpc::DefaultChannelArguments());
      }
      return *rpc::Connect(address, {});  // fails only on bad TLS files
    };
    SY_ASSIGN_OR_RETURN(gateway_,
                        gateway::Gateway::Create(options, std::move(files), channels, metrics_));
    return absl::OkStatus();
  }

  // A server outlives its worker's queue: what the queue still holds refers to the server.
  void StopWorker(size_t i) {
    Part& part = workers_[i];
    if (part.server != nullptr) part.server->Shutdown(absl::ZeroDuration());
    if (part.worker != nullptr) part.worker->Stop();
    part.watch = {};
    part.server.reset();
    part.worker.reset();
  }

  absl::Status WaitReady(absl::Duration timeout) {
    const absl::Time end = SteadyNow() + timeout;
    while (true) {
      const std::string missing = gateway_->Missing();
      if (missing.empty()) return absl::OkStatus();
      if (SteadyNow() >= end) return DeadlineExceeded("not ready: {}", missing);
      absl::SleepFor(absl::Milliseconds(5));
    }
  }

  absl::Status failure() const {
    for (const Part& part : workers_) SY_RETURN_IF_ERROR(part.worker->failure());
    for (const ServingRouter& r : routers_) SY_RETURN_IF_ERROR(r.router->failure());
    return absl::OkStatus();
  }

  void Drain(absl::Duration timeout) {
    const absl::Time end = SteadyNow() + timeout;
    gateway_->Drain(timeout);
    for (const ServingRouter& serving : routers_) {
      serving.router->BeginDrain();
      serving.router->WaitDrained(std::max(absl::ZeroDuration(), end - SteadyNow()));
      serving.router->Stop(absl::Seconds(1));
    }
    for (const Part& part : workers_) part.worker->BeginDrain();
  }

  struct Part {
    std::string address;  // with sockets
    std::unique_ptr<worker::Worker> worker;
    telemetry::Metrics::Registration watch;
    std::unique_ptr<rpc::Server> server;
  };

  // Of weights that stay in the host's memory.
  uint64_t HostBytes(const Part& part) const {
    return options_.device.cuda != nullptr ? 0 : part.worker->mapped_bytes();
  }

  struct ServingRouter {
    std::string address;  // with sockets
    std::unique_ptr<router::Router> router;
  };

  LocalClusterOptions options_;  // memory is shared out at the start
  std::shared_ptr<telemetry::Metrics> metrics_;
  router::OpenedModel model_;
  std::unique_ptr<kernels::ThreadPool> pool_;
  std::vector<Part> workers_;
  std::optional<device::DeviceExperts> device_experts_;
  std::vector<ServingRouter> routers_;
  std::unique_ptr<gateway::Gateway> gateway_;
};

LocalCluster::LocalCluster(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LocalCluster::~LocalCluster() = default;

absl::StatusOr<std::unique_ptr<LocalCluster>> LocalCluster::Create(
    const LocalClusterOptions& options) {
  auto impl = std::make_unique<Impl>(options);
  SY_RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<LocalCluster>(new LocalCluster(std::move(impl)));
}

gateway::Gateway& LocalCluster::gateway() { return *impl_->gateway_; }
router::Router& LocalCluster::router(int i) { return *impl_->routers_[i].router; }
worker::Worker& LocalCluster::worker(int i) { return *impl_->workers_[i].worker; }
absl::Status LocalCluster::WaitReady(absl::Duration timeout) { return impl_->WaitReady(timeout); }
absl::Status LocalCluster::failure() const { return impl_->failure(); }
void LocalCluster::StopWorker(int i) { impl_->StopWorker(i); }
absl::Status LocalCluster::StartWorker(int i) { return impl_->StartWorker(i); }
void LocalCluster::StopRouter(int i) { impl_->routers_[i].router.reset(); }
absl::Status LocalCluster::StartRouter(int i) { return impl_->StartRouter(i); }
void LocalCluster::Drain(absl::Duration timeout) { impl_->Drain(timeout); }

}  // namespace switchyard::embedded
