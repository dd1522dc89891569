#include "router/router.h"

#include <grpcpp/server_builder.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_replace.h"
#include "router/draft/ngram_drafter.h"
#include "router/fleet/balancer.h"
#include "router/fleet/fleet.h"
#include "router/forward_pass.h"
#include "router/placement_source.h"
#include "router/service/load_report.h"
#include "router/worker_links.h"
#include "services/base/check.h"
#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/status.h"
#include "services/checkpoint/content_digest.h"
#include "services/expertwire/arithmetic.h"
#include "services/expertwire/link_set.h"
#include "services/model/fingerprint.h"
#include "services/model/memory_plan.h"
#include "services/model/spec_from_hf.h"
#include "services/model/text_fingerprint.h"
#include "services/rpc/server.h"

namespace switchyard::router {
namespace {

namespace pb = internal::v1;

// How soon a change of the links is seen.
constexpr absl::Duration kWatchEvery = absl::Milliseconds(25);
// How long a router that lacks experts still takes requests, whose rows wait: a worker that comes
// back, or the takeover of its experts, should be noticed by nobody.
constexpr absl::Duration kGrace = absl::Seconds(10);

PlacementSourceOptions PlacementFrom(const RouterOptions& options) {
  return {.from = options.placement,
          .balances = options.balances,
          .router_id = options.router_id,
          .etcd = options.etcd};
}

}  // namespace

absl::StatusOr<OpenedModel> OpenModel(const std::string& model_dir) {
  OpenedModel model;
  SY_ASSIGN_OR_RETURN(model.spec, LoadSpec(model_dir));
  SY_ASSIGN_OR_RETURN(model.source, checkpoint::OpenCheckpoint(model_dir));
  SY_ASSIGN_OR_RETURN(const std::string digest, checkpoint::ContentDigest(*model.source));
  model.fingerprint = ModelFingerprint(model.spec, digest);
  return model;
}

// Members stand in order of dependence: each may use those above it, and is destroyed before them.
class Router::Impl {
 public:
  Impl(RouterOptions options, const RouterShared& shared, ReadyCallback on_ready)
      : options_(std::move(options)), shared_(shared), on_ready_(std::move(on_ready)) {}
  ~Impl() { Stop(absl::ZeroDuration()); }

  absl::Status Load();
  absl::Status Connect();
  absl::Status Serve();

  void BeginDrain();
  bool WaitDrained(absl::Duration timeout) {
    absl::MutexLock lock(&drain_mutex_);
    return drain_ended_.Await(&drain_mutex_, timeout, [this] {
      drain_mutex_.AssertHeld();
      return drained_;
    });
  }
  void Stop(absl::Duration grace);

  rpc::Server& server() { return *server_; }
  int max_model_len() const { return pass_->plan().max_model_len; }
  EngineSnapshot Snapshot() const { return engine_->Snapshot(); }
  absl::Status failure() const { return pass_->failure(); }

 private:
  absl::Status FollowPlacement();
  void Watch();
  void Look(absl::Time now);
  // What tokens depend on: the id that workers share, with the class of this router's own products,
  // and what is this router's alone: the dtype of the KV cache, where it is not the activations',
  // and the routing policy, where it is not the gate's.
  std::string NumericsName() const;
  // Whether a worker of another arithmetic class serves this router.
  bool Mixed() const;
  // Whether what was ready stays so while experts are missing.
  bool GoesOnWithout() const;

  const RouterOptions options_;
  const RouterShared shared_;
  const ReadyCallback on_ready_;
  absl::Mutex drain_mutex_;  // the engine's thread takes it
  bool drained_ ABSL_GUARDED_BY(drain_mutex_) = false;
  SteadyCondVar drain_ended_;
  telemetry::Metrics own_metrics_;
  OpenedModel model_;
  std::unique_ptr<ForwardPass> pass_;
  expertwire::NumericsClass numerics_;
  bool experts_elsewhere_ = false;  // than on this CPU, in this process
  std::unique_ptr<expertwire::LinkSet> links_;
  std::unique_ptr<WorkerLinks> worker_links_;
  std::unique_ptr<LinkDispatcher> dispatcher_;
  std::unique_ptr<Fleet> fleet_;
  std::unique_ptr<PlacementSource> placement_;
  std::unique_ptr<Balancer> balancer_;  // null: without --balance
  std::unique_ptr<RouterMetrics> metrics_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<LoadReport> load_;
  std::unique_ptr<RouterService> service_;
  std::unique_ptr<rpc::Server> server_;
  telemetry::Metrics::Registration registration_, links_registration_;

  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  SteadyCondVar stopped_;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  // What the watcher has last told.
  std::vector<uint64_t> generations_;
  bool told_ = false, ready_ = false;
  absl::Time lacking_since_ = absl::InfiniteFuture();  // it was ready, experts have no worker
  std::string missing_;
  std::thread watcher_;
};

absl::Status Router::Impl::Load() {
  if (shared_.model != nullptr) {
    model_ = *shared_.model;
  } else {
    SY_ASSIGN_OR_RETURN(model_, OpenModel(options_.model_dir));
  }
  SY_ASSIGN_OR_RETURN(pass_, ForwardPass::Load(options_, shared_, model_));
  const kernels::Isa isa = pass_->compute().isa();
  numerics_ = {
      .model_fingerprint = model_.fingerprint,
      .activations = options_.dtype,
      .arithmetic = expertwire::ExpertArithmetic(model_.spec, *model_.source, options_.dtype, isa)};
  if (options_.cuda != nullptr) numerics_.arithmetic = pass_->arithmetic();
  if (!shared_.expert_arithmetic.empty() && shared_.expert_arithmetic != numerics_.arithmetic) {
    numerics_.arithmetic = shared_.expert_arithmetic;
    experts_elsewhere_ = true;
  }
  return absl::OkStatus();
}

absl::Status Router::Impl::Connect() {
  links_ = std::make_unique<expertwire::LinkSet>(
      expertwire::LinkSetOptions{.hello = expertwire::MakeHello(options_.router_id, numerics_, {},
                                                                options_.allow_mixed_numerics)});
  for (const RouterShared::LocalWorker& worker : shared_.workers) {
    links_->AddLocal(worker.name, *worker.handler);
  }
  SY_ASSIGN_OR_RETURN(worker_links_, WorkerLinks::Create({.addresses = options_.workers,
                                                          .dns_refresh = options_.dns_refresh,
                                                          .etcd = options_.etcd,
                                                          .tls = options_.tls,
                                                          .shared_memory = options_.shared_memory},
                                                         *links_));
  dispatcher_ = std::make_unique<LinkDispatcher>(
      model_.spec, options_.dtype, *links_, pass_->compute().pool(),
      DispatchOptions{.patience = options_.expert_patience, .hedge = options_.hedge});
  SY_RETURN_IF_ERROR(FollowPlacement());
  return pass_->MakeRunner(*dispatcher_);
}

absl::Status Router::Impl::FollowPlacement() {
  fleet_ = std::make_unique<Fleet>(
      model_.spec, *links_, *dispatcher_,
      FleetOptions{.takeover = options_.takeover,
                   .placed = !options_.placement.empty() || options_.balances});
  const auto follow = [this](const v1::Placement& document) -> absl::Status {
    SY_ASSIGN_OR_RETURN(
        placement::PlacementIndex index,
        placement::Expand(document, placement::GridOf(model_.spec), model_.fingerprint));
    SY_RETURN_IF_ERROR(placement::CheckCovers(index));
    fleet_->Follow(std::move(index));
    return absl::OkStatus();
  };
  SY_ASSIGN_OR_RETURN(placement_, PlacementSource::Create(PlacementFrom(options_), follow));
  if (!options_.balances) return absl::OkStatus();
  BalancerOptions balancer = options_.balancer;
  balancer.sole = placement_->sole();
  balancer_ = std::make_unique<Balancer>(
      BalanceModelOf(model_.spec, model_.fingerprint, StoredIn(model_)), balancer, *fleet_,
      *dispatcher_,
      Balancer::Hooks{
          .leads = [this] { return placement_->leads(); },
          .publish =
              [this](const v1::Placement& placement) { return placement_->Publish(placement); }});
  return absl::OkStatus();
}

std::string Router::Impl::NumericsName() const {
  const DType kv_dtype = KvDType(options_);
  expertwire::NumericsClass own = numerics_;
  own.arithmetic = pass_->arithmetic();
  std::string name = expertwire::NumericsId(own);
  if (kv_dtype != options_.dtype) name += fmt::format("+kv-{}", Name(kv_dtype));
  if (experts_elsewhere_) name += "+" + numerics_.arithmetic;
  if (!options_.routing.gate()) {
    // A gateway joins the names of routers that differ by commas.
    name += "+" + absl::StrReplaceAll(options_.routing.Name(), {{",", ";"}});
  }
  if (options_.routing.depends_on_batch()) name += "+batch-dependent";
  return name;
}

absl::Status Router::Impl::Serve() {
  telemetry::Metrics& metrics = shared_.metrics != nullptr ? *shared_.metrics : own_metrics_;
  metrics_ = std::make_unique<RouterMetrics>(metrics, options_.expert_metrics);
  const EngineOptions engine{.max_model_len = pass_->plan().max_model_len,
                             .kv_blocks = pass_->plan().blocks,
                             .max_batch_tokens = options_.max_batch_tokens,
                             .max_running = options_.max_running,
                             .max_queue = options_.max_queue,
                             .step_target_ms = static_cast<double>(options_.step_target_ms),
                             .prefix_cache = options_.prefix_cache,
                             .max_drafts = options_.speculate_ngram,
                             .make_drafter = [] { return std::make_unique<NgramDrafter>(); }};
  SY_RETURN_IF_ERROR(engine.Validate());
  engine_ = std::make_unique<Engine>(engine, pass_->runner(), metrics_.get());
  RouterServiceOptions service;
  pb::RouterHello& hello = service.hello;
  hello.set_router_id(options_.router_id);
  SY_ASSIGN_OR_RETURN(*hello.mutable_text_fingerprint(), TextFingerprint(options_.model_dir));
  hello.set_model_fingerprint(model_.fingerprint);
  hello.set_numerics_id(NumericsName());
  hello.set_max_model_len(pass_->plan().max_model_len);
  hello.set_vocab(model_.spec.vocab);
  hello.set_top_k(pass_->routing_width());
  for (int layer = 0; layer < model_.spec.num_layers(); ++layer) {
    if (model_.spec.layers[layer].moe) hello.add_moe_layers(layer);
  }
  load_ = std::make_unique<LoadReport>(model_.spec, model_.fingerprint, *links_, *dispatcher_,
                                       *engine_);
  load_->Look(CounterWindows::Clock::now());
  service_ = std::make_unique<RouterService>(
      service, *engine_,
      RouterService::Hooks{.describe =
                               [this](v1::RouterExperts* out) {
                                 load_->Describe(CounterWindows::Clock::now(), out);
                                 LoadReport::Describe(*fleet_, balancer_.get(),
                                                      out->mutable_placement());
                                 LoadReport::Describe(pass_->routing(), out->mutable_dispatch());
                                 out->set_routing_policy(options_.routing.Name());
                                 out->set_batch_dependent(options_.routing.depends_on_batch());
                                 pb::RunsOn runs_on = expertwire::RunsOn(
                                     pass_->compute().isa(), pass_->compute().pool().threads());
                                 if (options_.cuda != nullptr) runs_on.set_isa(pass_->arithmetic());
                                 SetRunsOn(runs_on, out->mutable_runs_on());
                               },
                           .on_refused = [this](const absl::Status& s) { metrics_->OnRefused(s); },
                           .on_slow = [this] { metrics_->OnSlow(); }});
  SY_ASSIGN_OR_RETURN(server_, rpc::Server::Start({.listen = options_.listen,
                                                   .flag = "--listen",
                                                   .tls = options_.tls,
                                                   .metrics = &metrics,
                                                   .service = "router"},
                                                  [this](grpc::ServerBuilder& builder) {
                                                    builder.RegisterService(service_.get());
                                                  }));
  registration_ = metrics_->Watch(model_.spec, *engine_, *service_, *dispatcher_, *fleet_,
                                  pass_->routing(), pass_->compute().pool());
  const bool of_experts = options_.expert_metrics != ExpertMetrics::kOff;
  links_registration_ =
      metrics.AddCollector("router", [this, of_experts](telemetry::Samples& samples) {
        worker_links_->CollectTo(samples);
        placement_->CollectTo(samples);
        if (balancer_ != nullptr) CollectBalancer(balancer_->Report(), SteadyNow(), samples);
        if (of_experts) load_->CollectTo(CounterWindows::Clock::now(), samples);
      });
  Look(SteadyNow());  // embedded is ready at once
  watcher_ = std::thread([this] { Watch(); });
  return absl::OkStatus();
}

bool Router::Impl::Mixed() const {
  return std::any_of(links_->links().begin(), links_->links().end(), [&](const auto& link) {
    const auto peer = link->peer();
    const bool up = link->state() == expertwire::LinkState::kUp ||
                    link->state() == expertwire::LinkState::kDraining;
    return up && peer != nullptr && peer->arithmetic() != numerics_.arithmetic;
  });
}

bool Router::Impl::GoesOnWithout() const {
  if (options_.lost_experts == LostExperts::kFail) return false;
  return std::any_of(links_->links().begin(), links_->links().end(),
                     [](const auto& link) { return link->state() == expertwire::LinkState::kUp; });
}

void Router::Impl::Watch() {
  absl::MutexLock lock(&mutex_);
  const auto over = [this] {
    mutex_.AssertHeld();
    return stopping_;
  };
  while (!stopped_.Await(&mutex_, kWatchEvery, over)) {
    const absl::Time now = SteadyNow();
    worker_links_->Look();
    fleet_->Look(now);
    if (balancer_ != nullptr) balancer_->Look(now);
    load_->Look(CounterWindows::Clock::now());
    if (!draining_) Look(now);
    service_->Tick(now);
  }
}

// Tells gateways, health and the log what a change at the links means.
void Router::Impl::Look(absl::Time now) {
  std::vector<uint64_t> generations;
  for (const auto& link : links_->links()) generations.push_back(link->generation());
  const bool lacks = lacking_since_ != absl::InfiniteFuture();
  if (told_ && generations == generations_ && !lacks) return;
  generations_ = std::move(generations);
  // Rows of another arithmetic class make another text: responses must not look like our own.
  service_->SetNumericsId(NumericsName() + (Mixed() ? "+mixed" : ""));
  std::string missing = dispatcher_->Missing();
  if (missing.empty() || !ready_) {
    lacking_since_ = absl::InfiniteFuture();
  } else {
    lacking_since_ = std::min(lacking_since_, now);
    if (now - lacking_since_ < std::min(kGrace, options_.expert_patience)) return;
  }
  if (told_ && missing == missing_) return;
  const bool whole = missing_.empty();
  missing_ = std::move(missing);
  const bool ready = missing_.empty() || (ready_ && GoesOnWithout());
  if (ready && whole && !missing_.empty()) {
    log::Warning("--lost-experts {}: rows do without what is missing: {}",
                 Name(options_.lost_experts), missing_);
  }
  const bool changed = !told_ || ready_ != ready;
  ready_ = ready;
  told_ = true;
  service_->SetState(ready_, missing_, false);
  if (!changed) return;
  server_->SetReady(ready_);
  metrics_->SetReady(ready_);
  // In-process the gateway's own line says the same.
  const log::Level level = options_.listen.empty() ? log::Level::kDebug : log::Level::kInfo;
  if (log::Enabled(level)) log::Write(level, ready_ ? "ready" : "not ready: " + missing_);
  if (on_ready_) on_ready_(ready_, missing_);
}

void Router::Impl::BeginDrain() {
  {
    absl::MutexLock lock(&mutex_);
    if (std::exchange(draining_, true)) return;
  }
  server_->SetReady(false);
  metrics_->SetReady(false);
  service_->SetState(false, "draining", true);
  engine_->BeginDrain([this] {
    absl::MutexLock lock(&drain_mutex_);
    drained_ = true;
    drain_ended_.SignalAll();
  });
}

void Router::Impl::Stop(absl::Duration grace) {
  {
    absl::MutexLock lock(&mutex_);
    if (std::exchange(stopping_, true)) return;
    stopped_.SignalAll();
  }
  if (watcher_.joinable()) watcher_.join();
  if (placement_ != nullptr) placement_->Stop();
  if (server_ == nullptr) return;
  server_->SetReady(false);
  service_->EndStreams();
  server_->Shutdown(grace);
  registration_ = {};
  links_registration_ = {};
}

absl::Status Router::CheckFits(const RouterOptions& options, const OpenedModel& model,
                               uint64_t other_weight_bytes) {
  return ForwardPass::Check(options, model, other_weight_bytes);
}

absl::StatusOr<std::unique_ptr<Router>> Router::Create(const RouterOptions& options,
                                                       const RouterShared& shared,
                                                       ReadyCallback on_ready) {
  const auto& workers = options.workers;
  for (auto it = workers.begin(); it != workers.end(); ++it) {
    if (std::find(workers.begin(), it, *it) != it) {
      return UsageError("--workers names {} twice", *it);
    }
  }
  SY_RETURN_IF_ERROR(PlacementSource::Check(PlacementFrom(options)));
  auto impl = std::make_unique<Impl>(options, shared, std::move(on_ready));
  SY_RETURN_IF_ERROR(impl->Load());
  SY_RETURN_IF_ERROR(impl->Connect());
  SY_RETURN_IF_ERROR(impl->Serve());
  return std::unique_ptr<Router>(new Router(std::move(impl)));
}

Router::Router(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Router::~Router() = default;

const std::string& Router::address() const { return impl_->server().address(); }
grpc::Server& Router::server() { return impl_->server().grpc(); }
int Router::max_model_len() const { return impl_->max_model_len(); }
absl::Status Router::failure() const { return impl_->failure(); }
EngineSnapshot Router::Snapshot() const { return impl_->Snapshot(); }
void Router::BeginDrain() { impl_->BeginDrain(); }
bool Router::WaitDrained(absl::Duration timeout) { return impl_->WaitDrained(timeout); }
void Router::Stop(absl::Duration grace) { impl_->Stop(grace); }

}  // namespace switchyard::router
