#include "expert-worker/worker.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "expert-worker/compute/batcher.h"
#include "expert-worker/compute/cpu_backend.h"
#include "expert-worker/device/cuda_backend.h"
#include "expert-worker/device/pinned_rows.h"
#include "expert-worker/store/expert_set.h"
#include "expert-worker/store/expert_store.h"
#include "services/base/check.h"
#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/status.h"
#include "services/expertwire/arithmetic.h"
#include "services/expertwire/grpc_server.h"

namespace switchyard::worker {
namespace {

namespace pb = expertwire::pb;
using expertwire::Answer;
using expertwire::AnswerSink;
using expertwire::Call;

uint64_t Micros(absl::Duration d) {
  return static_cast<uint64_t>(std::max<int64_t>(0, absl::ToInt64Microseconds(d)));
}

}  // namespace

// A batch from when it is taken out of those that wait until it is answered. A device has two of
// them: it copies the rows of one while it computes the other's.
struct Worker::Lane {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Batcher> batcher;
  std::vector<Pending> batch;
  std::vector<Answer> answers;
  int32_t layer = -1;  // of the batch; under the worker's mutex
  absl::Time started;
  uint64_t left = 0;   // pairs that waited then
  bool tight = false;  // not all that was held had room then
};

struct Worker::Parts {
  Parts(const ModelSpec& model, WorkerOptions o, std::unique_ptr<ExpertStore> s,
        std::unique_ptr<DeviceMemory> d, kernels::Isa isa, std::unique_ptr<kernels::ThreadPool> own,
        kernels::ThreadPool& pool)
      : spec(model),
        options(std::move(o)),
        store(std::move(s)),
        host_memory(*store),
        device_memory(std::move(d)),
        memory(device_memory ? static_cast<ExpertMemory&>(*device_memory) : host_memory),
        holdings(*store),
        tiers(*store, memory, {.memory_bytes = options.memory_bytes}),
        own_pool(std::move(own)),
        compute(isa, pool),
        lanes(device_memory ? 2 : 1),
        loader(*store, holdings, tiers,
               {.bytes_per_s = options.load_bytes_per_s,
                .check_weights = options.check_weights,
                .spare_named = [this](std::vector<ExpertId>* ids) { SpareNamed(ids); }}) {
    computing.reserve(lanes.size());
    for (Lane& lane : lanes) MakeLane(&lane);
  }

  const ModelSpec spec;
  const WorkerOptions options;
  const std::unique_ptr<ExpertStore> store;
  HostMemory host_memory;
  const std::unique_ptr<DeviceMemory> device_memory;  // null: the host's is computed from
  ExpertMemory& memory;
  Holdings holdings;
  Tiers tiers;
  const std::unique_ptr<kernels::ThreadPool> own_pool;
  const kernels::Compute compute;
  expertwire::NumericsClass numerics;
  pb::Hello hello;  // constant once created; without what is held

  // Of the thread that computes.
  std::vector<Lane> lanes;
  std::vector<Lane*> computing;  // the oldest first; as many as lanes at most
  std::string last_failure;

  mutable absl::Mutex mutex;
  std::vector<Pending> waiting ABSL_GUARDED_BY(mutex);
  uint64_t waiting_pairs ABSL_GUARDED_BY(mutex) = 0;

  std::atomic<bool> draining = false;
  std::atomic<int> batches = 0;  // taken and not answered
  std::atomic<bool> device_lost = false;
  std::atomic<uint64_t> parts = 0, rows = 0, computations = 0, merged = 0, cancelled = 0;
  std::array<std::atomic<uint64_t>, 6> segments{};
  expertwire::Histogram batch_rows, compute_us, queue_us;
  std::unique_ptr<expertwire::GrpcServer> server;
  Loader loader;  // its thread uses what is above

  void MakeLane(Lane* lane);
  void OnFailure(const absl::Status& why);
  // Takes out those that calls name, which wait or are being computed.
  void SpareNamed(std::vector<ExpertId>* ids);
  void Prefetch(const Call& call);
  Lane* FreeLane();
  uint64_t TakeBatch(Lane* lane);
  bool StartNext();
  void FinishOldest();
  void EndBatch(Lane* lane);
  bool Settle(const Pending& pending, absl::Time now);
  std::string Misfit(const Call& call) const;
  void Reply(const Pending& pending, Answer answer);
};

absl::StatusOr<std::unique_ptr<Worker>> Worker::Create(
    const ModelSpec& spec, const std::string& fingerprint,
    std::shared_ptr<checkpoint::TensorSource> source, const WorkerOptions& options,
    kernels::ThreadPool* pool) {
  if (options.dtype != DType::kBF16 && options.dtype != DType::kF32) {
    return InvalidArgument("dtype {} is not supported; supported: bfloat16, float32",
                           Name(options.dtype));
  }
  if (options.cuda != nullptr && options.dtype != DType::kBF16) {
    return UsageError("--dtype {}: CUDA devices compute in bfloat16; use it, or --device cpu",
                      Name(options.dtype));
  }
  SY_ASSIGN_OR_RETURN(const kernels::Isa isa, kernels::ChooseIsa(options.isa));
  SY_ASSIGN_OR_RETURN(
      const std::vector<bool> held,
      ParseExpertSet(options.experts, spec.experts.count, spec.experts_per_group()));
  std::string arithmetic = expertwire::ExpertArithmetic(spec, *source, options.dtype, isa);
  SY_ASSIGN_OR_RETURN(auto store, ExpertStore::Open(spec, held, std::move(source)));
  std::unique_ptr<DeviceMemory> device_memory;
  if (options.cuda != nullptr) {
    arithmetic = options.cuda->about().arithmetic;
    SY_ASSIGN_OR_RETURN(device_memory,
                        DeviceMemory::Create(spec, *store, options.cuda, options.memory_bytes,
                                             options.pinned_bytes));
  }
  std::unique_ptr<kernels::ThreadPool> own;
  if (pool == nullptr) {
    own = std::make_unique<kernels::ThreadPool>(std::max(1, options.threads));
    pool = own.get();
  }
  auto parts = std::make_unique<Parts>(spec, options, std::move(store), std::move(device_memory),
                                       isa, std::move(own), *pool);
  parts->numerics = {fingerprint, options.dtype, std::move(arithmetic)};
  parts->hello = expertwire::MakeHello(options.worker_id, parts->numerics, options.grant,
                                       options.allow_mixed_numerics);
  *parts->hello.mutable_runs_on() = expertwire::RunsOn(isa, pool->threads());
  if (options.cuda != nullptr) {
    parts->hello.mutable_runs_on()->set_isa(options.cuda->about().arithmetic);
  }
  parts->hello.set_node(options.node);
  parts->hello.set_zone(options.zone);
  parts->hello.set_memory_bytes(options.memory_bytes);
  parts->hello.set_expert_bytes(parts->memory.expert_bytes());
  return std::unique_ptr<Worker>(new Worker(std::move(parts)));
}

Worker::Worker(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

Worker::~Worker() { Stop(); }

void Worker::Register(grpc::ServerBuilder& builder) {
  SY_CHECK(parts_->server == nullptr);
  const WorkerOptions& o = parts_->options;
  parts_->server = std::make_unique<expertwire::GrpcServer>(
      *this, expertwire::GrpcServerOptions{
                 .grant = o.grant,
                 .max_routers = o.max_routers,
                 .shared_memory = o.shared_memory,
                 .rows = parts_->device_memory ? std::make_shared<PinnedRows>(o.cuda) : nullptr,
                 .max_frame_bytes = o.max_frame_bytes,
                 .busy_poll = o.busy_poll});
  parts_->server->Register(builder);
}

void Worker::Start() { parts_->server->Start(); }

void Worker::BeginDrain() {
  parts_->draining.store(true);
  if (parts_->server) parts_->server->BeginDrain();
}

bool Worker::Drained() const {
  {
    absl::MutexLock lock(&parts_->mutex);
    if (!parts_->waiting.empty()) return false;
  }
  return parts_->batches.load() == 0 && (!parts_->server || parts_->server->Idle());
}

void Worker::Stop() {
  if (parts_->server) parts_->server->Stop();
}

WorkerCounters Worker::counters() const {
  WorkerCounters out;
  const auto read = [](const std::atomic<uint64_t>& a) {
    return a.load(std::memory_order_relaxed);
  };
  out.parts = read(parts_->parts);
  out.rows = read(parts_->rows);
  out.computations = read(parts_->computations);
  out.parts_merged = read(parts_->merged);
  out.cancelled = read(parts_->cancelled);
  for (size_t i = 0; i < out.segments.size(); ++i) out.segments[i] = read(parts_->segments[i]);
  {
    absl::MutexLock lock(&parts_->mutex);
    out.waiting = parts_->waiting.size();
  }
  if (parts_->server) {
    const expertwire::GrpcServerStats stats = parts_->server->stats();
    out.routers = stats.routers;
    out.streams_broken = stats.streams_broken;
    out.refused = stats.refused;
    out.unknown_cancels = stats.unknown_cancels;
    out.ended_by_code = stats.ended_by_code;
  }
  out.loads = parts_->loader.counters();
  out.tiers = parts_->tiers.counters();
  if (parts_->device_memory) out.device = parts_->device_memory->counters();
  out.epoch = parts_->holdings.epoch();
  out.assigned_epoch = parts_->holdings.assigned_epoch();
  out.to_load = parts_->holdings.to_load();
  out.memory_bytes = parts_->options.memory_bytes;
  out.batch_rows = parts_->batch_rows.Read();
  out.compute_us = parts_->compute_us.Read();
  out.queue_us = parts_->queue_us.Read();
  return out;
}

const expertwire::NumericsClass& Worker::numerics() const { return parts_->numerics; }
uint64_t Worker::mapped_bytes() const { return parts_->store->bytes(); }
int64_t Worker::experts_held() const { return parts_->store->count(); }
uint64_t Worker::held_bytes() const { return parts_->memory.held_bytes(); }

absl::Status Worker::SettleMemory(
    const std::function<void(uint64_t done, uint64_t total)>& progress) {
  parts_->tiers.EvictRest();
  return parts_->device_memory ? parts_->tiers.Fill(progress) : absl::OkStatus();
}

absl::StatusOr<device::DeviceExperts> Worker::PinExperts() {
  DeviceMemory* const memory = parts_->device_memory.get();
  if (memory == nullptr || parts_->tiers.tight()) {
    return FailedPrecondition("not all experts are on a device");
  }
  const ExpertStore& store = *parts_->store;
  device::DeviceExperts out;
  out.blocks.resize(static_cast<size_t>(store.layers()));
  for (int32_t layer = 0; layer < store.layers(); ++layer) {
    if (!parts_->spec.layers[static_cast<size_t>(layer)].moe) continue;
    for (int32_t expert = 0; expert < store.experts(); ++expert) {
      if (store.Find(layer, expert) == nullptr) {
        return FailedPrecondition("expert {} of layer {} is held elsewhere", expert, layer);
      }
      SY_ASSIGN_OR_RETURN(const void* const block, memory->Pin({layer, expert}, /*wait=*/false));
      out.blocks[static_cast<size_t>(layer)].push_back(block);
    }
  }
  out.ffn = *memory->spec();
  return out;
}

absl::Status Worker::failure() const {
  if (!parts_->device_lost.load()) return absl::OkStatus();
  return absl::DataLossError(parts_->options.cuda->name() + " is lost; the log says why");
}

pb::Hello Worker::hello() const { return expertwire::WithHolds(parts_->hello, holds()); }
uint64_t Worker::holds_version() const { return parts_->holdings.version(); }
bool Worker::draining() const { return parts_->draining.load(std::memory_order_relaxed); }

pb::Holds Worker::holds() const {
  pb::Holds out;
  parts_->holdings.FillHolds(&out);
  const uint64_t memory = parts_->tiers.memory_bytes();
  const uint64_t taken =
      parts_->memory.held_bytes() + parts_->holdings.to_load() * parts_->memory.expert_bytes();
  out.set_held_bytes(parts_->memory.held_bytes());
  out.set_free_bytes(memory == 0 ? UINT64_MAX : memory - std::min(memory, taken));
  return out;
}

void Worker::OnRouter(const AnswerSink* sink) { parts_->holdings.OnRouter(sink); }

void Worker::OnAssign(const pb::Assign& assign) {
  parts_->holdings.Assign(assign);
  parts_->loader.Wake();
}

void Worker::OnMapAck(const AnswerSink* sink, uint64_t epoch) {
  parts_->holdings.OnAck(sink, epoch);
  parts_->loader.Wake();
}

void Worker::OnPrefetch(const pb::Prefetch& prefetch) {
  const int most = std::min(prefetch.experts_size(), parts_->spec.experts.count);
  for (int i = 0; i < most; ++i) parts_->tiers.Hint(prefetch.layer(), prefetch.experts(i));
}

pb::DescribeResponse Worker::Describe() const {
  pb::DescribeResponse out;
  *out.mutable_hello() = hello();
  out.set_rows_computed(parts_->rows.load(std::memory_order_relaxed));
  out.set_frames(parts_->parts.load(std::memory_order_relaxed));
  return out;
}

void Worker::Accept(Call part, std::shared_ptr<AnswerSink> sink) {
  parts_->parts.fetch_add(1, std::memory_order_relaxed);
  if (parts_->tiers.tight()) parts_->Prefetch(part);
  absl::MutexLock lock(&parts_->mutex);
  parts_->waiting_pairs += part.row_index.size();
  parts_->waiting.push_back({std::move(part), std::move(sink), SteadyNow()});
}

expertwire::CallHandler::Dropped Worker::Cancel(const AnswerSink* sink, uint64_t call_id,
                                                uint32_t attempt) {
  Dropped dropped;
  absl::MutexLock lock(&parts_->mutex);
  std::erase_if(parts_->waiting, [&](const Pending& p) {
    const Call& call = p.call;
    if (p.sink.get() != sink || call.call_id != call_id || call.attempt != attempt) return false;
    parts_->mutex.AssertHeld();
    parts_->waiting_pairs -= call.row_index.size();
    ++dropped.parts;
    dropped.wire_bytes += call.wire_bytes;
    return true;
  });
  parts_->cancelled.fetch_add(dropped.parts, std::memory_order_relaxed);
  return dropped;
}

void Worker::Forget(const AnswerSink* sink) {
  parts_->holdings.Forget(sink);
  parts_->loader.Wake();  // nobody waits for its acknowledgement any more
  absl::MutexLock lock(&parts_->mutex);
  std::erase_if(parts_->waiting, [&](const Pending& p) {
    if (p.sink.get() != sink) return false;
    parts_->mutex.AssertHeld();
    parts_->waiting_pairs -= p.call.row_index.size();
    parts_->cancelled.fetch_add(1, std::memory_order_relaxed);
    return true;
  });
}

void Worker::Parts::SpareNamed(std::vector<ExpertId>* ids) {
  absl::flat_hash_set<std::pair<int32_t, int64_t>> named;
  absl::MutexLock lock(&mutex);
  for (const Pending& pending : waiting) {
    for (const expertwire::Segment& segment : pending.call.segments) {
      named.emplace(pending.call.layer, segment.expert);
    }
  }
  std::erase_if(*ids, [&](ExpertId id) {
    mutex.AssertHeld();
    const auto computed = [id](const Lane& lane) { return lane.layer == id.layer; };
    return std::any_of(lanes.begin(), lanes.end(), computed) ||
           named.contains({id.layer, id.expert});
  });
}

void Worker::Parts::MakeLane(Lane* lane) {
  if (device_memory) {
    lane->backend = std::make_unique<CudaBackend>(spec, *device_memory);
  } else {
    lane->backend = std::make_unique<CpuBackend>(spec, options.dtype, compute);
  }
  const auto on_lost = [this](ExpertId id, const absl::Status& why) { loader.OnLost(id, why); };
  lane->batcher = std::make_unique<Batcher>(spec, tiers, holdings, on_lost, *lane->backend);
}

// Routers turn to others for what was not computed; a lost device ends the process (run.cc).
void Worker::Parts::OnFailure(const absl::Status& why) {
  if (absl::IsDataLoss(why)) device_lost.store(true);
  if (last_failure == why.message()) return;
  last_failure = std::string(why.message());
  log::Error("experts of a batch were not computed: {}", last_failure);
}

// What is not in memory is read while other calls are computed.
void Worker::Parts::Prefetch(const Call& call) {
  for (const expertwire::Segment& segment : call.segments) tiers.Want(call.layer, segment.expert);
}

Worker::Lane* Worker::Parts::FreeLane() {
  for (Lane& lane : lanes) {
    if (lane.batch.empty()) return &lane;
  }
  return nullptr;
}

// Moves the most urgent part into the lane's batch, and of its layer as many others as may be
// merged; returns the pairs that stay behind.
uint64_t Worker::Parts::TakeBatch(Lane* lane) {
  absl::MutexLock lock(&mutex);
  if (waiting.empty()) return 0;
  const auto first = std::max_element(
      waiting.begin(), waiting.end(),
      [](const Pending& a, const Pending& b) { return a.call.priority < b.call.priority; });
  const int32_t layer = first->call.layer;
  const size_t pairs_max = std::max<size_t>(1, options.merge_bytes / lane->backend->bytes_a_pair());
  size_t pairs = first->call.row_index.size();
  const auto joins = [&](const Pending& p) {
    if (&p == &*first) return true;
    const size_t more = p.call.row_index.size();
    if (p.call.layer != layer || pairs + more > pairs_max) return false;
    pairs += more;
    return true;
  };
  auto kept = waiting.begin();
  for (auto it = waiting.begin(); it != waiting.end(); ++it) {
    if (joins(*it)) {
      lane->batch.push_back(std::move(*it));
    } else {
      if (kept != it) *kept = std::move(*it);
      ++kept;
    }
  }
  waiting.erase(kept, waiting.end());
  waiting_pairs -= pairs;
  lane->layer = layer;
  batches.fetch_add(1);
  return waiting_pairs;
}

void Worker::Parts::EndBatch(Lane* lane) {
  lane->batch.clear();
  absl::MutexLock lock(&mutex);
  lane->layer = -1;
  batches.fetch_sub(1);
}

// Why a well-formed part cannot be this model's; empty if it can.
std::string Worker::Parts::Misfit(const Call& call) const {
  if (!call.bad.empty()) return call.bad;
  if (static_cast<int>(call.hidden) != spec.hidden) {
    return fmt::format("rows of {} elements; the model's have {}", call.hidden, spec.hidden);
  }
  if (call.dtype != options.dtype) {
    return fmt::format("rows of {}; this worker computes {}", Name(call.dtype),
                       Name(options.dtype));
  }
  if (call.segments.back().expert >= static_cast<uint32_t>(spec.experts.count)) {
    return fmt::format("expert {} of {}", call.segments.back().expert, spec.experts.count);
  }
  return "";
}

// Answers what is not worth or not able to be computed.
bool Worker::Parts::Settle(const Pending& pending, absl::Time now) {
  if (std::string why = Misfit(pending.call); !why.empty()) {
    Reply(pending, AnswerAll(pending.call, pb::BAD, std::move(why)));
    return true;
  }
  if (pending.call.deadline <= now) {
    Reply(pending, AnswerAll(pending.call, pb::EXPIRED, ""));
    return true;
  }
  return false;
}

void Worker::Parts::Reply(const Pending& pending, Answer answer) {
  for (pb::SegmentStatus s : answer.status) segments[s].fetch_add(1, std::memory_order_relaxed);
  pending.sink->OnAnswer(std::move(answer));
}

// Whether anything waited and a lane was free for it.
bool Worker::Parts::StartNext() {
  // A batch whose experts have no room waits for that of another's, which this thread finishes.
  const bool tight = tiers.tight();
  if (!computing.empty() && (tight || computing.front()->tight)) return false;
  Lane* const lane = FreeLane();
  if (lane == nullptr) return false;
  lane->tight = tight;
  lane->left = TakeBatch(lane);
  if (lane->batch.empty()) return false;
  lane->started = SteadyNow();
  std::erase_if(lane->batch,
                [&](const Pending& pending) { return Settle(pending, lane->started); });
  if (lane->batch.empty()) {
    EndBatch(lane);
    return true;
  }
  for (const Pending& pending : lane->batch) {
    pending.sink->OnComputing(pending.call.call_id, pending.call.attempt);
  }
  lane->batcher->Start(lane->batch, &lane->answers);
  computing.push_back(lane);
  return true;
}

void Worker::Parts::FinishOldest() {
  Lane* const lane = computing.front();
  computing.erase(computing.begin());
  const absl::StatusOr<int64_t> run = lane->batcher->Finish();
  if (!run.ok()) OnFailure(run.status());
  const int64_t pairs = run.value_or(0);
  const uint64_t took_us = Micros(SteadyNow() - lane->started);
  rows.fetch_add(static_cast<uint64_t>(pairs), std::memory_order_relaxed);
  computations.fetch_add(1, std::memory_order_relaxed);
  const std::vector<Pending>& batch = lane->batch;
  if (batch.size() > 1) merged.fetch_add(batch.size(), std::memory_order_relaxed);
  batch_rows.Add(static_cast<uint64_t>(pairs));
  compute_us.Add(took_us);
  for (size_t i = 0; i < batch.size(); ++i) {
    Answer& answer = lane->answers[i];
    answer.queue_us = Micros(lane->started - batch[i].arrived);
    answer.compute_us = took_us;
    answer.load = static_cast<float>(lane->left);
    queue_us.Add(answer.queue_us);
    Reply(batch[i], std::move(answer));
  }
  EndBatch(lane);
}

bool Worker::Compute() {
  Parts& p = *parts_;
  const bool started = p.StartNext();
  if (p.computing.empty()) return started;
  if (p.computing.front()->batcher->Done()) {
    p.FinishOldest();
  } else if (!started) {
    std::this_thread::yield();
  }
  return true;
}

}  // namespace switchyard::worker
